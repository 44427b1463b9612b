"""From what was measured to the rows of a verdict: each gated metric against the baseline or a comparison's control.

Pure: no pytest, no clock, no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from pytest_llmperf import plan, triggers
from pytest_llmperf.gate import judge, judge_gain
from pytest_llmperf.judgement import Judgement
from pytest_llmperf.measured import Measured
from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.model import Baseline, Session, Spec
from pytest_llmperf.outcome import UNREPORTED, Against, Row

_NEW = "new metric: the baseline was recorded without it and can never decide; record it anew with --llmperf-rebaseline"
MISSING_ALLOWED = 0.2
"""A metric that more of the runs have no value for is not judged."""


def against_baseline(metric: str, spec: Spec, measured: Measured, baseline: Baseline) -> Row:
    """One gated metric judged; `not comparable` with the change as an indication where a trigger fired.

    A second session confirms a regression or doesn't; where there is one, it is shown for what was in doubt.
    """
    first, *others = measured.sessions
    row = Row(metric=metric, verdict="invalid", runs=len(first.series(metric)))
    base = _series(metric, baseline)
    if reason := unusable(METRICS[metric], first, base):
        return replace(row, reason=reason)
    if not base:
        row = replace(row, verdict="inconclusive", value=median(first.series(metric)), never=True, reason=_NEW)
        return _voided(row, measured, baseline)
    found = judgement(metric, spec, first, baseline, len(plan.looks(spec.max_runs)))
    row = described(metric, found, first, base)
    if not others or not plan.doubtful([found]):
        return _voided(row, measured, baseline)
    if reason := unusable(METRICS[metric], others[0], base):
        broken = replace(row, verdict="invalid", reason=f"second session: {reason}")
        return _voided(broken if row.verdict == "regressed" else row, measured, baseline)
    second = judgement(metric, spec, others[0], baseline, looks=1)
    again = described(metric, second, others[0], base)
    row = described(metric, plan.confirmed(found, second), first, base)
    return _voided(replace(row, again=again, worse_twice=plan.worse_twice(found, second)), measured, baseline)


def against_control(metric: str, spec: Spec, sides: tuple[Session, Session]) -> tuple[Row, Judgement | None]:
    """One metric of a treatment judged against the control it took turns with; the judgement where there is one."""
    entry = METRICS[metric]
    margin = spec.margins.get(metric, entry.interleaved_margin or entry.margin)

    def rule(control: Sequence[float], treatment: Sequence[float]) -> Judgement:
        return judge(
            [control],
            treatment,
            better=entry.better,
            scale=entry.scale,
            margin=margin,
            looks=len(plan.looks(spec.max_runs)),
            interleaved=True,
        )

    return _contrast(metric, sides, rule)


def gain(metric: str, by: float, spec: Spec, sides: tuple[Session, Session]) -> tuple[Row, Judgement | None]:
    """The claim judged that a treatment is better by `by` than the control it took turns with."""
    entry = METRICS[metric]

    def rule(control: Sequence[float], treatment: Sequence[float]) -> Judgement:
        looks = len(plan.looks(spec.max_runs))
        return judge_gain(control, treatment, better=entry.better, scale=entry.scale, by=by, looks=looks)

    row, found = _contrast(metric, sides, rule)
    reason = "; ".join(said for said in (_CLAIM.get(row.verdict), row.reason) if said)
    return replace(row, margin=by, claim=True, catches80=None, sharper=None, reason=reason), found


_CLAIM = {
    "inconclusive": "not shown: the gain may be smaller; more runs would tell (max_runs=)",
    "regressed": "refuted: the gain is smaller for sure",
}


def _contrast(
    metric: str, sides: tuple[Session, Session], rule: Callable[[Sequence[float], Sequence[float]], Judgement]
) -> tuple[Row, Judgement | None]:
    control, treatment = sides
    for side, session in (("control", control), ("treatment", treatment)):
        if reason := unusable(METRICS[metric], session, ()):
            reason += "; list metrics= that both sides have" * (not session.series(metric))
            return Row(
                metric=metric,
                verdict="invalid",
                against="control",
                reason=f"{side}: {reason}",
            ), None
    base = control.series(metric)
    found = rule(base, treatment.series(metric))
    return described(metric, found, treatment, [base], against="control"), found


def enough(spec: Spec, session: Session, baseline: Baseline) -> bool:
    """Whether a session that has reached a look may end there."""
    return plan.enough(_judgements(spec, session, baseline, len(plan.looks(spec.max_runs))), spec.max_runs)


def doubtful(spec: Spec, session: Session, baseline: Baseline) -> bool:
    """Whether what a session showed takes a second one."""
    return plan.doubtful(_judgements(spec, session, baseline, len(plan.looks(spec.max_runs))))


def unusable(metric: Metric, session: Session, base: Sequence[Sequence[float]]) -> str | None:
    """Why a metric can't be judged in a session: no value, too few, or one that can't be."""
    values, kept = session.series(metric.name), sum(sample.kept for sample in session.samples)
    if not values:
        disappeared = "the metric disappeared: the baseline has it and " if base else ""
        return disappeared + UNREPORTED
    if kept - len(values) > MISSING_ALLOWED * kept:
        return f"{kept - len(values)} of {kept} runs gave no value, more than {MISSING_ALLOWED:.0%} of them"
    pooled = [value for one in base for value in one]
    for where, series in (("a run of the baseline", pooled), ("a run", values)):
        if odd := [value for value in series if not math.isfinite(value)]:
            return f"{where} has {odd[0]:g} {metric.unit}, which is no measured value"
        if metric.scale == "ratio" and series and (least := min(series)) <= 0:
            return (
                f"{where} has {least:g} {metric.unit}, and only values above 0 can change by a share; "
                "take it out of metrics=, or hold it by floors="
            )
    return None


def described(
    metric: str, found: Judgement, session: Session, base: Sequence[Sequence[float]], against: Against = "baseline"
) -> Row:
    """A judgement as a row, in the units people read."""
    values, kept = session.series(metric), sum(sample.kept for sample in session.samples)
    missing = f"{kept - len(values)} of {kept} runs gave no value" if len(values) < kept else ""
    return Row(
        metric=metric,
        verdict=found.verdict,
        value=median(values),
        baseline=median(value for one in base for value in one),
        change=found.shown(found.change),
        low=found.shown(found.low),
        high=found.shown(found.high),
        margin=found.shown(found.margin),
        against=against,
        runs=found.n,
        baseline_runs=found.m,
        catches80=found.shown(found.catches80) if math.isfinite(found.catches80) else None,
        sharper=found.sharper,
        never=found.never and against == "baseline",
        reason="; ".join(said for said in (found.reason, missing) if said),
    )


def disagreement(rows: Sequence[Row]) -> str | None:
    """A sentence where overlap and total throughput point in opposite directions: overlap is blind to the pace."""
    sure = {row.metric: _direction(row) for row in rows if row.against != "floor"}
    if sure.get("overlap_efficiency", 0) * sure.get("total_throughput", 0) >= 0:
        return None
    return (
        "overlap_efficiency and total_throughput point in opposite directions: overlap only measures how evenly the "
        "agents end, total_throughput how much work is done; trust total_throughput"
    )


def judgement(metric: str, spec: Spec, session: Session, baseline: Baseline, looks: int) -> Judgement:
    """One metric of a session by the decision rule, with the mark's margin and session deviation."""
    entry = METRICS[metric]
    return judge(
        _series(metric, baseline),
        session.series(metric),
        better=entry.better,
        scale=entry.scale,
        margin=spec.margins.get(metric, entry.margin),
        session_sd=spec.session_sd.get(metric, entry.session_sd),
        looks=looks,
    )


def _series(metric: str, baseline: Baseline) -> list[list[float]]:
    return [values for session in baseline.sessions if (values := session.series(metric))]


def _judgements(spec: Spec, session: Session, baseline: Baseline, looks: int) -> list[Judgement]:
    """Those of the gated metrics that can be judged."""
    based = {metric: _series(metric, baseline) for metric in spec.gated}
    return [
        judgement(metric, spec, session, baseline, looks)
        for metric, base in based.items()
        if base and not unusable(METRICS[metric], session, base)
    ]


def _voided(row: Row, measured: Measured, baseline: Baseline) -> Row:
    fired = triggers.fired(baseline.conditions, measured.conditions)
    if not fired:
        return row
    reason = "\n".join(str(trigger) for trigger in fired)
    return replace(row, verdict="not comparable", never=False, again=None, worse_twice=False, reason=reason)


def _direction(row: Row) -> int:
    """1 for worse for sure, -1 for better for sure, else 0."""
    if row.low is None or row.high is None:
        return 0
    return (row.low > 0) - (row.high < 0)
