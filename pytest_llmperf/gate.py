"""The decision rule: baseline sessions and candidate runs in, a verdict with its bounds and its reason out.

A worsening is a positive shift on the gate's scale: the metric's unit for "diff", the natural logarithm for "ratio".
Standard library only; nothing here reads a clock or a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import get_args

from pytest_llmperf import advice
from pytest_llmperf.judgement import Judgement
from pytest_llmperf.model import Better, Scale, Verdict
from pytest_llmperf.stats import hodges_lehmann, session_half_width, walsh_averages, walsh_bounds

LEVELS: Mapping[int, float] = {1: 0.05, 2: 0.03, 3: 0.025, 4: 0.02}
"""One-sided level per planned look that keeps the whole plan near .05 (constant levels, Pocock 1977)."""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The options of `judge`, checked."""

    better: Better
    scale: Scale
    margin: float
    session_sd: float
    looks: int
    interleaved: bool
    where: str = "judge"

    def __post_init__(self) -> None:
        _check(self.where, "better", self.better, self.better in get_args(Better), "'higher' and 'lower'")
        _check(self.where, "scale", self.scale, self.scale in get_args(Scale), "'ratio' and 'diff'")
        ratio = self.scale == "ratio"
        top = 1 if ratio else math.inf
        unit = "fractions below 1 on scale 'ratio' (0.05 for 5 %)" if ratio else "finite numbers on scale 'diff'"
        _check(self.where, "margin", self.margin, 0 < self.margin < top, f"{unit}, above 0")
        _check(self.where, "session_sd", self.session_sd, 0 <= self.session_sd < top, f"{unit}, 0 or above")
        _check(self.where, "looks", self.looks, self.looks in LEVELS, "1, 2, 3 and 4")

    @property
    def alpha(self) -> float:
        return LEVELS[self.looks]

    @property
    def delta(self) -> float:
        """The margin on the gate's scale."""
        if self.scale == "diff":
            return self.margin
        return -math.log1p(-self.margin) if self.better == "higher" else math.log1p(self.margin)

    def transformed(self, name: str, values: Sequence[float]) -> list[float]:
        """The values on the gate's scale, larger is better."""
        ratio = self.scale == "ratio"
        legal = "finite numbers above 0 on scale 'ratio'" if ratio else "finite numbers"
        _check_values(self.where, name, values, above=0 if ratio else -math.inf, legal=legal)
        sign = 1 if self.better == "higher" else -1
        return [sign * (math.log(value) if ratio else value) for value in values]


def judge(  # noqa: PLR0913  # one keyword per term of the rule
    sessions: Sequence[Sequence[float]],
    candidate: Sequence[float],
    *,
    better: Better = "higher",
    scale: Scale = "ratio",
    margin: float,
    session_sd: float = 0.0,
    looks: int = 1,
    interleaved: bool = False,
) -> Judgement:
    """Judge the runs of one candidate session against a baseline's sessions, values in the metric's own unit.

    `margin` is the smallest worsening that matters and `session_sd` the standard deviation of a session's offset:
    fractions for "ratio", the metric's unit for "diff". `looks` is how many looks at growing data are planned;
    `interleaved` says that baseline and candidate took turns in one session, which cancels its offset.

    Regressed: worse for sure (low > 0) and estimated beyond the margin. Held: a worsening of the margin is excluded
    (high < margin); improved: held and better for sure (high < 0). Otherwise inconclusive. The shift is
    Hodges-Lehmann's with exact Mann-Whitney bounds, widened by the session offsets.

    Raises ValueError for empty or unusable values and options outside their range.
    """
    rule = _Rule(better=better, scale=scale, margin=margin, session_sd=session_sd, looks=looks, interleaved=interleaved)
    _check("judge", "sessions", sessions, len(sessions) > 0, "one session of baseline runs or more")
    base = [rule.transformed(f"sessions[{i}]", values) for i, values in enumerate(sessions)]
    found = _estimate(rule, base, rule.transformed("candidate", candidate))
    found = replace(found, verdict=_verdict(found.change, found.low, found.high, rule.delta))
    if found.verdict != "inconclusive":
        return found
    return replace(found, reason="; ".join(said for said in (advice.undecided(found), found.reason) if said))


def judge_gain(  # noqa: PLR0913  # one keyword per term of the rule
    control: Sequence[float],
    treatment: Sequence[float],
    *,
    better: Better = "higher",
    scale: Scale = "ratio",
    by: float,
    looks: int = 1,
) -> Judgement:
    """Judge the claim that the treatment is better by `by`, from runs that took turns with the control's.

    `by` is a fraction of the control for "ratio", in the metric's unit for "diff". Held if the lower bound of the gain
    reaches `by`, regressed if its upper bound does not, otherwise inconclusive; shifts stay in the worsening direction.

    Raises ValueError as `judge` does.
    """
    _check("judge_gain", "by", by, by >= 0 and math.isfinite(by), "numbers from 0 up")
    _check("judge_gain", "by", by, scale == "diff" or better == "higher" or by < 1, "fractions below 1")
    rule = _Rule(  # a claim has no margin: 0.5 is legal on either scale, and what follows from it is replaced below
        better=better, scale=scale, margin=0.5, session_sd=0.0, looks=looks, interleaved=True, where="judge_gain"
    )
    gain = by if scale == "diff" else math.log1p(by) if better == "higher" else -math.log1p(-by)
    found = _estimate(rule, [rule.transformed("control", control)], rule.transformed("treatment", treatment))
    shown = found.high <= -gain if gain else found.high < 0  # equal sides are not faster
    verdict: Verdict = "held" if shown else "regressed" if found.low > -gain else "inconclusive"
    return replace(found, verdict=verdict, margin=0.0, catches80=math.inf)


def _estimate(rule: _Rule, base: Sequence[Sequence[float]], runs: Sequence[float]) -> Judgement:
    """The shift of values on the gate's scale with its bounds and its power, no verdict yet."""
    pooled = [value for values in base for value in values]
    change, below, above = hodges_lehmann(pooled, runs, rule.alpha)
    offset = 0.0 if rule.interleaved else session_half_width(base, rule.session_sd, rule.alpha)
    low = change - math.hypot(change - below, offset)
    constant = len(set(pooled)) == len(set(runs)) == 1 and min(len(pooled), len(runs)) > 1
    return Judgement(
        verdict="inconclusive",
        change=change,
        low=low,
        high=change + math.hypot(above - change, offset),
        catches80=_catches80(change, low, rule.delta),
        half_within=(above - below) / 2,
        half_session=offset,
        m=len(pooled),
        n=len(runs),
        sessions=len(base),
        margin=rule.delta,
        better=rule.better,
        scale=rule.scale,
        alpha=rule.alpha,
        interleaved=rule.interleaved,
        reason="no run-to-run variation: mocked or cached server?" if constant else "",
    )


def judge_floor(values: Sequence[float], *, better: Better, floor: float) -> Judgement:
    """Judge runs against an absolute limit in the metric's unit: at least `floor` if higher is better, else at most.

    Held if the location's bound on the bad side reaches the floor, regressed if the one on the good side does not,
    otherwise inconclusive; bounds from Walsh averages, one-sided at .05, which takes 5 runs.

    Raises ValueError for empty or unusable values.
    """
    _check("judge_floor", "better", better, better in get_args(Better), "'higher' and 'lower'")
    _check("judge_floor", "floor", floor, math.isfinite(floor), "finite numbers")
    _check_values("judge_floor", "values", values, above=-math.inf, legal="finite numbers")
    sign = 1 if better == "higher" else -1
    beyond = [sign * (floor - value) for value in values]
    low, high = walsh_bounds(beyond) or (-math.inf, math.inf)
    change = median(walsh_averages(beyond))
    return Judgement(
        verdict="held" if high <= 0 else "regressed" if low > 0 else "inconclusive",
        change=change,
        low=low,
        high=high,
        catches80=_catches80(change, low, 0.0),
        half_within=(high - low) / 2,
        n=len(values),
        reason=_floor_reason(len(values), low, high),
    )


def _verdict(change: float, low: float, high: float, delta: float) -> Verdict:
    if low > 0 and change > delta:
        return "regressed"
    if high < delta:
        return "improved" if high < 0 else "held"
    return "inconclusive"


def _catches80(change: float, low: float, delta: float) -> float:
    # h decides at 1.64 standard errors and 80 % power takes another 0.84 of them: about h / 2
    half = change - low
    return max(delta, half) + half / 2


def _floor_reason(n: int, low: float, high: float) -> str:
    if math.isinf(high):
        return f"{n} run{'s' * (n != 1)} can't decide: 5 runs are needed for a bound at level .05"
    return "the floor lies between the bounds of these runs: more runs would help" if low <= 0 < high else ""


def _check_values(where: str, name: str, values: Sequence[float], *, above: float, legal: str) -> None:
    _check(where, name, values, len(values) > 0, "one run or more")
    for i, value in enumerate(values):
        _check(where, f"{name}[{i}]", value, math.isfinite(value) and value > above, legal)


def _check(where: str, name: str, value: object, sane: bool, legal: str) -> None:
    if not sane:
        raise ValueError(f"{where}(): {name} is {value!r}; legal are {legal}")
