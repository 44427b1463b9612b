"""GPUs around a genuine Ollama, which has none: a driver of our own tells who holds their memory and who uses them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import psutil
import pytest

from pytest_llmperf.instances import Fleet
from tests.nvml import FakeNvml, stand_in

from .genuine import Genuine

GPU = "gpu GPU-aa0 12000000000 11000000000 NVIDIA RTX 4080"
OTHER_GPU = "gpu GPU-bb1 24000000000 23000000000 NVIDIA RTX 4090"
ALWAYS = 4102444800000000
"""A sample's time, the year 2100 in microseconds: whoever asks, it has come since."""
SEES_CPU = (
    'time=2026-11-21T12:00:00Z level=INFO source=types.go:131 msg="inference compute" id=0 library=cpu variant=avx2 '
    'compute="" driver=0.0 name="" total="31.3 GiB" available="22.5 GiB"'
)
"""What the official builds of this version log where they find no GPU; this one says nothing of devices."""

# three requests of 40 ms: below 0.2 s nobody looks at the processor, and a shared runner is never quiet
TEST = """
import pytest

@pytest.mark.llmperf(
    scenario="single_agent", model="small", options={"num_thread": 1, "num_ctx": 512}, tokens=24, max_runs=5,
    prompts=["one", "two", "three"], warmup_requests=1, metrics=["total_throughput"], margins={"total_throughput": 0.9},
)
def test_alone(llmperf):
    llmperf.check()
"""
# each answer in AFTER is the first of a run's three: whatever happens now happens in the middle of that run
MEANWHILE = """
import os, threading, time
import psutil, pytest

AFTER = {after}

def use_the_gpu(server):
    while AFTER:
        answers = AFTER.pop(0)
        while server.log.read_text().count('"/api/chat"') < answers:
            time.sleep(0.001)
        family = psutil.Process(server.pid).children(recursive=True)
        for pid in {pids}:
            with open(os.environ["FAKE_NVML"], "a") as driver:
                driver.write(f"sample 0 {{pid}} {{time.time_ns() // 1000}} 60\\n")

@pytest.fixture(autouse=True)
def meanwhile(ollama_instances):
    threading.Thread(target=use_the_gpu, args=ollama_instances, daemon=True).start()
"""
SECOND_RUN, THIRD_RUN = 8, 14
"""The answers until then: one of the warm-up, three of each run, the discarded and replaced too, one of its own."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return stand_in(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    for name, value in driver.env.items():
        monkeypatch.setenv(name, value)
    driver.tell(GPU)
    return driver


@pytest.fixture
def project(pytester: pytest.Pytester, genuine_ollama: Genuine, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("OLLAMA_MODELS", str(genuine_ollama.models))
    monkeypatch.delenv("CI", raising=False)
    use(pytester, genuine_ollama.binary, quiet_wait="60")
    pytester.makepyfile(test_stack=TEST)
    return pytester


def use(project: pytest.Pytester, binary: Path, quiet_wait: str) -> None:
    project.makeini(f"[pytest]\nllmperf_ollama = {binary}\nllmperf_quiet_wait = {quiet_wait}\n")


def record(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    options = ("-p", "no:cacheprovider", "--llmperf-rebaseline", "--llmperf-sessions=1", *options)
    return project.runpytest_subprocess(*options, timeout=300)


@pytest.fixture
def somebody() -> Iterator[psutil.Process]:
    """A process that does not come from the tested project."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_who_holds_the_memory_that_a_model_needs_is_named_before_it_is_loaded(
    project: pytest.Pytester, nvml: FakeNvml, somebody: psutil.Process
) -> None:
    nvml.tell("gpu GPU-aa0 12000000000 1000000 NVIDIA RTX 4080", f"process 0 compute {somebody.pid} 11500000000")
    project.makeconftest(
        """
        import pytest
        @pytest.fixture(autouse=True)
        def unloaded(ollama_instances):
            yield
            log = ollama_instances[0].log.read_text()
            assert '"/api/tags"' in log and '"/api/generate"' not in log
        """
    )
    result = record(project)
    result.assert_outcomes(failed=1)
    sentence = (
        "agent1: the models need about 0.0 GB and 0.0 of 12.0 GB are free on NVIDIA RTX 4080: "
        f"* (pid {somebody.pid}) holds 11.5 GB; stop what holds the memory, or declare smaller num_ctx or num_gpu"
    )
    result.stdout.fnmatch_lines(["llmperf: invalid: test_stack.py::test_alone", f"  {sentence}"])
    assert "postponed" not in result.stdout.str(), "to wait does not help"


def test_somebody_who_uses_the_gpu_all_the_time_is_waited_for_and_named(
    project: pytest.Pytester, genuine_ollama: Genuine, nvml: FakeNvml, somebody: psutil.Process
) -> None:
    nvml.tell(GPU, f"sample 0 {somebody.pid} {ALWAYS} 70")
    use(project, genuine_ollama.binary, quiet_wait="1")
    disturbed = record(project)
    assert disturbed.ret == 1
    using = f"other processes use the GPU ({somebody.name()} 70 %)"
    disturbed.stderr.fnmatch_lines([f"llmperf: waiting up to 1 s for a quiet machine: {using}"])
    disturbed.stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_alone",
            f"  the machine did not get quiet within 1 s: {using}; end what is busy, or set llmperf_quiet_wait = off *",
            "test_stack.py::test_alone was disturbed and tried again: the machine did not get quiet within 1 s: *",
            "*1 failed, 1 postponed*",
        ]
    )
    use(project, genuine_ollama.binary, quiet_wait="off")
    measured = record(project)
    measured.assert_outcomes(passed=1)
    assert "waiting" not in measured.stderr.str()
    assert "used the GPU" not in measured.stdout.str()


def test_a_run_in_which_somebody_starts_to_use_the_gpu_is_replaced_and_listed(
    project: pytest.Pytester, nvml: FakeNvml, somebody: psutil.Process
) -> None:
    assert record(project).ret == 0
    project.makeconftest(MEANWHILE.format(after=[SECOND_RUN], pids=[somebody.pid]))
    judged = project.runpytest_subprocess("-p", "no:cacheprovider", timeout=300)
    judged.assert_outcomes(passed=1)
    using = f"other processes used the GPU ({somebody.name()} 60 %)"
    judged.stdout.fnmatch_lines([f"*session 1: a run was replaced: {using}"])


def test_more_than_a_fifth_of_the_runs_is_too_much_and_the_second_try_is_quiet(
    project: pytest.Pytester, nvml: FakeNvml, somebody: psutil.Process
) -> None:
    project.makeconftest(MEANWHILE.format(after=[SECOND_RUN, THIRD_RUN], pids=[somebody.pid]))
    result = record(project)
    using = f"other processes used the GPU ({somebody.name()} 60 %)"
    twice = f"2 of 5 runs had to be replaced: {using}; {using}"
    again = f"test_stack.py::test_alone was disturbed and tried again: {twice}"
    result.stdout.fnmatch_lines([again, "*1 passed, 1 postponed*"])


def test_our_own_processes_are_no_strangers_on_the_gpu(project: pytest.Pytester, nvml: FakeNvml) -> None:
    ours = "[os.getpid(), server.pid, *(process.pid for process in family)]"
    project.makeconftest(MEANWHILE.format(after=[SECOND_RUN, THIRD_RUN], pids=ours))
    result = record(project)
    result.assert_outcomes(passed=1)
    assert "used the GPU" not in result.stdout.str()
    assert len(nvml.answers.read_text().splitlines()) == 1 + 2 * 3, "server, runner and pytest were not all at it"


def test_beside_a_server_that_ran_already_nobody_watches(
    project: pytest.Pytester, genuine_ollama: Genuine, nvml: FakeNvml, somebody: psutil.Process
) -> None:
    full = "gpu GPU-aa0 12000000000 1000000 NVIDIA RTX 4080"
    nvml.tell(full, f"process 0 compute {somebody.pid} 11500000000", f"sample 0 {somebody.pid} {ALWAYS} 70")
    with closing(Fleet(str(genuine_ollama.binary), nullcontext(0.0))) as theirs:
        result = record(project, f"--llmperf-backend={theirs.start().url}")
    result.assert_outcomes(passed=1)
    assert "quiet machine" not in result.stderr.str()
    assert "GPU" not in result.stdout.str()


def test_a_server_that_does_not_see_the_declared_gpu_is_told(
    project: pytest.Pytester, genuine_ollama: Genuine, nvml: FakeNvml
) -> None:
    nvml.tell(GPU, OTHER_GPU)
    pinned = TEST.replace("tokens=24", 'tokens=24, gpus=["1"]').replace("(llmperf)", "(llmperf, ollama_instances)")
    seen = 'print("sees", ollama_instances[0].env["CUDA_VISIBLE_DEVICES"])'
    project.makepyfile(test_stack=pinned.replace("llmperf.check()", f"{seen}; llmperf.check()"))
    silent = record(project)
    silent.assert_outcomes(failed=1)
    silent.stdout.fnmatch_lines(["  agent1: gpus= was declared, and nothing of * is on a GPU; see its log"])
    use(project, script(project, f"echo '{SEES_CPU}' >&2", genuine_ollama), quiet_wait="60")
    result = record(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_alone",
            "  what is declared is not in force",
            "  agent1: gpus='1' was declared, and the server sees cpu; name a GPU that it can use",
            "sees 1",
        ]
    )


def script(project: pytest.Pytester, first: str, genuine: Genuine) -> Path:
    """A program that does something first and is the genuine Ollama then."""
    program = project.makefile(".sh", f"#!/bin/sh\n{first}\nexec {genuine.binary} $@\n")
    program.chmod(0o755)
    return program


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(
    project: pytest.Pytester, genuine_ollama: Genuine, nvml: FakeNvml
) -> None:
    nvml.tell(GPU, OTHER_GPU)
    use(project, script(project, f"touch {project.path}/started", genuine_ollama), quiet_wait="60")
    for name in "7", "gpu-aa", "GPU-":
        project.makepyfile(test_stack=TEST.replace("tokens=24", f'tokens=24, gpus=["{name}"]'))
        result = record(project)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"  gpus names '{name}'; this machine has 0 (GPU-aa0), 1 (GPU-bb1)"])
        assert not (project.path / "started").exists()
