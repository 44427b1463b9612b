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


def against_baseline(metric: str, spec: Spec, measured: Measured, baseline: Baseline) -> Row:
    """One gated metric judged; `not comparable` with the change as an indication where a trigger fired."""
    entry, candidate = METRICS[metric], measured.series(metric)
    sessions = [values for session in baseline.sessions if (values := session.series(metric))]
    if not candidate:
        return Row(metric=metric, verdict="invalid", reason="no run gave a value; this server may not report it")
    if not sessions:
        reason = "the baseline was recorded without this metric"
        return Row(metric=metric, verdict="no baseline", value=median(candidate), runs=len(candidate), reason=reason)
    margin = spec.margins.get(metric, entry.margin)
    try:
        found = judge(
            sessions,
            candidate,
            better=entry.better,
            scale=entry.scale,
            margin=margin,
            session_sd=spec.session_sd.get(metric, entry.session_sd),
        )
    except ValueError as error:
        return Row(metric=metric, verdict="invalid", value=median(candidate), margin=margin, reason=str(error))
    row = _row(entry, found, candidate, [value for values in sessions for value in values], margin)
    return _voided(row, measured, baseline)


def against_floor(metric: str, measured: Measured, floor: float) -> Row:
    """One metric judged against an absolute limit in its unit; it holds on any machine, so no trigger voids it."""
    entry, candidate = METRICS[metric], measured.series(metric)
    if not candidate:
        return Row(metric=metric, verdict="invalid", floor=True, margin=floor, reason="no run gave a value")
    found = judge_floor(candidate, better=entry.better, floor=floor)
    sign = -1 if entry.better == "higher" else 1
    return Row(
        metric=metric,
        verdict=found.verdict,
        value=median(candidate),
        low=floor + sign * (found.low if sign > 0 else found.high),
        high=floor + sign * (found.high if sign > 0 else found.low),
        margin=floor,
        floor=True,
        runs=found.n,
        reason=found.reason,
    )


def no_baseline(metric: str, measured: Measured, reason: str) -> Row:
    """A metric that was measured where nothing is recorded."""
    values = measured.series(metric)
    return Row(metric=metric, verdict="no baseline", value=median(values), runs=len(values), reason=reason)


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
        catches80=shown(found.catches80),
        runs=found.n,
        baseline_runs=found.m,
        baseline_sessions=found.sessions,
        reason=found.reason,
    )


def _voided(row: Row, measured: Measured, baseline: Baseline) -> Row:
    fired = triggers.fired(baseline.conditions, measured.conditions)
    if not fired:
        return row
    return replace(row, verdict="not comparable", reason="; ".join(str(trigger) for trigger in fired))


def disagreement(rows: Sequence[Row]) -> str | None:
    """A sentence where overlap and total throughput point in opposite directions: overlap is blind to the pace."""
    by_name = {row.metric: row for row in rows if row.change is not None and not row.floor}
    overlap, total = by_name.get("overlap_efficiency"), by_name.get("total_throughput")
    if overlap is None or total is None or not _beyond_zero(overlap) or not _beyond_zero(total):
        return None
    if (overlap.change or 0) * (total.change or 0) >= 0:
        return None
    return (
        "overlap_efficiency and total_throughput point in opposite directions: overlap only measures how evenly the "
        "agents end, total_throughput how much work is done; trust total_throughput"
    )


def _beyond_zero(row: Row) -> bool:
    return row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
