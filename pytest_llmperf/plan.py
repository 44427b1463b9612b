"""When to look, when to stop, when to measure again: the part of the decision rule that costs runs.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_llmperf.judgement import Judgement

LOOKS = (5, 7, 10)
SESSION_RUNS = 5
"""Kept runs of a session that is recorded, or that confirms: more of them in one session never cure its offset."""

PAIRED_RUNS = 3
"""The fewest runs a side that have a bound at level .05: of C(6, 3) = 20 orders one is the worst."""

WELL_BELOW = 0.55
"""At .5 noise of 1.2 margins takes 63.4 % of the runs of a fixed 10 at the same power; at .55 it is 62.8 %, at .7 power
falls by two points (benchmarks/decision_rule.md)."""


def looks(max_runs: int) -> tuple[int, ...]:
    """The numbers of runs after which a session is judged: those of 5, 7 and 10 below `max_runs`, and itself."""
    return (*(runs for runs in LOOKS if runs < max_runs), max_runs)


def enough(found: Sequence[Judgement], max_runs: int) -> bool:
    """Whether to stop after a look: one metric is regressed, or each is decided or hopeless."""
    return any(one.verdict == "regressed" for one in found) or all(
        one.verdict != "inconclusive" or hopeless(one, max_runs) for one in found
    )


def hopeless(found: Judgement, max_runs: int) -> bool:
    """Whether `max_runs` runs would not decide either, if the estimate and the noise stay what they are.

    The projected half-width exceeds the margin, so that nothing can be held, and the estimate is well below it.
    """
    if math.isinf(found.high):
        return False
    now, then = 1 / found.n + 1 / found.m, 1 / max_runs + 1 / (max_runs if found.interleaved else found.m)
    projected = math.hypot(found.half_within * math.sqrt(then / now), found.half_session)
    return projected > found.margin and found.change < WELL_BELOW * projected


def doubtful(found: Iterable[Judgement]) -> bool:
    """Whether a second session must be measured: something is regressed, or estimated beyond the margin."""
    return any(one.verdict == "regressed" or _beyond(one) for one in found)


def confirmed(first: Judgement, second: Judgement) -> Judgement:
    """The first session's judgement in the light of a second one, which alone decides whether it is a regression."""
    if first.verdict != "regressed" or second.verdict == "regressed":
        return first
    reason = "not confirmed: a second session did not show it" if second.change <= second.margin else _UNSURE
    return replace(first, verdict="inconclusive", reason=reason)


_UNSURE = "not confirmed for sure: a second session is estimated beyond the margin too, but its bound is not"


def worse_twice(first: Judgement, second: Judgement) -> bool:
    """Whether both sessions are estimated beyond the margin where they did not both show a regression."""
    both = first.verdict == second.verdict == "regressed"
    return not both and min(first.change - first.margin, second.change - second.margin) > 0


def _beyond(found: Judgement) -> bool:
    return found.verdict == "inconclusive" and found.change > found.margin
