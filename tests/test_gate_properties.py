"""What must hold of the decision rule for any data."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.gate import judge, judge_floor
from pytest_llmperf.judgement import Judgement
from pytest_llmperf.model import JUDGED, WORST_FIRST, Better
from pytest_llmperf.stats import CRITICAL
from tests.builders import Options

Runs = list[list[float]]


MIRRORED: dict[Better, Better] = {"higher": "lower", "lower": "higher"}

patient = settings(deadline=None, max_examples=80)
# around 1, where a margin means the same on both scales; multiples of 1/512, so that runs tie and differences are exact
levels = st.integers(440, 560)
noise = st.lists(st.integers(0, 20), min_size=1, max_size=8)
runs = st.builds(lambda level, steps: [(level + step) / 512 for step in steps], levels, noise)
baselines = st.lists(runs, min_size=1, max_size=6)
options = st.fixed_dictionaries(
    {
        "better": st.sampled_from(["higher", "lower"]),
        "scale": st.sampled_from(["ratio", "diff"]),
        "margin": st.floats(0.01, 0.45),
        "session_sd": st.sampled_from([0.0, 0.01, 0.05]),
        "looks": st.integers(1, 4),
        "interleaved": st.booleans(),
    }
)


def numbers(found: Judgement) -> tuple[float, ...]:
    return (found.change, found.low, found.high, found.catches80, found.half_within, found.half_session)


def assert_alike(one: Judgement, other: Judgement) -> None:
    """Equal up to rounding, which may tip the verdict where an edge lies on 0 or on the margin."""
    assert numbers(one) == pytest.approx(numbers(other), abs=1e-9)
    edges = [abs(edge - limit) for edge in (one.change, one.low, one.high) for limit in (0, one.margin)]
    assert one.verdict == other.verdict or min(edges) < 1e-9


def pooled(base: Runs) -> list[float]:
    return [value for values in base for value in values]


def moved(values: Sequence[float], by: float) -> list[float]:
    return [value + by for value in values]


# physical quantities in any unit, to six decimals
@patient
@given(
    st.lists(st.lists(st.integers(1, 10**15), min_size=1, max_size=7), min_size=1, max_size=9),
    st.lists(st.integers(1, 10**15), min_size=1, max_size=12),
    options,
)
def test_every_measurable_value_gets_one_of_four_verdicts(
    base: list[list[int]], candidate: list[int], chosen: Options
) -> None:
    found = judge([[i / 1e6 for i in values] for values in base], [i / 1e6 for i in candidate], **chosen)
    assert found.verdict in JUDGED
    assert found.low <= found.change <= found.high
    assert found.catches80 > 0
    assert not any(math.isnan(number) for number in numbers(found))
    assert found.reason or found.verdict != "inconclusive"


@patient
@given(baselines, options)
def test_a_baseline_holds_against_itself_wherever_its_bounds_fit_into_the_margin(base: Runs, chosen: Options) -> None:
    found = judge(base, pooled(base), **chosen)
    assert found.change == 0
    assert found.verdict == ("held" if found.high < found.margin else "inconclusive")


@patient
@given(st.lists(st.tuples(levels, levels), min_size=1, max_size=7), options)
def test_a_session_is_not_told_from_itself_and_one_other(pairs: list[tuple[int, int]], chosen: Options) -> None:
    # n(n+1)/2 of its differences from itself are <= 0, as many >= 0: no fewer than the rank of 2n against n up to n = 7
    one, other = ([i / 512 for i in values] for values in zip(*pairs, strict=True))
    found = judge([one, other], one, **chosen)
    assert found.low <= 0 <= found.high
    assert found.verdict in {"held", "inconclusive"}


@patient
@given(baselines, options)
def test_not_every_session_can_be_worse_or_better_than_all_together(base: Runs, chosen: Options) -> None:
    verdicts = [judge(base, values, **chosen).verdict for values in base]
    assert set(verdicts) not in ({"regressed"}, {"improved"})


@patient
@given(baselines, runs, options, st.floats(0.001, 1000))
def test_the_unit_of_a_ratio_metric_does_not_matter(
    base: Runs, candidate: list[float], chosen: Options, unit: float
) -> None:
    chosen["scale"] = "ratio"
    scaled = judge([[unit * x for x in values] for values in base], [unit * x for x in candidate], **chosen)
    assert_alike(judge(base, candidate, **chosen), scaled)


@patient
@given(baselines, runs, options, st.integers(-2000, 2000))
def test_the_zero_of_a_diff_metric_does_not_matter(
    base: Runs, candidate: list[float], chosen: Options, zero: int
) -> None:
    chosen["scale"] = "diff"
    assert_alike(
        judge(base, candidate, **chosen),
        judge([moved(values, zero) for values in base], moved(candidate, zero), **chosen),
    )


@patient
@given(baselines, runs, options, st.floats(0.01, 0.45))
def test_a_larger_margin_never_makes_a_verdict_worse(
    base: Runs, candidate: list[float], chosen: Options, other: float
) -> None:
    small, large = sorted((chosen["margin"], other))
    less: Options = {**chosen, "margin": small}
    more: Options = {**chosen, "margin": large}
    strict, loose = judge(base, candidate, **less), judge(base, candidate, **more)
    assert (strict.change, strict.low, strict.high) == (loose.change, loose.low, loose.high)
    assert WORST_FIRST.index(strict.verdict) <= WORST_FIRST.index(loose.verdict)
    assert (strict.verdict == "improved") == (strict.high < 0)
    assert strict.low > 0 or "regressed" not in {strict.verdict, loose.verdict}


@patient
@given(baselines, runs, options)
def test_direction_flips_with_the_sign(base: Runs, candidate: list[float], chosen: Options) -> None:
    chosen["scale"] = "diff"
    flipped: Options = {**chosen, "better": MIRRORED[chosen["better"]]}
    mirrored = judge([[-x for x in values] for values in base], [-x for x in candidate], **flipped)
    assert replace(mirrored, better=chosen["better"]) == judge(base, candidate, **chosen)


@patient
@given(baselines, runs, options)
def test_direction_flips_with_the_reciprocal(base: Runs, candidate: list[float], chosen: Options) -> None:
    # 20 % fewer tokens a second are 25 % more seconds a token
    margin = chosen["margin"]
    rates: Options = {**chosen, "scale": "ratio", "better": "higher"}
    times: Options = {**rates, "better": "lower", "margin": margin / (1 - margin)}
    mirrored = judge([[1 / x for x in values] for values in base], [1 / x for x in candidate], **times)
    assert_alike(judge(base, candidate, **rates), mirrored)


@patient
@given(baselines, runs, options, st.randoms(use_true_random=False))
def test_the_order_of_runs_and_sessions_does_not_matter(
    base: Runs, candidate: list[float], chosen: Options, random: Random
) -> None:
    before = judge(base, candidate, **chosen)
    for values in (*base, candidate):
        random.shuffle(values)
    random.shuffle(base)
    after = judge(base, candidate, **chosen)
    assert_alike(before, after)
    assert (after.m, after.n, after.sessions) == (before.m, before.n, before.sessions)


@patient
@given(baselines, runs, options, st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_declared_deviation_never_narrows_the_bounds(
    base: Runs, candidate: list[float], chosen: Options, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    less: Options = {**chosen, "session_sd": small}
    more: Options = {**chosen, "session_sd": large}
    narrow, wide = judge(base, candidate, **less), judge(base, candidate, **more)
    assert wide.low <= narrow.low <= narrow.change == wide.change <= narrow.high <= wide.high
    assert wide.half_session >= narrow.half_session
    assert wide.half_within == narrow.half_within


@patient
@given(runs, runs, options, st.integers(1, 40), st.integers(1, 40))
def test_more_equal_sessions_help_but_leave_the_candidates_own_offset(
    session: list[float], candidate: list[float], chosen: Options, one: int, other: int
) -> None:
    chosen["interleaved"] = False
    few, many = (judge([session] * count, candidate, **chosen) for count in sorted((one, other)))
    own = CRITICAL[few.alpha][0] * chosen["session_sd"]
    assert few.half_session + 1e-12 >= many.half_session >= own


@patient
@given(baselines, runs, options)
def test_taking_turns_cancels_the_session_offset(base: Runs, candidate: list[float], chosen: Options) -> None:
    stored: Options = {**chosen, "interleaved": False}
    turns: Options = {**chosen, "interleaved": True}
    apart, together = judge(base, candidate, **stored), judge(base, candidate, **turns)
    assert together.half_session == 0
    assert apart.low <= together.low <= together.high <= apart.high
    declared: Options = {**turns, "session_sd": 0.3}
    in_one_session = judge([pooled(base)], candidate, **declared)
    assert replace(in_one_session, sessions=len(base)) == together


@patient
@given(baselines, runs, st.lists(st.integers(0, 20), min_size=8, max_size=8), st.integers(0, 60), options)
def test_a_candidate_with_worse_runs_never_gets_a_better_verdict(
    base: Runs, candidate: list[float], losses: list[int], common: int, chosen: Options
) -> None:
    sign = -1 if chosen["better"] == "higher" else 1
    lost = [value + sign * (loss + common) / 512 for value, loss in zip(candidate, losses, strict=False)]
    better, worse = judge(base, candidate, **chosen), judge(base, lost, **chosen)
    assert worse.change >= better.change
    assert worse.low >= better.low - 1e-12
    assert worse.high >= better.high - 1e-12
    assert WORST_FIRST.index(worse.verdict) <= WORST_FIRST.index(better.verdict)


@patient
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=12), st.integers(-1000, 1000))
def test_a_floor_and_its_mirror_agree(values: list[int], floor: int) -> None:
    mirrored = judge_floor([-x for x in values], better="lower", floor=-floor)
    assert mirrored == judge_floor(values, better="higher", floor=floor)
