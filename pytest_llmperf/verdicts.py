"""From what was measured to the rows of a verdict: each gated metric against the baseline, each floor on its bound.

Pure: no pytest, no clock, no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from pytest_llmperf import triggers
from pytest_llmperf.gate import Judgement, back_transform, judge, judge_floor
from pytest_llmperf.measured import Measured
from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.model import Baseline, Row, Spec

_UNREPORTED = "no run gave a value; it may need several agents, or this server may not report it"


def against_baseline(metric: str, spec: Spec, measured: Measured, baseline: Baseline) -> Row:
    """One gated metric judged; `not comparable` with the change as an indication where a trigger fired."""
    entry, candidate = METRICS[metric], measured.series(metric)
    sessions = [values for session in baseline.sessions if (values := session.series(metric))]
    if not candidate:
        return Row(metric=metric, verdict="invalid", reason=_UNREPORTED)
    row = Row(metric=metric, verdict="no baseline", value=median(candidate), runs=len(candidate))
    if not sessions:
        return replace(row, reason="the baseline was recorded without this metric")
    base = [value for values in sessions for value in values]
    if reason := _without_ratio(entry, base, candidate):
        return replace(row, verdict="invalid", reason=reason)
    margin = spec.margins.get(metric, entry.margin)
    found = judge(
        sessions,
        candidate,
        better=entry.better,
        scale=entry.scale,
        margin=margin,
        session_sd=spec.session_sd.get(metric, entry.session_sd),
    )
    return _voided(_row(entry, found, candidate, base, margin), measured, baseline)


def against_floor(metric: str, measured: Measured, floor: float) -> Row:
    """One metric judged against an absolute limit, bounds and margin in its unit; no trigger voids it."""
    entry, candidate = METRICS[metric], measured.series(metric)
    if not candidate:
        return Row(metric=metric, verdict="invalid", floor=True, margin=floor, reason=_UNREPORTED)
    found = judge_floor(candidate, better=entry.better, floor=floor)
    sign = -1 if entry.better == "higher" else 1
    low, high = sorted((floor + sign * found.low, floor + sign * found.high))
    return Row(
        metric=metric,
        verdict=found.verdict,
        value=median(candidate),
        low=low,
        high=high,
        margin=floor,
        floor=True,
        runs=found.n,
        reason=found.reason,
    )


def _without_ratio(metric: Metric, base: Sequence[float], candidate: Sequence[float]) -> str | None:
    """Why no change in % can be told: a value that is not above 0."""
    if metric.scale != "ratio":
        return None
    for where, values in (("baseline", base), ("measurement", candidate)):
        if (least := min(values)) <= 0:
            return (
                f"a run of the {where} has {least:g} {metric.unit}, and only values above 0 can change by a share; "
                "take it out of metrics=, or hold it by floors="
            )
    return None


def _row(metric: Metric, found: Judgement, candidate: Sequence[float], base: Sequence[float], margin: float) -> Row:
    def shown(shift: float) -> float:
        return back_transform(shift, better=metric.better, scale=metric.scale)

    return Row(
        metric=metric.name,
        verdict=found.verdict,
        value=median(candidate),
        baseline=median(base),
        change=shown(found.change),
        low=shown(found.low),
        high=shown(found.high),
        margin=margin,
        runs=found.n,
        baseline_runs=found.m,
        reason=found.reason,
    )


def _voided(row: Row, measured: Measured, baseline: Baseline) -> Row:
    fired = triggers.fired(baseline.conditions, measured.conditions)
    if not fired:
        return row
    return replace(row, verdict="not comparable", reason="\n".join(str(trigger) for trigger in fired))


def disagreement(rows: Sequence[Row]) -> str | None:
    """A sentence where overlap and total throughput point in opposite directions: overlap is blind to the pace."""
    sure = {row.metric: _direction(row) for row in rows if not row.floor}
    if sure.get("overlap_efficiency", 0) * sure.get("total_throughput", 0) >= 0:
        return None
    return (
        "overlap_efficiency and total_throughput point in opposite directions: overlap only measures how evenly the "
        "agents end, total_throughput how much work is done; trust total_throughput"
    )


def _direction(row: Row) -> int:
    """1 for worse for sure, -1 for better for sure, else 0."""
    if row.low is None or row.high is None:
        return 0
    return (row.low > 0) - (row.high < 0)
