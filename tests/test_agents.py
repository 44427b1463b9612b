"""The common release: together, in order, and honest about what failed."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Barrier, Event

import pytest

from pytest_llmperf.agents import run_together


@dataclass
class Worker:
    """A client that notes what happens to it in a diary shared with the others."""

    name: str
    diary: list[str]
    takes_s: float = 0.0
    meeting: Barrier = field(default_factory=lambda: Barrier(1))

    def prepare(self) -> None:
        self.diary.append(f"{self.name} prepared")

    def work(self, released: float) -> tuple[str, float, float]:
        began = time.perf_counter()
        self.diary.append(f"{self.name} at work")
        self.meeting.wait(timeout=10)
        time.sleep(self.takes_s)
        return self.name, released, began

    def close(self) -> None:
        self.diary.append(f"{self.name} closed")

    def abort(self) -> None:
        self.diary.append(f"{self.name} aborted")


class Unprepared(Worker):
    def prepare(self) -> None:
        raise ConnectionRefusedError(self.name)


class Failing(Worker):
    def work(self, released: float) -> tuple[str, float, float]:
        raise ZeroDivisionError(self.name, released)


@dataclass
class Waiting(Worker):
    """At work until it is told to stop."""

    told: Event = field(default_factory=Event)

    def work(self, released: float) -> tuple[str, float, float]:
        assert self.told.wait(timeout=30)
        return self.name, released, released


class Collecting(Worker):
    def work(self, released: float) -> tuple[str, float, float]:
        self.diary.append(f"gc {'on' if gc.isenabled() else 'off'}")
        return super().work(released)


@pytest.fixture(autouse=True)
def _gc_as_before() -> Iterator[None]:
    yield
    gc.enable()


def test_all_work_side_by_side_from_one_release() -> None:
    meeting = Barrier(3)  # passed only when all three are at work at once
    release, results, _ = run_together([Worker(name, [], meeting=meeting) for name in "abc"])
    assert [released for _, released, _ in results] == [release] * 3
    assert all(began >= release for _, _, began in results)


def test_results_come_in_the_clients_order() -> None:
    diary = list[str]()
    _, results, _ = run_together([Worker("slow", diary, takes_s=0.1), Worker("fast", diary)])
    assert [name for name, _, _ in results] == ["slow", "fast"]


def test_all_are_prepared_before_any_works() -> None:
    diary = list[str]()
    run_together([Worker("a", diary), Worker("b", diary)])
    assert diary[:2] == ["a prepared", "b prepared"]
    assert sorted(diary[2:]) == ["a at work", "b at work"]


def test_an_error_is_raised_while_others_are_still_at_work() -> None:
    told = Event()
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="failing"):
        run_together([Waiting("waiting", [], told=told), Failing("failing", [])])
    assert time.monotonic() - began < 10
    told.set()


class Endless(Waiting):
    """At work until it is aborted."""

    def abort(self) -> None:
        self.told.set()


def test_who_is_still_at_work_is_aborted_when_another_fails() -> None:
    told = Event()
    with pytest.raises(ZeroDivisionError):
        run_together([Endless("a", [], told=told), Failing("b", [])])
    assert told.is_set()


def test_clients_prepared_in_vain_are_closed() -> None:
    diary = list[str]()
    with pytest.raises(ConnectionRefusedError, match="b"):
        run_together([Worker("a", diary), Unprepared("b", diary), Worker("c", diary)])
    assert diary == ["a prepared", "b closed", "a closed"]


def test_the_garbage_collector_rests_during_the_run_and_is_back_after_it() -> None:
    diary = list[str]()
    run_together([Collecting("a", diary)])
    assert "gc off" in diary
    assert gc.isenabled()


def test_the_garbage_collector_is_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        run_together([Failing("a", [])])
    assert gc.isenabled()


def test_a_garbage_collector_that_was_off_stays_off() -> None:
    gc.disable()
    run_together([Worker("a", [])])
    assert not gc.isenabled()
