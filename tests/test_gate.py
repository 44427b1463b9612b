"""The decision rule against printed verdicts."""

import math
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from statistics import NormalDist
from typing import Any

import pytest

from pytest_llmperf.gate import judge, judge_floor, judge_gain
from pytest_llmperf.judgement import Judgement, back_transform
from pytest_llmperf.model import Better, Scale
from tests.builders import Options

Runs = list[list[float]]

# TR116 Appendix A, efficiency in %, printed order: groups 4 and 3, and runs 2-5 of group 9
H = [99.11, 99.86, 99.15, 99.73, 98.26]
B = [97.46, 98.45, 95.70, 96.24, 98.72]
P = [84.07, 87.51, 83.94, 85.54]
FOUR_SESSIONS = [
    [97.5, 98.4, 97.9, 98.1, 97.6],
    [96.2, 96.9, 96.4, 97, 96.5],
    [98, 98.8, 98.3, 98.5, 97.9],
    [97.1, 97.7, 97.2, 97.9, 97.1],
]
SLOWER = [93.4, 93.9, 93.1, 94, 93.5]


def diff(
    base: Sequence[Sequence[float]], candidate: Sequence[float], margin: float, looks: int = 1, session_sd: float = 0.0
) -> Judgement:
    return judge(base, candidate, better="higher", scale="diff", margin=margin, looks=looks, session_sd=session_sd)


POINTS: Options = {"better": "higher", "scale": "diff", "margin": 2}
THREE_LOOKS: Options = {**POINTS, "looks": 3}
OFFSET: Options = {**THREE_LOOKS, "session_sd": 0.5}
LATENCY: Options = {"better": "lower", "scale": "ratio", "margin": 0.10, "looks": 3}
RATE: Options = {"better": "higher", "scale": "ratio", "margin": 0.05, "looks": 3}
NEVER = (-math.inf, math.inf, math.inf)

VECTORS: list[tuple[Runs, list[float], Options, str, tuple[float, ...]]] = [
    ([B], B, POINTS, "held", (0, -1.76, 1.76, 2.88)),
    ([H], B, POINTS, "inconclusive", (1.69, 0.66, 3.45, 2.515)),
    ([H], B, THREE_LOOKS, "inconclusive", (1.69, 0.39, 3.62, 2.65)),
    ([H], B, {**THREE_LOOKS, "margin": 1}, "regressed", (1.69, 0.39, 3.62, 1.95)),
    ([H], B, {**OFFSET, "margin": 1}, "inconclusive", (1.69, -0.2102, 4.0661, 2.8503)),
    ([B], P, THREE_LOOKS, "regressed", (12.045, 8.73, 14.65, 4.9725)),
    (FOUR_SESSIONS, SLOWER, OFFSET, "regressed", (4.0, 1.3351, 6.6118, 3.9973)),
    (FOUR_SESSIONS, SLOWER, {**OFFSET, "interleaved": True}, "regressed", (4.0, 3.2, 4.6, 2.4)),
    ([[250, 260, 255, 270, 265]], [281, 292, 287, 300, 296], LATENCY, "regressed", (0.1161, 0.0611, 0.1625, 0.1228)),
    ([[82.1, 82.9, 83.4, 82.4, 82.6]], [79.9, 80.2, 80.6, 79.7, 80.4], RATE, "held", (0.0306, 0.0221, 0.0394, 0.0556)),
    ([[50] * 5], [50] * 5, THREE_LOOKS, "held", (0, 0, 0, 2)),
    ([[50] * 5], [40] * 5, THREE_LOOKS, "regressed", (10, 10, 10, 2)),
    ([B], [90], POINTS, "inconclusive", (7.46, *NEVER)),
    ([B] * 4, [90], POINTS, "regressed", (7.46, 5.70, 8.72, 2.88)),
    ([B[:3]], [90, 91, 90.5], POINTS, "regressed", (6.96, 4.70, 8.45, 3.39)),
    ([B[:3]], [90, 91, 90.5], THREE_LOOKS, "inconclusive", (6.96, *NEVER)),
]


@pytest.mark.parametrize(("base", "candidate", "chosen", "verdict", "expected"), VECTORS)
def test_printed_verdicts(
    base: Runs, candidate: list[float], chosen: Options, verdict: str, expected: tuple[float, ...]
) -> None:
    found = judge(base, candidate, **chosen)
    assert found.verdict == verdict
    assert (found.change, found.low, found.high, found.catches80) == pytest.approx(expected, abs=1e-4)


def test_the_result_is_frozen_and_says_what_went_in() -> None:
    found = diff(FOUR_SESSIONS, SLOWER, 2, looks=3, session_sd=0.5)
    assert (found.m, found.n, found.sessions) == (20, 5, 4)
    assert found.half_session == pytest.approx(2.5420, abs=1e-4)
    assert found.half_within == pytest.approx(0.7)
    assert found.reason == ""
    with pytest.raises(FrozenInstanceError):
        found.verdict = "held"  # type: ignore[misc]


@pytest.mark.parametrize(("looks", "verdict"), [(1, "regressed"), (2, "regressed"), (3, "inconclusive")])
def test_each_planned_look_costs_level(looks: int, verdict: str) -> None:
    # C(7, 3) = 35 orders: enough for .05 and .03, too few for .025
    assert diff([[97, 98, 99, 96]], [90, 91, 90.5], 2, looks=looks).verdict == verdict


def test_improved_is_held_and_better_for_sure() -> None:
    found = diff([B], [value + 5 for value in B], 2)
    assert found.verdict == "improved"
    assert found.high == pytest.approx(-5 + 1.76)


def test_better_but_not_for_sure_is_held() -> None:
    assert diff([B], [value + 1 for value in B], 2).verdict == "held"


def test_worse_for_sure_within_the_margin_is_not_regressed() -> None:
    found = diff([B], [value - 2 for value in B], 3)
    assert found.low > 0
    assert found.verdict == "inconclusive"


def test_a_bound_on_zero_is_not_worse_for_sure() -> None:
    found = diff([[50, 60, 60, 60, 60]], [50] * 5, 2)
    assert (found.change, found.low, found.verdict) == (10, 0, "inconclusive")


def test_back_transform_shows_fractions_of_the_baseline() -> None:
    slower = judge([[100]], [125], better="lower", scale="ratio", margin=0.1).change
    assert back_transform(slower, better="lower", scale="ratio") == pytest.approx(0.25)
    fewer = judge([[80]], [60], better="higher", scale="ratio", margin=0.1).change
    assert back_transform(fewer, better="higher", scale="ratio") == pytest.approx(0.25)
    assert back_transform(-1.5, better="lower", scale="diff") == -1.5
    assert back_transform(math.inf, better="higher", scale="ratio") == 1
    assert back_transform(-math.inf, better="lower", scale="ratio") == -1
    assert back_transform(math.inf, better="lower", scale="ratio") == math.inf


@pytest.mark.parametrize(
    ("base", "candidate", "looks", "words"),
    [
        (B, [90], 1, "5 baseline and 1 candidate run can't decide: it takes at least 2"),
        (B[:3], [90, 91, 90.5], 3, "3 baseline and 3 candidate runs can't decide: it takes at least 5"),
        ([97], [90], 2, "1 baseline and 1 candidate run can't decide: it takes at least 33"),
    ],
)
def test_too_few_runs_say_how_many_it_takes(base: list[float], candidate: list[float], looks: int, words: str) -> None:
    assert diff([base], candidate, 2, looks=looks).reason == f"{words} candidate runs, or more baseline sessions"


@pytest.mark.parametrize(("looks", "least"), [(1, 3), (2, 4), (3, 4), (4, 4)])
def test_too_few_interleaved_runs_say_how_many_it_takes_of_each(looks: int, least: int) -> None:
    def paired(n: int) -> Judgement:
        return judge([noise(n, 5)], noise(n, 5), scale="diff", margin=4, looks=looks, interleaved=True)

    assert paired(2).reason == (
        f"2 control and 2 treatment runs can't decide: it takes at least {least} of each (max_runs=)"
    )
    assert math.isinf(paired(least - 1).high)
    assert math.isfinite(paired(least).high)


@pytest.mark.parametrize("candidate", [50, 51, 52, 60])
@pytest.mark.parametrize("session_sd", [0.0, 1.0])
def test_constant_runs_on_both_sides_are_suspicious(candidate: float, session_sd: float) -> None:
    found = diff([[50] * 5], [candidate] * 5, 2, session_sd=session_sd)
    assert found.reason.split("; ")[-1] == "no run-to-run variation: mocked or cached server?"
    assert ("; " in found.reason) == (found.verdict == "inconclusive"), "and why it can't decide"


def test_one_run_a_side_is_not_called_constant() -> None:
    assert "variation" not in diff([[50]], [50], 2).reason
    assert "variation" not in diff([B * 4], [50], 2).reason


def noise(n: int, sd: float) -> list[float]:
    """The n quantiles of a normal distribution around 100."""
    return [NormalDist(100, sd).inv_cdf((i + 0.5) / n) for i in range(n)]


def test_noisy_runs_ask_for_runs_and_get_what_they_ask_for() -> None:
    found = diff([noise(20, 5)], noise(5, 5), 3.5)
    assert found.verdict == "inconclusive"
    assert found.reason == (
        "runs differ too much among themselves: about 11 candidate runs would decide, if the estimate stays"
    )
    assert diff([noise(20, 5)], noise(7, 5), 3.5).verdict == "inconclusive"
    assert diff([noise(20, 5)], noise(11, 5), 3.5).verdict == "held"


def test_session_offsets_leave_less_room_for_noise() -> None:
    found = diff([noise(20, 5)], noise(5, 5), 3.5, session_sd=0.6)
    assert found.half_within > found.half_session > 0
    assert found.reason.startswith("runs differ too much among themselves: about 14 candidate runs would decide")


def test_a_likely_regression_asks_for_what_would_show_it() -> None:
    # estimated 4, beyond the margin of 3.9: the lower bound has to rise above 0, not the upper to fall below 3.9
    found = diff([noise(20, 5)], [value - 4 for value in noise(5, 5)], 3.9)
    assert found.change == pytest.approx(4)
    assert found.verdict == "inconclusive"
    assert found.reason.startswith("runs differ too much among themselves: about 8 candidate runs would decide")
    assert diff([noise(20, 5)], [value - 4 for value in noise(8, 5)], 3.9).verdict == "regressed"


def test_a_small_noisy_baseline_says_that_candidate_runs_alone_do_not_help() -> None:
    found = diff([[90, 95, 100, 105, 110]], [90, 95, 100, 105, 110], 2)
    assert found.reason == (
        "runs differ too much among themselves: even 100 candidate runs would not tell the estimate from the margin"
    )


def test_interleaved_noise_asks_for_runs_on_both_sides() -> None:
    def paired(n: int) -> Judgement:
        return judge([noise(n, 5)], noise(n, 5), scale="diff", margin=4, session_sd=9, interleaved=True)

    assert paired(5).half_session == 0
    assert paired(5).reason == (
        "runs differ too much among themselves: about 13 interleaved runs a side would decide, if the estimate stays"
    )
    assert (paired(8).verdict, paired(13).verdict) == ("inconclusive", "held")


def test_offset_sessions_ask_for_sessions() -> None:
    found = diff([[100.0, 100.1, 99.9]], [100.0, 100.1, 99.9], 0.99, session_sd=0.42)
    assert found.half_session > found.half_within
    assert found.reason == (
        "sessions differ more than runs do: about 2 baseline sessions would decide, if the estimate stays"
    )
    assert diff([[100.0, 100.1, 99.9]] * 2, [100.0, 100.1, 99.9], 0.99, session_sd=0.42).verdict == "held"


def test_sessions_that_cannot_help_enough_are_not_promised() -> None:
    found = diff([[100.0, 100.5, 99.5]], [99.5, 100.0, 99.0], 1.6, session_sd=0.6)
    assert found.verdict == "inconclusive"
    assert "would not tell the estimate from the margin" in found.reason
    assert "even 100 baseline sessions" in found.reason


def test_sessions_wider_than_the_margin_can_never_hold() -> None:
    found = judge([[250, 251, 252, 253, 249]], [250, 251, 252, 253, 249], better="lower", margin=0.1, session_sd=0.05)
    assert found.reason == (
        "can never decide: record more sessions: session offsets alone (+-12.3 %) reach the margin of 10 %; "
        "3 instead of 1 would do"
    )


def test_an_estimate_on_the_margin_promises_nothing() -> None:
    # ties leave no half-width at all: worse by exactly the margin, neither excluded nor exceeded
    found = diff([[50, 50, 50, 50, 50, 50, 50, 51]], [48] * 7 + [47], 2)
    assert (found.half_within, found.change, found.verdict) == (0, 2, "inconclusive")
    assert "would not tell the estimate from the margin" in found.reason


BAD_RUNS: list[tuple[Runs, list[float], Scale, str]] = [
    ([[1, 2], [3, math.nan]], [1], "ratio", r"sessions\[1\]\[1\] is nan; legal are finite numbers above 0"),
    ([[1, 2]], [3, math.inf], "diff", r"candidate\[1\] is inf; legal are finite numbers$"),
    ([[1, 0.0]], [1], "ratio", r"sessions\[0\]\[1\] is 0.0; legal are finite numbers above 0 on scale 'ratio'"),
    ([[1]], [-2], "ratio", r"candidate\[0\] is -2; legal are finite numbers above 0 on scale 'ratio'"),
    ([], [1], "diff", r"sessions is \[\]; legal are one session of baseline runs or more"),
    ([[1], []], [1], "diff", r"sessions\[1\] is \[\]; legal are one run or more"),
    ([[1]], [], "diff", r"candidate is \[\]; legal are one run or more"),
]


@pytest.mark.parametrize(("sessions", "candidate", "scale", "words"), BAD_RUNS)
def test_unusable_runs_are_named(sessions: Runs, candidate: list[float], scale: Scale, words: str) -> None:
    with pytest.raises(ValueError, match=r"^judge\(\): " + words):
        judge(sessions, candidate, better="higher", scale=scale, margin=0.5)


def test_zero_and_negative_values_are_fine_on_scale_diff() -> None:
    assert diff([[0, -1, 1]], [0, -1, 1], 5).verdict == "held"


BAD_OPTIONS = [
    ({"margin": 5}, r"margin is 5; legal are fractions below 1 on scale 'ratio' \(0.05 for 5 %\), above 0"),
    ({"margin": 1.0}, "margin is 1.0; legal are fractions below 1"),
    ({"margin": 0}, "margin is 0; legal are fractions below 1"),
    ({"margin": math.nan}, "margin is nan; legal are fractions below 1"),
    ({"margin": -2, "scale": "diff"}, "margin is -2; legal are finite numbers on scale 'diff', above 0"),
    ({"margin": math.inf, "scale": "diff"}, "margin is inf; legal are finite numbers on scale 'diff', above 0"),
    ({"session_sd": 1}, "session_sd is 1; legal are fractions below 1 .*, 0 or above"),
    ({"session_sd": -0.1}, r"session_sd is -0.1; legal are fractions below 1 .*, 0 or above"),
    ({"session_sd": math.nan, "scale": "diff"}, "session_sd is nan; legal are finite numbers on scale 'diff', 0 or"),
    ({"looks": 0}, "looks is 0; legal are 1, 2, 3 and 4"),
    ({"looks": 5}, "looks is 5; legal are 1, 2, 3 and 4"),
    ({"better": "faster"}, "better is 'faster'; legal are 'higher' and 'lower'"),
    ({"scale": "log"}, "scale is 'log'; legal are 'ratio' and 'diff'"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^judge\(\): " + words):
        judge([[1, 2, 3]], [1, 2, 3], **{"margin": 0.05, **options})


# ----------------------------------------------------------------------------------------------------------- gains

STEP = (-0.2, -0.1, 0.0, 0.1, 0.2)


def near(middle: float) -> list[float]:
    return [middle + step for step in STEP]


@pytest.mark.parametrize(
    ("better", "scale", "by", "treatment", "verdict"),
    [
        ("higher", "ratio", 0.15, 116, "held"),
        ("higher", "ratio", 0.15, 115, "inconclusive"),
        ("higher", "ratio", 0.15, 114, "regressed"),
        ("higher", "ratio", 1.50, 252, "held"),
        ("higher", "ratio", 1.50, 248, "regressed"),
        ("lower", "ratio", 0.15, 84, "held"),
        ("lower", "ratio", 0.15, 85, "inconclusive"),
        ("lower", "ratio", 0.15, 86, "regressed"),
        ("higher", "diff", 5, 106, "held"),
        ("higher", "diff", 5, 105, "inconclusive"),
        ("higher", "diff", 5, 104, "regressed"),
        ("lower", "diff", 5, 94, "held"),
        ("lower", "diff", 5, 95, "inconclusive"),
        ("lower", "diff", 5, 96, "regressed"),
        ("higher", "ratio", 0.0, 101, "held"),
        ("higher", "ratio", 0.0, 100, "inconclusive"),
        ("lower", "ratio", 0.0, 101, "regressed"),
        ("higher", "ratio", 0.15, 80, "regressed"),
    ],
)
def test_a_gain_is_claimed_on_its_lower_bound_and_refuted_on_its_upper(
    better: Better, scale: Scale, by: float, treatment: float, verdict: str
) -> None:
    found = judge_gain(near(100), near(treatment), better=better, scale=scale, by=by)
    assert found.verdict == verdict
    assert (found.interleaved, found.half_session, found.margin, found.never) == (True, 0, 0, False)
    assert (found.m, found.n, found.sessions) == (5, 5, 1)


def test_a_gain_is_a_worsening_below_zero() -> None:
    found = judge_gain(near(100), near(120), by=0.15)
    assert found.low < found.change < found.high < -math.log(1.15)
    assert found.shown(found.change) == pytest.approx(-0.20, abs=1e-3)


def test_a_gain_of_exactly_what_is_claimed_is_held() -> None:
    assert judge_gain([50] * 5, [60] * 5, scale="diff", by=10).verdict == "held"
    assert judge_gain([50] * 5, [59] * 5, scale="diff", by=10).verdict == "regressed"
    assert judge_gain([50] * 5, [60] * 5, scale="diff", by=10).reason.startswith("no run-to-run variation")


@pytest.mark.parametrize(("runs", "looks", "verdict"), [(2, 1, "inconclusive"), (3, 1, "held"), (3, 3, "inconclusive")])
def test_a_gain_takes_as_many_runs_as_any_bound(runs: int, looks: int, verdict: str) -> None:
    found = judge_gain(near(100)[:runs], near(150)[:runs], by=0.15, looks=looks)
    assert found.verdict == verdict
    assert math.isinf(found.high) == (verdict == "inconclusive")


def test_the_noise_decides_how_much_gain_can_be_claimed() -> None:
    control, treatment = noise(10, 5), [1.2 * value for value in noise(10, 5)]
    assert judge_gain(control, treatment, by=0.10).verdict == "held"
    assert judge_gain(control, treatment, by=0.19).verdict == "inconclusive"
    assert judge_gain(control, treatment, by=0.30).verdict == "regressed"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": -0.1}, "by is -0.1; legal are numbers from 0 up"),
        ({"by": math.nan}, "by is nan; legal are numbers from 0 up"),
        ({"by": math.inf}, "by is inf; legal are numbers from 0 up"),
        ({"by": 1.0, "better": "lower"}, "by is 1.0; legal are fractions below 1"),
        ({"by": 0.1, "better": "faster"}, "better is 'faster'; legal are 'higher' and 'lower'"),
        ({"by": 0.1, "scale": "log"}, "scale is 'log'; legal are 'ratio' and 'diff'"),
        ({"by": 0.1, "looks": 5}, "looks is 5; legal are 1, 2, 3 and 4"),
    ],
)
def test_claims_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"^judge(_gain)?\(\): {words}"):
        judge_gain([1, 2, 3], [1, 2, 3], **options)


@pytest.mark.parametrize(
    ("control", "treatment", "words"),
    [
        ([1, math.nan], [1], "[1] is nan; legal are finite numbers above 0 on scale 'ratio'"),
        ([1], [0], "[0] is 0; legal are finite numbers above 0 on scale 'ratio'"),
        ([], [1], " is []; legal are one run or more"),
        ([1], [], " is []; legal are one run or more"),
    ],
)
def test_unusable_runs_of_a_side_are_named(control: list[float], treatment: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words) + "$"):
        judge_gain(control, treatment, by=0.1)


# ------------------------------------------------------------------------------------------------------------- never


@pytest.mark.parametrize("session_sd", [0.0, 0.5, 50.0])
def test_what_is_decided_is_never_never(session_sd: float) -> None:
    assert not diff([[50] * 5] * 4, [-1000] * 5, 2, session_sd=session_sd).never
    assert diff([B], B, 2, session_sd=session_sd).never == (1.6449 * math.sqrt(2) * session_sd >= 2)


@pytest.mark.parametrize(("margin", "never"), [(2.0, True), (2.5, False), (0.0, False)])
def test_offsets_that_reach_the_margin_never_decide(margin: float, *, never: bool) -> None:
    found = diff([B], [value - 1 for value in B], 2, session_sd=1.0)
    assert found.half_session == pytest.approx(2.326, abs=1e-3)
    assert replace(found, margin=margin).never == never


def test_a_floor_has_no_margin_to_reach() -> None:
    assert not judge_floor(B, better="higher", floor=97).never


# ---------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize(
    ("floor", "verdict"),
    [(95.0, "held"), (95.7, "held"), (96.0, "inconclusive"), (98.72, "inconclusive"), (99, "regressed")],
)
def test_a_floor_is_judged_on_bounds(floor: float, verdict: str) -> None:
    found = judge_floor(B, better="higher", floor=floor)
    assert found.verdict == verdict
    assert (found.low, found.high) == pytest.approx((floor - 98.72, floor - 95.70))
    assert bool(found.reason) == (verdict == "inconclusive")


@pytest.mark.parametrize(
    ("limit", "verdict"), [(500, "held"), (460, "held"), (450, "inconclusive"), (399, "regressed")]
)
def test_a_limit_is_the_mirrored_floor(limit: float, verdict: str) -> None:
    assert judge_floor([400, 410, 430, 440, 460], better="lower", floor=limit).verdict == verdict


def test_one_bad_run_of_ten_is_outvoted_and_one_of_five_is_not() -> None:
    good = [95, 96, 97, 94, 95.5, 96.5, 97.5, 94.5, 95]
    assert judge_floor([*good[:4], 60], better="higher", floor=90).verdict == "inconclusive"
    assert judge_floor([*good, 60], better="higher", floor=90).verdict == "held"


def test_the_floor_says_how_far_beyond_it_the_runs_lie() -> None:
    found = judge_floor([88, 89, 90, 91, 92], better="higher", floor=95)
    assert (found.change, found.low, found.high, found.n, found.m) == (5, 3, 7, 5, 0)
    assert found.catches80 == pytest.approx(3)


def test_four_runs_cannot_hold_a_floor() -> None:
    found = judge_floor([99, 99, 99, 99], better="higher", floor=90)
    assert (found.verdict, found.low, found.high) == ("inconclusive", -math.inf, math.inf)
    assert found.change == -9
    assert found.reason == "4 runs can't decide: 5 runs are needed for a bound at level .05"


def test_an_undecided_floor_says_so() -> None:
    reason = judge_floor(B, better="higher", floor=97).reason
    assert reason == "the floor lies between the bounds of these runs: more runs would help"


@pytest.mark.parametrize(
    ("values", "better", "floor", "words"),
    [
        ([], "higher", 90, r"values is \[\]; legal are one run or more"),
        ([1, math.nan], "higher", 90, r"values\[1\] is nan; legal are finite numbers"),
        ([1], "higher", math.inf, "floor is inf; legal are finite numbers"),
        ([1], "more", 90, "better is 'more'; legal are 'higher' and 'lower'"),
    ],
)
def test_unusable_floors_are_named(values: list[float], better: Better, floor: float, words: str) -> None:
    with pytest.raises(ValueError, match=r"^judge_floor\(\): " + words):
        judge_floor(values, better=better, floor=floor)
