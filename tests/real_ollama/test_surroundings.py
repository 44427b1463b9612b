"""What else runs beside a genuine Ollama on the processor, and a genuine Ollama that ran already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import psutil
import pytest

from pytest_llmperf.attached import AttachedFleet
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import LlmperfError

from .genuine import Genuine

TEST = """
import pytest

@pytest.mark.llmperf(
    scenario="single_agent", model="small", options={"num_thread": 1, "num_ctx": 512}, tokens=16, max_runs=5,
    warmup_requests=1, metrics=["total_throughput"], margins={"total_throughput": 0.4},
)
def test_alone(llmperf):
    llmperf.check()
"""
SPIN = f"""
import os, sys
for _ in range({os.cpu_count()}):
    if not os.fork():
        os.setsid()
        while os.getppid() != {os.getpid()}:
            pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, genuine_ollama: Genuine, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("OLLAMA_MODELS", str(genuine_ollama.models))
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini(f"[pytest]\nllmperf_ollama = {genuine_ollama.binary}\nllmperf_quiet_wait = 1\n")
    pytester.makepyfile(test_stack=TEST)
    return pytester


@pytest.fixture
def somebody_busy() -> Iterator[None]:
    """Processes that keep all cores busy and are nobody's children: the one that started them has ended."""
    before = {*psutil.pids()}
    subprocess.run([sys.executable, "-c", SPIN], check=True, timeout=30)
    spinning = [psutil.Process(pid) for pid in {*psutil.pids()} - before if "os.setsid()" in _line(pid)]
    assert spinning
    try:
        yield
    finally:
        for process in spinning:
            process.kill()


def _line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def test_a_machine_that_does_not_get_quiet_is_invalid_and_tried_once_more(
    project: pytest.Pytester, somebody_busy: None
) -> None:
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "--llmperf-rebaseline", timeout=120)
    assert result.ret == 1
    result.stderr.fnmatch_lines(
        ["llmperf: waiting up to 1 s for a quiet machine: other processes use * % of the cores (python* cores*"]
    )
    result.stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_alone",
            "  the machine did not get quiet within 1 s: other processes use * % of the cores *",
            "test_stack.py::test_alone was disturbed and tried again: the machine did not get quiet within 1 s: *",
            "*1 failed, 1 postponed*",
        ]
    )


def test_a_server_that_ran_already_is_measured_and_goes_on_running(
    project: pytest.Pytester, genuine_ollama: Genuine, tmp_path: Path
) -> None:
    with closing(Fleet(str(genuine_ollama.binary), nullcontext(0.0))) as theirs:
        server = theirs.start()
        backend = f"--llmperf-backend={server.url}"
        options = ("-p", "no:cacheprovider", backend)
        recorded = project.runpytest_subprocess(*options, "--llmperf-rebaseline", "--llmperf-sessions=2", timeout=120)
        assert recorded.ret == 0
        (path,) = (project.path / "baselines").rglob("*.json")
        text = path.read_text("utf-8")
        assert path.parts[-3].endswith("-linux-attached")
        assert '"backend": "ollama that ran already"' in text
        assert '"emulated": false' in text
        judged = project.runpytest_subprocess(*options, timeout=120)
        judged.stdout.fnmatch_lines([f"{server.url} ran already: not restarted between sessions; *"])
        assert server.why_dead() is None
        with server.control() as control:
            assert control.loaded() == []


def test_a_real_server_and_an_emulator_are_not_measured_together(
    project: pytest.Pytester, genuine_ollama: Genuine
) -> None:
    fleets = Fleet(None, nullcontext(0.0)), Fleet(str(genuine_ollama.binary), nullcontext(0.0))
    with closing(fleets[0]) as emulators, closing(fleets[1]) as real:
        urls = [real.start().url, emulators.start().url]
        with closing(AttachedFleet(urls, nullcontext(0.0), {})) as both:
            both.start()
            with pytest.raises(LlmperfError) as caught:
                both.start()
    kinds = f"{urls[0]} is real, the other an emulator ({urls[1]})"
    assert str(caught.value) == f"--llmperf-backend: {kinds}; name servers of one kind"
