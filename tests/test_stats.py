"""The exact statistics against enumeration, closed forms and printed tables."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, permutations, product
from random import Random
from statistics import median, variance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.stats import (
    clean_runs,
    clopper_pearson,
    cold_start,
    hodges_lehmann,
    kendall_p,
    mann_whitney_rank,
    runs_needed,
    session_deviation,
    session_half_width,
    walsh_averages,
    walsh_bounds,
)

FOUR_SESSIONS = [
    [97.5, 98.4, 97.9, 98.1, 97.6],
    [96.2, 96.9, 96.4, 97, 96.5],
    [98, 98.8, 98.3, 98.5, 97.9],
    [97.1, 97.7, 97.2, 97.9, 97.1],
]

patient = settings(deadline=None, max_examples=60)
run_values = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("m", "n", "at_05", "at_025"),
    [(3, 3, 1, 0), (5, 3, 2, 1), (5, 5, 5, 3), (5, 10, 12, 9), (10, 10, 28, 24), (20, 5, 26, 21), (20, 10, 63, 56)],
)
def test_ranks_of_the_printed_table(m: int, n: int, at_05: int, at_025: int) -> None:
    assert (mann_whitney_rank(m, n, 0.05), mann_whitney_rank(m, n, 0.025)) == (at_05, at_025)
    assert mann_whitney_rank(n, m, 0.05) == at_05


def enumerated_rank(m: int, n: int, alpha: Fraction) -> int:
    """The definition itself: all C(m+n, n) orders, U counts the pairs in which the first sample is larger."""
    counts = [sum(u - i for i, u in enumerate(places)) for places in combinations(range(m + n), n)]
    return next(k for k in range(m * n + 2) if Fraction(sum(u <= k for u in counts), len(counts)) > alpha)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 6), (2, 5), (3, 3), (4, 3), (4, 6), (6, 6)])
@pytest.mark.parametrize("alpha", [0.05, 0.03, 0.025, 0.02])
def test_ranks_agree_with_enumeration(m: int, n: int, alpha: float) -> None:
    assert mann_whitney_rank(m, n, alpha) == enumerated_rank(m, n, Fraction(str(alpha)))


def test_a_level_means_its_decimal() -> None:
    # 3 of 10 places are exactly .3, which the nearest float lies below
    assert mann_whitney_rank(1, 9, 0.3) == 3


@pytest.mark.parametrize(("m", "n"), [(1, 19), (2, 5), (3, 3), (5, 2)])
def test_fewest_runs_at_one_look(m: int, n: int) -> None:
    assert runs_needed(m, 0.05) == n
    assert mann_whitney_rank(m, n, 0.05) >= 1
    assert mann_whitney_rank(m, n - 1, 0.05) == 0


@pytest.mark.parametrize(("m", "n"), [(1, 39), (2, 8), (3, 5), (5, 3)])
def test_fewest_runs_at_three_looks(m: int, n: int) -> None:
    assert runs_needed(m, 0.025) == n
    assert mann_whitney_rank(m, n, 0.025) >= 1
    assert mann_whitney_rank(m, n - 1, 0.025) == 0


def test_shift_and_bounds_are_order_statistics_of_the_differences() -> None:
    # differences -4 -3 -3 -2 -2 -2 -1 -1 0, and k = 1 for 3 against 3 at .05
    assert hodges_lehmann([1, 2, 3], [3, 4, 5], 0.05) == (-2, -4, 0)


def test_shift_without_bounds() -> None:
    assert hodges_lehmann([10], [7, 8], 0.05) == (2.5, -math.inf, math.inf)


@patient
@given(st.lists(run_values, min_size=3, max_size=12), st.lists(run_values, min_size=3, max_size=12))
def test_shift_changes_sign_with_the_sides(base: list[float], candidate: list[float]) -> None:
    shift, low, high = hodges_lehmann(base, candidate, 0.05)
    assert low <= shift <= high
    assert hodges_lehmann(candidate, base, 0.05) == (-shift, -high, -low)


def enumerated_signed_rank(n: int, alpha: Fraction) -> int:
    sums = [sum(chosen) for chosen in product(*((0, i) for i in range(1, n + 1)))]
    return next(k for k in range(len(sums) + 1) if Fraction(sum(w <= k for w in sums), 2**n) > alpha)


@pytest.mark.parametrize("n", range(5, 13))
def test_walsh_bounds_agree_with_enumeration(n: int) -> None:
    values = [1.5**i for i in range(n)]
    rank = enumerated_signed_rank(n, Fraction("0.05"))
    averages = sorted((values[i] + values[j]) / 2 for i in range(n) for j in range(i, n))
    assert walsh_averages(values) == averages
    assert walsh_bounds(values) == (averages[rank - 1], averages[-rank])


def test_walsh_bounds_of_five_runs_are_their_extremes() -> None:
    # 1 of 2^5 sign patterns is .031, two are .0625: only the outermost average is a bound at .05
    assert walsh_bounds([3, 1, 5, 2, 4]) == (1, 5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0, 4.0]])
def test_walsh_bounds_need_five_runs(values: list[float]) -> None:
    assert walsh_bounds(values) is None


@pytest.mark.parametrize(("alpha", "fewest"), [(0.05, 5), (0.025, 6), (0.02, 6), (0.01, 7)])
def test_walsh_bounds_at_other_levels(alpha: float, fewest: int) -> None:
    assert walsh_bounds([1.0] * (fewest - 1), alpha) is None
    assert walsh_bounds([1.0] * fewest, alpha) == (1, 1)


@patient
@given(st.lists(run_values, min_size=5, max_size=15))
def test_walsh_bounds_enclose_the_location(values: list[float]) -> None:
    bounds = walsh_bounds(values)
    assert bounds is not None
    assert bounds[0] <= median(walsh_averages(values)) <= bounds[1]


@pytest.mark.parametrize(
    ("values", "p"),
    [
        ([5, 4, 3, 2, 1], 1 / 120),
        ([5, 4, 3, 1, 2], 5 / 120),
        ([5, 4, 3, 2, 2], 5 / 120),
        ([9.2, 9.1, 8.8, 8.7], 1 / 24),
        ([1, 2, 3, 4, 5], 1),
        ([7, 7, 7, 7, 7], 1),
        ([1], 1),
        ([], 1),
    ],
)
def test_chance_of_falling_that_far(values: list[float], p: float) -> None:
    assert kendall_p(values) == p


@pytest.mark.parametrize("n", range(1, 7))
def test_kendall_agrees_with_enumeration(n: int) -> None:
    fallen = [sum(a > b for a, b in combinations(order, 2)) for order in permutations(range(n))]
    for order, inversions in zip(permutations(range(n)), fallen, strict=True):
        assert kendall_p(order) == sum(f >= inversions for f in fallen) / len(fallen)


@patient
@given(st.lists(st.integers(0, 5), min_size=2, max_size=9), st.data())
def test_one_more_fall_is_never_less_of_a_trend(values: list[int], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(values) - 2))
    earlier, later = sorted(values[i : i + 2])
    falling, rising = [*values], [*values]
    falling[i : i + 2], rising[i : i + 2] = [later, earlier], [earlier, later]
    assert (kendall_p(falling) < kendall_p(rising)) == (earlier < later)
    assert kendall_p(falling) <= kendall_p(rising)


@pytest.mark.parametrize(
    ("values", "cold"),
    [
        ([55.31, 82.84, 84.00, 81.54, 84.14], True),  # TR116 Appendix A, efficiency in %, groups 7 and 4
        ([99.11, 99.86, 99.15, 99.73, 98.26], False),
        ([82.84, 55.31, 84.00, 81.54, 84.14], False),
        ([100, 55, 56, 54, 55], False),
    ],
)
def test_a_first_run_far_below_the_others_is_cold(values: list[float], cold: bool) -> None:
    assert cold_start(values) is cold


@pytest.mark.parametrize(
    ("n", "t"), [(3, 31.8205), (4, 6.9646), (5, 4.5407), (6, 3.7469), (9, 2.9980), (10, 2.8965), (11, 2.8965)]
)
def test_the_prediction_limit_is_student_of_the_others(n: int, t: float) -> None:
    others = [float(i) for i in range(n - 1)]
    limit = (n - 2) / 2 - t * math.sqrt(variance(others)) * math.sqrt(1 + 1 / (n - 1))
    assert cold_start([limit - 1e-9, *others])
    assert not cold_start([limit + 1e-9, *others])


def test_below_others_without_variance_any_first_run_is_cold() -> None:
    assert cold_start([49.999, 50, 50])
    assert not cold_start([50, 50, 50])
    assert not any(cold_start([x] * n) for x in (0.1, 0.7, 83.3) for n in range(3, 20))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 50.0]])
def test_two_runs_have_no_prediction_limit(values: list[float]) -> None:
    assert not cold_start(values)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_one_quiet_job_in_a_hundred_looks_cold(n: int) -> None:
    # 4000 samples of true size .01 have a standard error of .0016
    random = Random(n)
    cold = sum(cold_start([random.gauss(100, 2) for _ in range(n)]) for _ in range(4000))
    assert 0.004 < cold / 4000 < 0.018


@pytest.mark.parametrize(
    ("sessions", "declared", "expected"),
    [(FOUR_SESSIONS, 0.5, 2.5420), (FOUR_SESSIONS, 2.0, 4.3827), (FOUR_SESSIONS[:3], 0.5, 1.1316)],
)
def test_session_half_widths_of_the_printed_table(
    sessions: list[list[float]], declared: float, expected: float
) -> None:
    assert session_half_width(sessions, declared, 0.025) == pytest.approx(expected, abs=1e-4)


def test_session_deviation_subtracts_the_noise_of_the_means() -> None:
    means = [sum(values) / 5 for values in FOUR_SESSIONS]
    within = sum(variance(values) for values in FOUR_SESSIONS) / 4
    assert session_deviation(FOUR_SESSIONS) == pytest.approx(math.sqrt(variance(means) - within / 5))


def test_sessions_closer_than_their_noise_have_no_deviation() -> None:
    assert session_deviation([[1, 9], [2, 8], [3, 7]]) == 0


def test_single_runs_count_wholly_as_session_spread() -> None:
    assert session_deviation([[1], [2], [3]]) == pytest.approx(1)


def test_sessions_of_unequal_size_share_the_noise_by_their_runs() -> None:
    # means 2, 5, 9 of 3, 1, 2 runs, within-session variances 1 and 2
    expected = variance([2, 5, 9]) - 1.5 * (1 / 3 + 1 + 1 / 2) / 3
    assert session_deviation([[1, 2, 3], [5], [8, 10]]) == pytest.approx(math.sqrt(expected))


@pytest.mark.parametrize(
    ("count", "t"), [(4, 2.3534), (5, 2.1318), (6, 2.0150), (7, 1.9432), (8, 1.8946), (12, 1.8946)]
)
def test_estimated_spread_uses_student_of_its_sessions(count: int, t: float) -> None:
    sessions = [[float(i)] for i in range(count)]
    expected = math.sqrt(1 + 1 / count) * t * math.sqrt(variance(range(count)))
    assert session_half_width(sessions, 0.1, 0.05) == pytest.approx(expected)


def test_three_sessions_give_no_estimate() -> None:
    assert session_half_width([[1.0], [50.0], [99.0]], 0.0, 0.05) == 0


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 5, 0, 45.07),
        (1, 5, 1.02, 65.74),
        (2, 5, 7.64, 81.07),
        (0, 299, 0, 1.00),
        (9, 150, 3.17, 10.24),
    ],
)
def test_rate_bounds_of_the_printed_table(k: int, n: int, low: float, high: float) -> None:
    assert [100 * bound for bound in clopper_pearson(k, n)] == pytest.approx([low, high], abs=0.005)


@pytest.mark.parametrize(("events", "runs"), [(0, (299, 149, 59, 29)), (1, (473, 236, 93, 46))])
def test_runs_that_show_a_rate_below_a_limit(events: int, runs: Sequence[int]) -> None:
    for limit, n in zip((0.01, 0.02, 0.05, 0.10), runs, strict=True):
        assert clopper_pearson(events, n)[1] < limit <= clopper_pearson(events, n - 1)[1]


@pytest.mark.parametrize(
    ("events", "runs"),
    [(0, [299, 149, 59, 29]), (1, [473, 236, 93, 46])],
)
def test_fewest_runs_of_the_printed_table(events: int, runs: list[int]) -> None:
    assert [clean_runs(limit, events) for limit in (0.01, 0.02, 0.05, 0.10)] == runs


@patient
@given(st.floats(0.005, 0.999), st.integers(0, 6), st.sampled_from([0.05, 0.025, 0.1]))
def test_fewest_runs_bring_the_bound_below_the_rate_and_one_less_does_not(
    rate: float, events: int, alpha: float
) -> None:
    n = clean_runs(rate, events, alpha)
    assert clopper_pearson(events, n, alpha)[1] <= rate + 1e-9
    assert n == events + 1 or clopper_pearson(events, n - 1, alpha)[1] >= rate - 1e-9


@patient
@given(st.floats(1e-4, 0.5), st.floats(1e-4, 0.5), st.integers(0, 9))
def test_a_smaller_rate_or_one_more_event_takes_more_runs(one: float, other: float, events: int) -> None:
    small, large = sorted((one, other))
    assert clean_runs(small, events) >= clean_runs(large, events)
    assert clean_runs(large, events + 1) > clean_runs(large, events)


def test_very_small_rates_are_found_by_doubling() -> None:
    # no event: the rule of three, -ln(.05) / rate, here 2.9957 million runs
    assert clean_runs(1e-6) == pytest.approx(2_995_732, abs=2)


@pytest.mark.parametrize(("rate", "events"), [(0, 0), (1, 0), (5, 0), (-0.1, 0), (math.nan, 0), (0.05, -1)])
def test_impossible_rates_are_refused(rate: float, events: int) -> None:
    words = (
        rf"^clean_runs\(\): rate={rate} with events={events}; legal are 0 < rate < 1, a fraction \(0.05 for 5 %\), and"
    )
    with pytest.raises(ValueError, match=words):
        clean_runs(rate, events)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 10), (1, 135), (12, 19), (150, 150)])
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_rate_bounds_leave_exactly_alpha_in_the_tail(k: int, n: int, alpha: float) -> None:
    low, high = clopper_pearson(k, n, alpha)
    assert (low == 0) == (k == 0)
    assert (high == 1) == (k == n)
    if k < n:
        assert at_most(k, n, high) == pytest.approx(alpha, rel=1e-9)
    if k:
        assert 1 - at_most(k - 1, n, low) == pytest.approx(alpha, rel=1e-9)


def at_most(k: int, n: int, p: float) -> float:
    rate = Fraction(p)
    return float(sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1)))


def test_rate_bounds_of_very_many_runs() -> None:
    # no event: (1 - p)^n = alpha, also where the binomial coefficients of k > 0 leave a float's range
    assert clopper_pearson(0, 5000)[1] == pytest.approx(1 - 0.05 ** (1 / 5000), rel=1e-9)
    low, high = clopper_pearson(600, 1200)
    assert low + high == pytest.approx(1)
    assert high - low == pytest.approx(2 * 1.645 * math.sqrt(0.25 / 1200), rel=0.02)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"k={k} events in n={n} runs; legal are n >= 1 and 0 <= k <= n"):
        clopper_pearson(k, n)
