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
        env = os.environ | {"FAKE_NVML": str(self.answers), "LD_LIBRARY_PATH": str(self.folder)}
        argv = [sys.executable, "-c", dedent(prelude) + dedent(code)]
        return json.loads(subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)
