"""What to say and do about a judgement that isn't one: why it can't decide, what would help, which margin would work.

Standard library only.
"""

from __future__ import annotations

import math
from itertools import count

from pytest_llmperf.judgement import Judgement
from pytest_llmperf.stats import mann_whitney_rank, runs_needed

MOST_RUNS = 100
"""Advice to take more runs or sessions than this is no advice."""


def undecided(found: Judgement) -> str:
    """Why the runs can't decide, and what would help."""
    if math.isinf(found.high):
        return _too_few(found)
    if found.never:
        return _never(found)
    room = found.margin - found.change if found.change <= found.margin else found.change
    if found.sharper == "sessions":
        return _more("sessions differ more than runs do", "baseline sessions", _sessions_to_decide(found, room))
    kind = "interleaved runs a side" if found.interleaved else "candidate runs"
    return _more("runs differ too much among themselves", kind, _runs_to_decide(found, room))


def _too_few(found: Judgement) -> str:
    if found.interleaved:
        least = next(n for n in count(1) if mann_whitney_rank(n, n, found.alpha))
        sides, take = f"{found.m} control and {found.n} treatment", f"{least} of each (max_runs=)"
    else:
        least = runs_needed(found.m, found.alpha)
        sides, take = (
            f"{found.m} baseline and {found.n} candidate",
            f"{least} candidate runs, or more baseline sessions",
        )
    return f"{sides} run{'s' * (found.n != 1)} can't decide: it takes at least {take}"


def workable_margin(found: Judgement) -> float:
    """The margin, as a mark states it, at which an unchanged candidate would be held about 4 times in 5.

    Half of these bounds' width is 1.645 standard errors and another 0.84 of them leave 80 % room: 1.5 times the half.
    """
    return found.shown(1.5 * math.hypot(found.half_within, found.half_session))


def amount(found: Judgement, shift: float) -> str:
    """A shift as a mark states it: `5 %` on scale "ratio", a number in the metric's unit on "diff"."""
    return f"{100 * found.shown(shift):.3g} %" if found.scale == "ratio" else f"{shift:.3g}"


def _never(found: Judgement) -> str:
    wide, margin = amount(found, found.half_session), amount(found, found.margin)
    cause = f"session offsets alone (+-{wide}) reach the margin of {margin}"
    enough = _sessions_to_decide(found, found.margin, within=0.0)
    if enough <= MOST_RUNS:
        return f"can never decide: record more sessions: {cause}; {enough:.0f} instead of {found.sessions} would do"
    return (
        f"can never decide, however many sessions are recorded: {cause}; it takes a wider margin or steadier sessions"
    )


def _more(cause: str, what: str, number: float) -> str:
    if number <= MOST_RUNS:
        return f"{cause}: about {number:.0f} {what} would decide, if the estimate stays"
    return f"{cause}: even {MOST_RUNS} {what} would not tell the estimate from the margin"


def _runs_to_decide(found: Judgement, room: float) -> float:
    """Candidate runs at which the projected half-width fits into `room`: noise falls with sqrt(1/n + 1/m)."""
    share = _square(room, found.half_within) - _square(found.half_session, found.half_within)
    inverse = share / found.n if found.interleaved else share * (1 / found.n + 1 / found.m) - 1 / found.m
    return _least(found.n, inverse if share > 0 else 0.0)


def _sessions_to_decide(found: Judgement, room: float, within: float | None = None) -> float:
    """Baseline sessions at which the projected half-width fits into `room`: the offset falls with sqrt(1 + 1/J)."""
    noise = found.half_within if within is None else within
    share = _square(room, found.half_session) - _square(noise, found.half_session)
    return _least(found.sessions, share * (1 + 1 / found.sessions) - 1)


def _least(present: int, inverse: float) -> float:
    """The fewest that lie above `1 / inverse` and above those that are there."""
    return max(present + 1, math.floor(1 / inverse) + 1) if inverse > 1e-6 else math.inf


def _square(part: float, whole: float) -> float:
    # a product, not a power: a power raises where this is inf, and a half-width can be 1e-200
    ratio = part / whole if whole else 0.0
    return ratio * ratio
