"""What else runs: on the GPUs that servers of ours see, and on no others; over other servers nobody watches.

The driver is a stand-in. Where a server must be ours and no emulator, a program that execs the emulator is its binary.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import psutil
import pytest

from pytest_llmperf import gpu, surroundings
from pytest_llmperf.surroundings import Surroundings
from tests.nvml import FakeNvml, stand_in

CROWDED = ("gpu GPU-aa0 12000000000 1 NVIDIA RTX 4080", "gpu GPU-bb1 24000000000 23000000000 NVIDIA RTX 4090")
ALWAYS = 4102444800000000
"""A sample's time, the year 2100 in microseconds: whoever asks, it has come since."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return stand_in(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(driver: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    binary = tmp_path / "ollama"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m pytest_llmperf.emulator "$@"\n')
    binary.chmod(0o755)
    monkeypatch.setenv("OLLAMA", str(binary))
    driver.tell(*CROWDED)
    return driver


@pytest.fixture
def somebody() -> Iterator[psutil.Process]:
    """A process that is no child of those who ask."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def around(nvml: FakeNvml, code: str, *pins: str | None, kind: str = "real") -> list[str]:
    """Run `code` with servers pinned to `pins` and what is `around` them; what was `said` then.

    `kind` is real, emulated, or attached: to two emulators that ran already.
    """
    said: list[str] = nvml.run(
        f"""
from contextlib import closing, nullcontext
from pytest_llmperf import identity, surroundings
from pytest_llmperf.attached import AttachedFleet
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import LlmperfError
from pytest_llmperf.surroundings import Surroundings

said, free = [], nullcontext(0.0)
def attempt(action, *args, **kwargs):
    try:
        said.append(action(*args, **kwargs) or "")
    except LlmperfError as error:
        said.append(f"{{type(error).__name__}}: {{error}}")

surroundings._LOOK_S = 0.1
with closing(Fleet(None if {kind!r} == "emulated" else os.environ["OLLAMA"], free)) as fleet:
    servers = [fleet.start(gpu=pin) for pin in {list(pins)}]
    with closing(AttachedFleet([each.url for each in servers], free, {{}})) as theirs:
        if {kind!r} == "attached":
            servers = [theirs.start() for _ in servers]
        around = Surroundings(servers, 1.0, said.append)
{indent(code, " " * 8)}
answer(said)
        """
    )
    return said


WATCH = """
attempt(around.settle)
around.begin()
attempt(around.disturbance)
"""
WHAT_TO_DO = "end what is busy, or set llmperf_quiet_wait = off to measure beside it"
RUN = f"attempt(around.refuse_crowded, servers[0], 3_300_000_000){WATCH}"


def test_over_real_servers_of_ours_somebody_counts(nvml: FakeNvml, somebody: psutil.Process) -> None:
    nvml.tell(*CROWDED, f"sample 0 {somebody.pid} {ALWAYS} 70")
    using = f"other processes use the GPU ({somebody.name()} 70 %)"
    assert around(nvml, RUN, None) == [
        "",  # it fits onto both GPUs together
        f"llmperf: waiting up to 1 s for a quiet machine: {using}",
        f"DisturbedError: the machine did not get quiet within 1 s: {using}; {WHAT_TO_DO}",
        f"other processes used the GPU ({somebody.name()} 70 %)",
    ]


@pytest.mark.parametrize("kind", ["emulated", "attached"])
def test_over_emulators_and_servers_that_ran_already_nobody_watches(
    nvml: FakeNvml, somebody: psutil.Process, kind: str
) -> None:
    nvml.tell(CROWDED[0], f"sample 0 {somebody.pid} {ALWAYS} 70")
    assert around(nvml, RUN, None, None, kind=kind) == ["", "", ""]
    assert len(around(nvml, RUN, None, None)) == 4, "there was nothing to see"


def test_without_servers_nobody_is_disturbed(nvml: FakeNvml, somebody: psutil.Process) -> None:
    nvml.tell(*CROWDED, f"sample 0 {somebody.pid} {ALWAYS} 70")
    assert around(nvml, WATCH) == ["", ""]


def test_somebody_on_a_gpu_that_no_instance_sees_disturbs_nobody(nvml: FakeNvml, somebody: psutil.Process) -> None:
    nvml.tell(*CROWDED, f"sample 0 {somebody.pid} {ALWAYS} 70")
    assert around(nvml, RUN, "1") == ["", "", ""]
    assert around(nvml, RUN, "GPU-bb") == ["", "", ""]
    used = f"other processes used the GPU ({somebody.name()} 70 %)"
    assert around(nvml, RUN, "1", "0")[-1] == used
    assert around(nvml, RUN, "1", None)[-1] == used


@pytest.mark.parametrize(
    ("name", "index"),
    [
        *(("0", 0), ("1", 1), ("GPU-aa0", 0), ("GPU-ab", 1)),
        *((name, None) for name in ("GPU-a", "GPU-", "GPU-aa00", "gpu-aa0", "aa0", "G", "", "2", "01", "0,1")),
    ],
)
def test_a_gpu_is_named_by_its_index_or_a_beginning_of_its_uuid_that_no_other_has(name: str, index: int | None) -> None:
    known = [gpu.Gpu(n, f"GPU-{uuid}", "A2", 1, 1, ()) for n, uuid in enumerate(("aa0", "ab0"))]
    assert gpu.named(name, known) == (None if index is None else known[index])


@pytest.mark.parametrize("pin", ["0", "GPU-aa", "GPU-aa0"])
def test_only_the_memory_of_the_pinned_gpu_counts(nvml: FakeNvml, somebody: psutil.Process, pin: str) -> None:
    nvml.tell(*CROWDED, f"process 0 compute {somebody.pid} 11500000000")
    (said, *_) = around(nvml, RUN, pin)
    assert said == (
        "LlmperfError: instance1: the models need about 3.3 GB and 0.0 of 12.0 GB are free on NVIDIA RTX 4080: "
        f"{somebody.name()} (pid {somebody.pid}) holds 11.5 GB; stop what holds the memory, or declare smaller num_ctx "
        "or num_gpu"
    )


def test_memory_that_no_process_holds_blames_nobody(nvml: FakeNvml) -> None:
    (said, *_) = around(nvml, RUN, "0")
    assert said == (
        "LlmperfError: instance1: the models need about 3.3 GB and 0.0 of 12.0 GB are free on NVIDIA RTX 4080; "
        "stop what holds the memory, or declare smaller num_ctx or num_gpu"
    )


@pytest.mark.parametrize("function", ["GetCount_v2", "GetHandleByIndex_v2", "GetProcessUtilization"])
def test_a_gpu_that_is_lost_in_the_middle_is_no_reason_to_break_down(
    nvml: FakeNvml, somebody: psutil.Process, function: str
) -> None:
    there = f"{CROWDED[1]}\nsample 0 {somebody.pid} {ALWAYS} 70\n"
    gone = f"{there}error nvmlDevice{function} 15\n"
    code = f"tell({there!r})\naround.begin()\ntell({gone!r})\nattempt(around.disturbance)\n{RUN}"
    nvml.tell(CROWDED[1])
    assert around(nvml, code, None) == ["", "", "", ""]


def test_a_long_wait_says_what_for_and_a_short_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_PATIENCE_S", 0.2)
    said = list[str]()
    around = Surroundings([], None, said.append)
    with around.announced("agent1 to load a model, up to 600 s"):
        time.sleep(0.6)
    with around.announced("nothing"):
        pass
    time.sleep(0.4)
    assert said == ["llmperf: waiting for agent1 to load a model, up to 600 s"]
