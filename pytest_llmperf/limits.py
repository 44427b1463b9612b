"""Absolute limits as rows of a verdict: floors, the levels of policies, the share of contended runs.

Pure: no pytest, no clock, no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from pytest_llmperf import policies, triggers
from pytest_llmperf.gate import judge_floor
from pytest_llmperf.measured import Measured
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import Baseline, Contention, Session, Spec, Verdict
from pytest_llmperf.outcome import UNREPORTED, Row
from pytest_llmperf.policies import Level
from pytest_llmperf.stats import clean_runs, clopper_pearson


def against_floor(metric: str, measured: Measured, floor: float) -> Row:
    """One metric judged against an absolute limit, bounds and limit in its unit; no trigger voids it."""
    entry, values = METRICS[metric], measured.series(metric)
    row = Row(metric=metric, verdict="invalid", against="floor", margin=floor, runs=len(values))
    if not values:
        return replace(row, reason=UNREPORTED)
    if odd := [value for value in values if not math.isfinite(value)]:
        return replace(row, reason=f"a run has {odd[0]:g} {entry.unit}, which is no measured value")
    found = judge_floor(values, better=entry.better, floor=floor)
    sign = -1 if entry.better == "higher" else 1
    low, high = sorted((floor + sign * found.low, floor + sign * found.high))
    return replace(
        row,
        verdict=found.verdict,
        value=median(values),
        low=low,
        high=high,
        catches80=found.catches80 if math.isfinite(found.catches80) else None,
        sharper=found.sharper,
        reason=found.reason,
    )


def decided(spec: Spec, session: Session) -> bool:
    """Whether a session that has reached a look tells of every floor and level which side of it the location is on.

    Likewise of contention, where the mark allows for as many runs as a claim takes.
    """
    levels = [level for name in spec.policies for level in policies.levels(name, spec)]
    floors = [*spec.floors.items(), *((level.metric, level.critical) for level in levels)]
    return all(_told(session.series(metric), metric, floor) for metric, floor in floors) and _share_told(spec, session)


def _share_told(spec: Spec, session: Session) -> bool:
    allowed, flags = spec.contention, session.series("contention_rate")
    if not (allowed and flags) or allowed.limit >= 100 or spec.max_runs < clean_runs(allowed.limit / 100):
        return True
    return judge_rate(sum(map(bool, flags)), len(flags), allowed)[0] != "inconclusive"


def _told(values: Sequence[float], metric: str, floor: float) -> bool:
    if not values or not all(map(math.isfinite, values)):
        return True  # more runs would not help
    return judge_floor(values, better=METRICS[metric].better, floor=floor).verdict != "inconclusive"


def against_level(policy: str, level: Level, measured: Measured) -> Row:
    """One level of a policy: its critical value judged as a floor; what lies beyond the warning for sure is said."""
    row = replace(against_floor(level.metric, measured, level.critical), policy=f"{policy}, critical")
    if row.verdict == "regressed" or level.warning is None:
        return row
    if against_floor(level.metric, measured, level.warning).verdict != "regressed":
        return row
    limit = f"{level.warning:g} {METRICS[level.metric].unit}".strip()
    warning = f"warning: beyond {limit} ({policy}, warning) for sure"
    return replace(row, reason="; ".join(said for said in (row.reason, warning) if said))


def judge_rate(events: int, runs: int, contention: Contention) -> tuple[Verdict, float, float]:
    """The verdict on a rate of events in 1 or more runs, with its exact bounds in %, one-sided at .05 each.

    Regressed if the lower bound is over the target, held if the upper one is under the limit, otherwise inconclusive.
    """
    low, high = (100 * bound for bound in clopper_pearson(events, runs))
    verdict: Verdict = "regressed" if low > contention.target else "held" if high < contention.limit else "inconclusive"
    return verdict, low, high


def against_contention(contention: Contention, measured: Measured, baseline: Baseline | None = None) -> Row:
    """The share of contended runs in %, judged on its exact bounds; `margin` is the limit.

    Invalid where no run could be called contended or not: without the ttft of a baseline, or for a single agent; not
    comparable where the baseline is not.
    """
    flags = measured.series("contention_rate")
    row = Row(metric="contention_rate", verdict="invalid", against="floor", margin=contention.limit, runs=len(flags))
    if not flags and baseline and triggers.fired(baseline.conditions, measured.conditions):
        return replace(row, verdict="not comparable", reason="a contended run is told by the baseline's ttft")
    if not flags:
        return replace(row, reason=_untold(contention))
    events = sum(map(bool, flags))
    verdict, low, high = judge_rate(events, len(flags), contention)
    row = replace(row, verdict=verdict, value=100 * events / len(flags), low=low, high=high)
    counted = f"{events} of {len(flags)} runs contended"
    if verdict == "regressed":
        over = f"at least {low:.3g} % for sure, over the target of {contention.target:g} %"
        return replace(row, reason=f"{counted}: {over}")
    if verdict == "inconclusive":
        compatible = f"{f'{_percent(low)} to' if events else 'up to'} {_percent(high)}"
        return replace(row, reason=f"{counted}: compatible with {compatible}{_claim(events, contention.limit)}")
    return row


def _untold(contention: Contention) -> str:
    if contention.contended == "speedup < 1.5":
        return f"{contention.contended!r} needs several agents to tell whether a run was contended"
    return (
        f"{contention.contended!r} needs a baseline of ttft to tell whether a run was contended: list a metric in "
        "metrics= and record one with --llmperf-rebaseline, or take contended='speedup < 1.5'"
    )


def _claim(events: int, limit: float) -> str:
    """How many runs it takes to show a rate below the limit."""
    if limit >= 100:
        return ""
    runs = clean_runs(limit / 100, events)
    needed = f"{runs} runs with no more than {events} contended" if events else f"{runs} clean runs"
    return f"; {needed} are needed to claim < {limit:g} % (max_runs=)"


def _percent(value: float) -> str:
    return f"{value:.1f} %" if value < 10 else f"{value:.0f} %"
