"""A quiet machine and a busy one, with real processes; each bound is relative to what they really used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count

import psutil
import pytest

from pytest_llmperf.quiet import BUSY, Cpu, await_quiet, busiest, noise

SPIN = "while True: pass"
CORES = psutil.cpu_count() or 1
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs a text of Python; it is gone after the test."""
    with ExitStack() as running:

        def run(code: str) -> subprocess.Popen[str]:
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            running.callback(process.communicate)
            running.callback(process.kill)
            return process

        yield run


@pytest.fixture
def spinners(start: Start) -> list[int]:
    """As many busy processes as take half of the machine, each at work already."""
    pids = [start(SPIN).pid for _ in range((CORES + 1) // 2)]
    for pid in pids:
        wait_until_used(pid, 0.05)
    return pids


def used(pid: int) -> float:
    process = psutil.Process(pid)
    times = [
        each.cpu_times() for each in (process, *process.children(recursive=True))
    ]  # Windows' venvs have a launcher
    return sum(each.user + each.system for each in times)


def wait_until_used(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + 30
    while used(pid) < seconds:
        assert time.monotonic() < deadline, f"process {pid} got no CPU"
        time.sleep(0.02)


def nobody() -> Sequence[int]:
    return []


def me() -> Sequence[int]:
    return [os.getpid()]


def everybody() -> Sequence[int]:
    return psutil.pids()


def test_a_busy_process_is_another_unless_it_is_a_child_of_ours(spinners: list[int]) -> None:
    before, began = sum(map(used, spinners)), time.monotonic()
    alien, child = Cpu(nobody), Cpu(me)
    time.sleep(1)
    counted, not_counted = alien.others(), child.others()
    share = (sum(map(used, spinners)) - before) / ((time.monotonic() - began) * CORES)
    assert share > 0.05, "nothing was busy: this test shows nothing"
    assert counted >= 0.8 * share
    assert counted - not_counted >= 0.7 * share


def test_where_all_processes_are_ours_there_are_no_others(spinners: list[int]) -> None:
    for _ in range(5):
        cpu = Cpu(everybody)
        time.sleep(0.5)
        if (found := cpu.others()) < BUSY:
            return
    pytest.fail(f"others use {found:.0%}")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps account of ended children")
def test_a_child_that_began_and_ended_in_between_is_ours(start: Start) -> None:
    alien, ours, began = Cpu(nobody), Cpu(me), time.monotonic()
    spent = sum(os.times()[2:4])
    start("import time\nwhile time.process_time() < 0.5: pass").communicate(timeout=60)
    share = (sum(os.times()[2:4]) - spent) / ((time.monotonic() - began) * CORES)
    assert share > 0.05, "nothing was busy: this test shows nothing"
    assert alien.others() - ours.others() >= 0.7 * share


UNREAPED = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", "{SPIN}"]).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no reaping")
def test_what_a_child_used_before_is_not_taken_off_when_nobody_reaps_it(start: Start) -> None:
    parent = start(UNREAPED)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until_used(child.pid, 1.0)
    alien, ours = Cpu(nobody), Cpu(lambda: [parent.pid])
    child.kill()
    time.sleep(0.5)
    assert ours.others() <= alien.others() + 0.15


def test_a_moment_is_too_short_to_tell(spinners: list[int]) -> None:
    assert Cpu(nobody).others() == 0.0


def test_processes_that_have_ended_disturb_nobody(start: Start) -> None:
    gone = start("")
    gone.wait(30)
    cpu = Cpu(lambda: [gone.pid, 2**22 + 1])
    time.sleep(0.3)
    assert 0 <= cpu.others() <= 1


def seen(look: Callable[[], str], wanted: str) -> bool:
    """Whether one of a few looks finds the wanted words: other people's processes come and go meanwhile."""
    return any(re.search(wanted, look()) for _ in range(5))


def test_the_busiest_programs_are_named_and_ours_are_not(spinners: list[int]) -> None:
    name = re.escape(psutil.Process(spinners[0]).name())
    assert seen(lambda: busiest(0.5, nobody), rf"(^|, ){name} \d\.\d cores(, |$)")
    assert seen(lambda: busiest(0.3, everybody), "^$")


def test_a_busy_machine_is_described(spinners: list[int]) -> None:
    name = re.escape(psutil.Process(spinners[0]).name())
    assert seen(lambda: noise(0.5, nobody), rf"^other processes use \d+ % of the cores \(.*\b{name} \d\.\d cores.*\)$")


def test_a_quiet_machine_is_not_described(spinners: list[int]) -> None:
    assert seen(lambda: noise(0.5, everybody), "^$")


def test_waiting_ends_when_it_is_quiet_and_says_once_what_for() -> None:
    said, looks = list[str](), iter(["java 80 %", "java 70 %", "", "java 90 %"])
    assert await_quiet(lambda: next(looks), 60, said.append) == ""
    assert said == ["llmperf: waiting up to 60 s for a quiet machine: java 80 %"]
    assert next(looks) == "java 90 %"


def test_a_quiet_machine_is_not_waited_for() -> None:
    said = list[str]()
    assert await_quiet(lambda: "", 60, said.append) == ""
    assert said == []


def test_waiting_is_bounded_and_returns_the_last_disturbance() -> None:
    said, looks = list[str](), count()
    found = await_quiet(lambda: f"java {next(looks)} %", 0.2, said.append)
    assert found == f"java {next(looks) - 1} %" != "java 0 %"
    assert said == ["llmperf: waiting up to 0.2 s for a quiet machine: java 0 %"]


def test_without_patience_it_looks_once_and_says_nothing() -> None:
    said, looks = list[str](), iter(["java 80 %", ""])
    assert await_quiet(lambda: next(looks), 0, said.append) == "java 80 %"
    assert said == []
