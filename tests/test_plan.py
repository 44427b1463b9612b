"""When the gate looks, stops, and measures again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_llmperf.advice import workable_margin
from pytest_llmperf.gate import judge
from pytest_llmperf.judgement import Judgement
from pytest_llmperf.plan import confirmed, doubtful, enough, hopeless, looks, worse_twice

STEADY = [[50.0, 50.2, 49.8, 50.1, 49.9]] * 4
NOISY = [[50.0, 54, 46, 52, 48]] * 4


def points(
    base: Sequence[Sequence[float]], candidate: Sequence[float], planned: int = 3, session_sd: float = 0.0
) -> Judgement:
    """On scale "diff" with a margin of 2."""
    return judge(base, candidate, scale="diff", margin=2, looks=planned, session_sd=session_sd)


HELD = points(STEADY, [50, 49.9, 50.1, 50, 49.8])
REGRESSED = points(STEADY, [46, 46.2, 45.9, 46.1, 45.8])
TIED = points(NOISY, [50.5, 53, 47, 51, 46])
WORSE = points(NOISY, [47, 51, 44, 49, 45])


@pytest.mark.parametrize(
    ("most", "planned"),
    [
        (2, (2,)),
        (4, (4,)),
        (5, (5,)),
        (6, (5, 6)),
        (7, (5, 7)),
        (9, (5, 7, 9)),
        (10, (5, 7, 10)),
        (20, (5, 7, 10, 20)),
    ],
)
def test_looks_are_those_below_max_runs_and_itself(most: int, planned: tuple[int, ...]) -> None:
    assert looks(most) == planned


def test_the_cases_are_what_they_are_named_after() -> None:
    assert [one.verdict for one in (HELD, REGRESSED, TIED, WORSE)] == ["held", "regressed", *["inconclusive"] * 2]
    assert (TIED.change, WORSE.change) == (1, 3)


def test_one_regression_is_enough_whatever_the_others_are() -> None:
    assert enough([REGRESSED, WORSE], 10)


def test_a_metric_that_more_runs_may_decide_goes_on() -> None:
    open_ = points(STEADY, [48.4, 48.2, 48, 47.8, 48.6])
    assert open_.verdict == "inconclusive"
    assert not hopeless(open_, 10)
    assert not enough([HELD, open_], 10)
    assert enough([HELD, HELD], 10)


def test_noise_beyond_the_margin_is_given_up_unless_the_estimate_is_bad() -> None:
    wide = points([[50.0, 60, 40, 55, 45]] * 4, [50, 59, 41, 55, 45])
    assert wide.verdict == "inconclusive"
    assert hopeless(wide, 10)
    assert enough([HELD, wide], 10)
    assert not hopeless(replace(wide, change=6), 10), "it may yet be shown to be a regression"


def test_the_projection_shrinks_run_noise_only() -> None:
    noisy = replace(TIED, half_within=2.5, half_session=0.0, change=0.0)
    shrunk = 2.5 * math.sqrt((1 / 10 + 1 / 20) / (1 / 5 + 1 / 20))
    assert shrunk < 2
    assert not hopeless(noisy, 10)
    assert hopeless(replace(noisy, half_session=2.5), 10)
    assert hopeless(noisy, 6)


def test_interleaved_runs_shrink_on_both_sides() -> None:
    paired = replace(TIED, half_within=2.5, half_session=0.0, change=0.0, m=5, n=5)
    assert hopeless(paired, 10), "five stored runs stay five"
    assert not hopeless(replace(paired, interleaved=True), 10)


def test_too_few_runs_for_a_bound_are_not_hopeless_yet() -> None:
    found = points([[50.0, 51, 49]], [50, 51])
    assert math.isinf(found.high)
    assert not hopeless(found, 10)


def test_a_second_session_is_for_regressions_and_for_estimates_beyond_the_margin() -> None:
    assert doubtful([HELD, REGRESSED])
    assert doubtful([HELD, WORSE])
    assert not doubtful([HELD, TIED])
    assert not doubtful([])


def test_the_second_session_alone_decides_a_regression() -> None:
    assert confirmed(REGRESSED, REGRESSED) == REGRESSED
    calm = confirmed(REGRESSED, HELD)
    assert (calm.verdict, calm.change) == ("inconclusive", REGRESSED.change)
    assert calm.reason == "not confirmed: a second session did not show it"
    assert confirmed(REGRESSED, WORSE).reason == (
        "not confirmed for sure: a second session is estimated beyond the margin too, but its bound is not"
    )


@pytest.mark.parametrize("first", [HELD, WORSE, TIED])
def test_a_second_session_makes_no_regression_of_anything_else(first: Judgement) -> None:
    assert confirmed(first, REGRESSED) == first


def test_worse_twice_takes_two_estimates_beyond_the_margin() -> None:
    assert worse_twice(WORSE, WORSE)
    assert worse_twice(WORSE, REGRESSED)
    assert worse_twice(REGRESSED, WORSE), "regressed, and not confirmed for sure"
    assert not worse_twice(WORSE, TIED)
    assert not worse_twice(TIED, WORSE)
    assert not worse_twice(REGRESSED, HELD)
    assert not worse_twice(REGRESSED, REGRESSED), "that is a regression"


def test_a_metric_whose_sessions_reach_the_margin_can_never_decide() -> None:
    found = points(STEADY, [50, 49.9, 50.1, 50, 49.8], session_sd=0.95)
    assert found.never
    assert found.reason == (
        "can never decide: record more sessions: session offsets alone (+-2.08) reach the margin of 2; "
        "7 instead of 4 would do"
    )
    wider = points(STEADY, [50, 49.9, 50.1, 50, 49.8], session_sd=1.5)
    assert wider.reason == (
        "can never decide, however many sessions are recorded: session offsets alone (+-3.29) reach the margin of 2; "
        "it takes a wider margin or steadier sessions"
    )


def test_a_decided_metric_is_not_called_never() -> None:
    assert not points(STEADY, [40, 40.1, 39.9, 40, 40.2], session_sd=1.5).never


def test_the_margin_that_would_work_leaves_room_for_the_noise() -> None:
    found = points(STEADY, [50, 49.9, 50.1, 50, 49.8], session_sd=0.95)
    works = workable_margin(found)
    assert works == pytest.approx(1.5 * math.hypot(found.half_within, found.half_session))
    again = judge(STEADY, [50, 49.9, 50.1, 50, 49.8], scale="diff", margin=works, looks=3, session_sd=0.95)
    assert again.verdict == "held"


def test_sharper_names_the_larger_share_of_the_width() -> None:
    assert TIED.sharper == "runs"
    assert points(STEADY, [50, 49.9, 50.1, 50, 49.8], session_sd=0.95).sharper == "sessions"
