"""A stand-in for NVIDIA's driver library: the real binding calls it through the real structures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


def missing() -> str:
    """Why the stand-in can't be built here; "" if it can."""
    if sys.platform != "linux":
        return "the stand-in for NVML is found through LD_LIBRARY_PATH, which is Linux's"
    return "" if shutil.which("cc") else "there is no C compiler `cc` to build the stand-in for NVML"


@dataclass(frozen=True)
class FakeNvml:
    """A folder with the library and what it answers."""

    folder: Path

    @property
    def answers(self) -> Path:
        return self.folder / "answers.txt"

    @property
    def env(self) -> dict[str, str]:
        """What makes a process see these GPUs."""
        return {"FAKE_NVML": str(self.answers), "LD_LIBRARY_PATH": str(self.folder)}

    def tell(self, *lines: str) -> None:
        """Change what the driver knows in one stroke, also for those who ask it just now."""
        draft = self.answers.with_suffix(".draft")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.replace(self.answers)

    def build(self) -> None:
        library = self.folder / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", SOURCE, "-o", library], check=True)

    def run(self, code: str) -> Any:  # noqa: ANN401 - whatever the code answers
        """Run Python that sees these GPUs, and return what it `answer`s; `tell(text)` changes what the driver knows."""
        prelude = """
            import json, os, time
            from dataclasses import asdict
            from pathlib import Path
            from pytest_llmperf import gpu
            def answer(found): print(json.dumps(found))
            def tell(text): Path(os.environ["FAKE_NVML"]).write_text(text)
        """
        argv = [sys.executable, "-c", dedent(prelude) + dedent(code)]
        done = subprocess.run(argv, env=os.environ | self.env, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)


def stand_in(folder: Path) -> FakeNvml:
    """The stand-in, built in a folder; skips the test where that is not possible."""
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    fake = FakeNvml(folder)
    fake.build()
    return fake
