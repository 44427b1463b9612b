"""About how long a test takes, from what its baseline recorded, and durations in words. Standard library only."""

from __future__ import annotations

from statistics import median

from pytest_llmperf import plan
from pytest_llmperf.model import Baseline, Spec

START_S = 1.0
"""About what a server takes from its start to its first answer, in seconds; a loaded model is not part of it."""


def estimate(spec: Spec, baseline: Baseline, *, runs: int | None = None) -> float:
    """About the seconds of one session up to its first look, or with so many runs; an undecided test takes longer.

    Starts and loads one after the other, then the warm-ups, about a first token each, and (1 + runs) W for the
    discarded run and the runs, W being the makespan. A round of solo runs takes E N W / 100 by the definition of
    parallel efficiency E; N W, its most, where E wasn't recorded. Medians over all of the baseline's kept runs.
    """
    agents, makespan = len(spec.agents), _median(baseline, "makespan", 0.0)
    loads = agents if spec.topology == "dedicated" else len({agent.model for agent in spec.agents})
    setting_up = spec.instances * START_S + loads * median(session.load_s for session in baseline.sessions)
    warming_up = spec.warmup_requests * agents * _median(baseline, "ttft", 0.0) / 1e3
    solo = spec.solo_runs * agents * _median(baseline, "parallel_efficiency", 100.0) / 100
    return setting_up + warming_up + makespan * (1 + solo + (runs or plan.looks(spec.max_runs)[0]))


def spoken(seconds: float) -> str:
    """`24 s`, `3 min 20 s`, `1 h 5 min`: the two largest units; `0 s` below half a second."""
    return " ".join(f"{n} {unit}" for n, unit in _units(seconds)[:2]) or "0 s"


def typed(seconds: float) -> str:
    """A duration as --llmperf-budget takes it: `15m`, `1h30m`."""
    return "".join(f"{n}{unit[0]}" for n, unit in _units(seconds))


def _units(seconds: float) -> list[tuple[int, str]]:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return [(n, unit) for n, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if n]


def _median(baseline: Baseline, metric: str, default: float) -> float:
    return median([value for session in baseline.sessions for value in session.series(metric)] or [default])
