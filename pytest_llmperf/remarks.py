"""What is worth knowing and never changes a verdict: replaced runs, cold starts, drift, baselines that see too little.

Pure: no pytest, no clock, no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import median

from pytest_llmperf import advice, plan, verdicts
from pytest_llmperf.judgement import Judgement
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import Baseline, Session, Spec
from pytest_llmperf.stats import cold_start, kendall_p

SURE = 0.01
"""Level of the test for drift: 80 metrics that don't drift give 0.7 false lines (80/120 at 5 runs); at .05 over 3."""


def on_runs(spec: Spec, sessions: Mapping[str, Session]) -> list[str]:
    """Replaced runs, and the metrics whose first run is off or that get worse from run to run, by session's name.

    What differs by no more than the metric's margin is not worth a line, however sure it is.
    """
    return [line for where, session in sessions.items() for line in _on_session(spec, where, session)]


def _on_session(spec: Spec, where: str, session: Session) -> Iterator[str]:
    yield from (f"{where}: a run was replaced: {sample.cause}" for sample in session.samples if sample.cause)
    series = {metric: values for metric in spec.gated if len(values := _better_up(metric, session)) > 1}
    worse = {metric: _beyond(metric, spec, values[0], median(values[1:])) for metric, values in series.items()}
    sunk = {metric: _beyond(metric, spec, values[-1], values[0]) for metric, values in series.items()}
    if cold := [metric for metric, values in series.items() if worse[metric] and cold_start(values)]:
        yield (
            f"{where}: the first run is out of line in {', '.join(cold)}: a cold start? "
            "It is judged like the others; raise warmup_requests"
        )
    if sinking := [metric for metric, values in series.items() if sunk[metric] and kendall_p(values) <= SURE]:
        p = max(kendall_p(series[metric]) for metric in sinking)
        yield (
            f"{where}: {', '.join(sinking)} got worse from run to run (Kendall, p = {p:.2g}): "
            "look at clocks and temperature; the verdict stands"
        )


def _better_up(metric: str, session: Session) -> list[float]:
    sign = 1 if METRICS[metric].better == "higher" else -1
    return [sign * value for value in session.series(metric)]


def _beyond(metric: str, spec: Spec, value: float, usual: float) -> bool:
    """Whether a value is worse than the usual one by more than the margin; larger is better."""
    margin = spec.margins.get(metric, METRICS[metric].margin)
    return usual - value > (margin * abs(usual) if METRICS[metric].scale == "ratio" else margin)


def on_baseline(spec: Spec, recorded: Baseline) -> list[str]:
    """A warning per gated metric whose margin this baseline can't see: catches80 over two margins, or never held.

    Each session is judged as a candidate against all of them; the median power counts.
    """
    return [line for metric in spec.gated for line in _on_metric(metric, spec, recorded)]


def _on_metric(metric: str, spec: Spec, recorded: Baseline) -> Iterator[str]:
    for number, session in enumerate(recorded.sessions, 1):
        if reason := verdicts.unusable(METRICS[metric], session, ()):
            yield f"warning: {metric}: session {number} can't be judged: {reason}"
            return
    looks = len(plan.looks(spec.max_runs))
    found = [verdicts.judgement(metric, spec, session, recorded, looks) for session in recorded.sessions]
    power = median(one.catches80 for one in found)
    typical = min(found, key=lambda one: abs(one.catches80 - power))
    never = typical.margin <= typical.half_session
    if power <= 2 * typical.margin and not never:
        return
    if math.isinf(power):
        yield f"warning: {metric}: this baseline is too small to decide anything; record more (--llmperf-sessions=N)"
        return
    works = _rounded_up(advice.workable_margin(typical))
    legal = METRICS[metric].scale == "diff" or works < 1
    remedy = f"margins={{{metric!r}: {works:g}}} would work" if legal else "no margin below 1 would work"
    seen, margin = _amount(metric, typical, power), _amount(metric, typical, typical.margin)
    why = f"; more {typical.sharper} may help"
    if never:
        why = f" and {advice.undecided(replace(typical, verdict='inconclusive'))}"
    caught = f"this baseline would only catch a worsening of about {seen} at a margin of {margin}"
    yield f"warning: {metric}: {caught}{why}; {remedy}"


def _amount(metric: str, found: Judgement, shift: float) -> str:
    unit = "points" if METRICS[metric].unit == "%" else METRICS[metric].unit
    return advice.amount(found, shift) + f" {unit}" * (found.scale == "diff")


def _rounded_up(value: float) -> float:
    """To two significant digits."""
    digits = 1 - math.floor(math.log10(value))
    return round(math.ceil(round(value * 10.0**digits, 6)) / 10.0**digits, max(digits, 0))
