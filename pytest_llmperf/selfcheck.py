"""A gate against itself: how often would it cry wolf here, and would it notice a slowdown of two margins?

Pure: no pytest, no clock, no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import median

from pytest_llmperf import plan, verdicts
from pytest_llmperf.measured import Measured
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import Baseline, Session, Spec
from pytest_llmperf.outcome import Check, Row
from pytest_llmperf.stats import session_deviation

_BY_FIRST, _BY_REST = frozenset({"ttft", "ttft_p95"}), frozenset({"total_throughput", "makespan", "itl_p50"})
NO_SLOWER = (1.0, 1.0)
"""The factors where no gated metric can be slowed down."""

_MOVED = _BY_FIRST | _BY_REST
"""What a client sees of a slower server; what the server says of itself, a relay can't change."""

Trial = Sequence[Row]


def factors(spec: Spec) -> tuple[float, float]:
    """How many times as long the first token and the whole answer must take for two margins of the gated metrics."""
    first = max((_twice(metric, spec) for metric in spec.gated if metric in _BY_FIRST), default=1.0)
    rest = max((_twice(metric, spec) for metric in spec.gated if metric in _BY_REST), default=1.0)
    return (first if first > 1 else rest), rest


def _twice(metric: str, spec: Spec) -> float:
    """Two margins on the gate's scale as a factor of time."""
    margin = spec.margins.get(metric, METRICS[metric].margin)
    return (1 - margin) ** -2 if METRICS[metric].better == "higher" else (1 + margin) ** 2


def check(spec: Spec, unchanged: Sequence[Session], slowed: Sequence[Session]) -> list[Check]:
    """Try each session as a candidate, the next as its confirmation, against all others; the slowed ones likewise.

    The whole rule is applied as in a run of the gate: looks, stopping, confirmation. The last check is that of the
    whole test.
    """
    calm = [_trial(spec, unchanged, unchanged, i) for i in range(len(unchanged))]
    late = [_trial(spec, unchanged, slowed, i) for i in range(len(slowed))]
    of_metrics = [
        replace(
            _spread(metric, spec, unchanged),
            alarms=_red(calm, metric),
            noticed=_red(late, metric) if metric in _MOVED else None,
            slowed=_moved(metric, unchanged, slowed) if metric in _MOVED else None,
        )
        for metric in spec.gated
    ]
    whole = Check(metric="", trials=len(calm), alarms=_red(calm), noticed=_red(late) if late else None)
    return [*of_metrics, whole]


def _trial(spec: Spec, unchanged: Sequence[Session], candidates: Sequence[Session], i: int) -> Trial:
    j = (i + 1) % len(candidates)
    others = [_first(session, plan.SESSION_RUNS) for n, session in enumerate(unchanged) if n not in (i, j)]
    base = Baseline(test="", content="", emulated=False, conditions={}, sessions=tuple(others))
    for runs in plan.looks(spec.max_runs):
        candidate = _first(candidates[i], runs)
        if verdicts.enough(spec, candidate, base):
            break
    sessions = [candidate]
    if verdicts.doubtful(spec, candidate, base):
        sessions.append(_first(candidates[j], min(plan.SESSION_RUNS, spec.max_runs)))
    measured = Measured(test="", machine="", emulated=False, conditions={}, sessions=tuple(sessions))
    return [verdicts.against_baseline(metric, spec, measured, base) for metric in spec.gated]


def _first(session: Session, runs: int) -> Session:
    """The session as it was when it had so many kept runs."""
    counts = accumulate(sample.kept for sample in session.samples)
    return replace(session, samples=tuple(s for s, n in zip(session.samples, counts, strict=True) if n <= runs))


def _red(trials: Sequence[Trial], metric: str = "") -> int:
    return sum(any(row.verdict == "regressed" and metric in ("", row.metric) for row in trial) for trial in trials)


def _spread(metric: str, spec: Spec, sessions: Sequence[Session]) -> Check:
    """How much sessions differ, on the gate's scale, beside what is declared."""
    entry = METRICS[metric]
    declared = spec.session_sd.get(metric, entry.session_sd)
    found = Check(metric=metric, trials=len(sessions), alarms=0, declared=declared)
    series = [session.series(metric) for session in sessions]
    if not all(series) or (entry.scale == "ratio" and min(map(min, series)) <= 0):
        return found
    scaled = [[math.log(value) if entry.scale == "ratio" else value for value in values] for values in series]
    return replace(found, session_sd=session_deviation(scaled))


def _moved(metric: str, unchanged: Sequence[Session], slowed: Sequence[Session]) -> float | None:
    """How much worse the slowed runs were, a fraction: the median over the sessions."""
    pairs = [(calm.series(metric), late.series(metric)) for calm, late in zip(unchanged, slowed, strict=True)]
    changes = [median(late) / median(calm) - 1 for calm, late in pairs if calm and late]
    sign = -1 if METRICS[metric].better == "higher" else 1
    return sign * median(changes) if changes else None
