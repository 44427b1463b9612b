"""A user's project on the emulator, run as its user would run it: in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

INI = "[pytest]\nllmperf_backend = emulator\n"
TEST = """
import pytest
from pytest_llmperf import Agent

pytestmark = pytest.mark.llmperf(
    scenario="chimera_homo", model="gemma3:4b-it-q4_K_M", options={"num_ctx": 512},
    tokens=16, warmup_requests=1, solo_runs=0, metrics=["total_throughput"], margins={"total_throughput": 0.25},
)

"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Four times as fast as real time, with a device and a lane of its own, and no word of the caller's environment."""
    scratch = pytester.path / "scratch"
    scratch.mkdir()
    for name in [name for name in os.environ if name.startswith(("OLLAMA_", "PYTEST_"))] + ["CI"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(scratch))
    emulate(monkeypatch)
    pytester.makeini(INI)
    return pytester


def emulate(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    """What the emulator does from now on."""
    words = {"speed": 4, **settings}
    monkeypatch.setenv("LLMPERF_EMULATOR", ",".join(f"{name}={value}" for name, value in words.items()))


def left_behind(project: pytest.Pytester) -> list[str]:
    """Emulators of this project that still run, and whatever it left in its folder for temporary files."""
    scratch = str(project.path / "scratch")
    processes = [p.info["cmdline"] for p in psutil.process_iter(["cmdline", "environ"]) if _of(p, scratch)]
    files = [path.name for path in Path(scratch).iterdir()]
    return [" ".join(line) for line in processes if "pytest_llmperf.emulator" in line] + files


def _of(process: psutil.Process, scratch: str) -> bool:
    return str((process.info["environ"] or {}).get("HOME", "")).startswith(scratch)


@pytest.fixture
def run(project: pytest.Pytester) -> Run:
    """pytest as a user types it; whatever it was, nothing of it is left behind."""

    def call(*arguments: str) -> pytest.RunResult:
        result = project.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=120)
        assert left_behind(project) == []
        return result

    return call
