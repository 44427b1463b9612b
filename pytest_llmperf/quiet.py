"""Is the machine quiet? The processor's time that goes to processes other than ours, and waiting until it does not."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter

import psutil

Ours = Callable[[], Iterable[int]]
"""Gives the ids of the processes that are ours now, each with all its descendants: pytest itself, the servers."""

BUSY = 0.25
"""Share of all cores from which on other processes disturb a measurement."""

WINDOW_S = 0.2
"""The kernel counts in ticks of 10 ms: over a shorter time two or three of them would pass for a busy machine."""


@dataclass(frozen=True)
class _Look:
    """The clock, seconds that all cores have idled, and of each of our processes its own and its reaped children's."""

    at: float
    idle: float
    ours: Mapping[psutil.Process, tuple[float, float]]


class Cpu:
    """Other processes' use of the processor from now on; make a new one for each span of time."""

    def __init__(self, ours: Ours) -> None:
        self._ours, self._then = ours, _look(ours)

    def others(self) -> float:
        """Share (0..1) of all cores that was neither idle nor ours; 0 for less than `WINDOW_S`.

        Time that the hypervisor gave to another guest counts, waiting for a disk does not. A child of ours that ended
        in between is ours on Linux; macOS and Windows keep no account of it, there it counts among the others.
        """
        then, now = self._then, _look(self._ours)
        room = (now.at - then.at) * (psutil.cpu_count() or 1)
        if now.at - then.at < WINDOW_S:
            return 0.0
        busy = room - (now.idle - then.idle)
        return min(1.0, max(0.0, (busy - _used(then.ours, now.ours)) / room))


def _look(ours: Ours) -> _Look:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    spent = dict[psutil.Process, tuple[float, float]]()
    at = time.monotonic()
    for process in _family(ours()):
        with suppress(psutil.Error):
            cpu = process.cpu_times()
            spent[process] = (cpu.user + cpu.system, cpu.children_user + cpu.children_system)
    return _Look(at, idle, spent)


def _used(
    then: Mapping[psutil.Process, tuple[float, float]], now: Mapping[psutil.Process, tuple[float, float]]
) -> float:
    """Seconds of CPU between two looks at our processes.

    Whoever reaps a child takes over all the child ever used: what the child had used before is taken off again. Of a
    child that nobody reaped nothing was taken over, and nothing must be taken off.
    """
    own = sum(spent - then.get(process, (0, 0))[0] for process, (spent, _) in now.items())
    reaped = sum(taken - then.get(process, (0, 0))[1] for process, (_, taken) in now.items())
    return own + max(0.0, reaped - sum(sum(then[process]) for process in then.keys() - now.keys()))


def _family(pids: Iterable[int]) -> set[psutil.Process]:
    """The living among these processes, and all their descendants."""
    family = set[psutil.Process]()
    for pid in pids:
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            if root not in family:
                family |= {root, *root.children(recursive=True)}
    return family


def busiest(seconds: float, ours: Ours) -> str:
    """Watch for some seconds: the three busiest other programs in cores, e.g. `cc1plus 1.2 cores, java 0.8 cores`."""
    before, began = _spent(), time.monotonic()
    time.sleep(seconds)
    after, wall = _spent(), time.monotonic() - began
    family, used = _family(ours()), defaultdict[str, float](float)
    for process, (name, spent) in after.items():
        if process not in family:
            used[name] += (spent - before.get(process, (name, 0.0))[1]) / wall
    first = sorted(used.items(), key=itemgetter(1), reverse=True)[:3]
    return ", ".join(f"{name} {share:.1f} cores" for name, share in first if share >= 0.05)


def _spent() -> dict[psutil.Process, tuple[str, float]]:
    """Name and seconds of CPU of every process; Windows counts idling as process 0."""
    return {
        process: (process.info["name"], process.info["cpu_times"].user + process.info["cpu_times"].system)
        for process in psutil.process_iter(["name", "cpu_times"])
        if process.pid and process.info["cpu_times"]
    }


def noise(seconds: float, ours: Ours) -> str:
    """Watch for some seconds: empty, or how much of the machine other processes use and which these are."""
    cpu = Cpu(ours)
    names = busiest(seconds, ours)
    share = cpu.others()
    found = f"other processes use {100 * share:.0f} % of the cores"
    return "" if share <= BUSY else f"{found} ({names})" if names else found


def await_quiet(disturbance: Callable[[], str], limit_s: float, say: Callable[[str], None]) -> str:
    """Ask `disturbance`, which watches for a second or so, until it finds nothing or `limit_s` seconds have passed.

    Says once what is waited for. Returns what disturbs still, "" when it is quiet; with a limit of 0 it looks once.
    """
    give_up = time.monotonic() + limit_s
    found = disturbance()
    if found and limit_s:
        say(f"llmperf: waiting up to {limit_s:g} s for a quiet machine: {found}")
    while found and time.monotonic() < give_up:
        found = disturbance()
    return found
