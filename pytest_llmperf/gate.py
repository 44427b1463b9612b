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

from pytest_llmperf.model import Better, Scale, Verdict
from pytest_llmperf.stats import hodges_lehmann, runs_needed, session_half_width, walsh_averages, walsh_bounds

LEVELS: Mapping[int, float] = {1: 0.05, 2: 0.03, 3: 0.025, 4: 0.02}
"""One-sided level per planned look that keeps the whole plan near .05 (constant levels, Pocock 1977)."""

MOST_RUNS = 100
"""Advice to take more runs or sessions than this is no advice."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One metric judged. Everything is in the worsening direction on the gate's scale: `back_transform` for display.

    `change` is the estimated worsening, `low` and `high` its one-sided bounds (-inf and inf for too few runs) and
    `catches80` about the smallest true worsening that would be called regressed 4 times in 5. `half_within` is the
    half-width due to run-to-run noise, `half_session` that due to session offsets. `m` and `n` count baseline and
    candidate runs. A floor has neither baseline nor sessions: its change is how far the location lies beyond it.
    """

    verdict: Verdict
    change: float
    low: float
    high: float
    catches80: float
    half_within: float
    half_session: float = 0.0
    m: int = 0
    n: int
    sessions: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The options of `judge`, checked."""

    better: Better
    scale: Scale
    margin: float
    session_sd: float
    looks: int
    interleaved: bool

    def __post_init__(self) -> None:
        _check("judge", "better", self.better, self.better in get_args(Better), "'higher' and 'lower'")
        _check("judge", "scale", self.scale, self.scale in get_args(Scale), "'ratio' and 'diff'")
        ratio = self.scale == "ratio"
        top = 1 if ratio else math.inf
        unit = "fractions below 1 on scale 'ratio' (0.05 for 5 %)" if ratio else "finite numbers on scale 'diff'"
        _check("judge", "margin", self.margin, 0 < self.margin < top, f"{unit}, above 0")
        _check("judge", "session_sd", self.session_sd, 0 <= self.session_sd < top, f"{unit}, 0 or above")
        _check("judge", "looks", self.looks, self.looks in LEVELS, "1, 2, 3 and 4")

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
        _check_values("judge", name, values, above=0 if ratio else -math.inf, legal=legal)
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
    runs = rule.transformed("candidate", candidate)
    pooled = [value for values in base for value in values]
    change, below, above = hodges_lehmann(pooled, runs, rule.alpha)
    offset = 0.0 if interleaved else session_half_width(base, session_sd, rule.alpha)
    low, high = change - math.hypot(change - below, offset), change + math.hypot(above - change, offset)
    judgement = Judgement(
        verdict=_verdict(change, low, high, rule.delta),
        change=change,
        low=low,
        high=high,
        catches80=_catches80(change, low, rule.delta),
        half_within=(above - below) / 2,
        half_session=offset,
        m=len(pooled),
        n=len(runs),
        sessions=len(base),
    )
    if len(set(pooled)) == len(set(runs)) == 1 and min(len(pooled), len(runs)) > 1:
        return replace(judgement, reason="no run-to-run variation: mocked or cached server?")
    return replace(judgement, reason=_advice(judgement, rule) if judgement.verdict == "inconclusive" else "")


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


def back_transform(shift: float, *, better: Better, scale: Scale) -> float:
    """A shift on the gate's scale as shown to people, still positive for worse.

    "ratio": a fraction of the baseline, 1 - exp(-shift) if higher is better, else exp(shift) - 1. "diff": unchanged.
    """
    if scale == "diff":
        return shift
    return -math.expm1(-shift) if better == "higher" else math.expm1(shift)


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


def _advice(found: Judgement, rule: _Rule) -> str:
    """Why the runs can't decide, and what would help."""
    if math.isinf(found.high):
        return (
            f"{found.m} baseline and {found.n} candidate runs can't decide: needs C(m+n, n) >= "
            f"{math.ceil(1 / rule.alpha)}, i.e. at least {runs_needed(found.m, rule.alpha)} candidate runs"
        )
    if found.half_session >= rule.delta:
        return (
            f"session offsets alone reach the margin of {rule.margin:g}: an unchanged candidate can never be held; "
            "it takes a wider margin, steadier sessions or more of them"
        )
    room = rule.delta - found.change if found.change <= rule.delta else found.change
    if found.half_session > found.half_within:
        return _more("sessions differ more than runs do", "baseline sessions", _sessions_to_decide(found, room))
    kind = "interleaved runs a side" if rule.interleaved else "candidate runs"
    return _more("runs differ too much among themselves", kind, _runs_to_decide(found, room, rule.interleaved))


def _more(cause: str, what: str, count: float) -> str:
    if count <= MOST_RUNS:
        return f"{cause}: about {count:.0f} {what} would decide, if the estimate stays"
    return f"{cause}: even {MOST_RUNS} {what} would not tell the estimate from the margin"


def _runs_to_decide(found: Judgement, room: float, interleaved: bool) -> float:
    """Candidate runs at which the projected half-width fits into `room`: noise falls with sqrt(1/n + 1/m)."""
    share = (room**2 - found.half_session**2) / found.half_within**2 if found.half_within else 0.0
    inverse = share / found.n if interleaved else share * (1 / found.n + 1 / found.m) - 1 / found.m
    return max(found.n + 1, math.ceil(1 / inverse)) if inverse > 1e-6 and share > 0 else math.inf


def _sessions_to_decide(found: Judgement, room: float) -> float:
    """Baseline sessions at which the projected half-width fits into `room`: the offset falls with sqrt(1 + 1/J)."""
    spread = found.half_session**2 / (1 + 1 / found.sessions)
    inverse = (room**2 - found.half_within**2) / spread - 1
    return max(found.sessions + 1, math.ceil(1 / inverse)) if inverse > 1e-6 else math.inf


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
