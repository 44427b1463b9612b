"""The statistics, written without dependencies, against scipy, which nothing but these tests imports."""

import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from statistics import fmean, stdev

import pytest
from scipy import stats as scipy

from pytest_llmperf.stats import (
    CRITICAL,
    MIN_SESSIONS,
    STUDENT_99,
    clean_runs,
    clopper_pearson,
    cold_start,
    hodges_lehmann,
    kendall_p,
    mann_whitney_rank,
    session_deviation,
    session_half_width,
    walsh_averages,
    walsh_bounds,
)

LEVELS = sorted(CRITICAL)


def normal(random: Random, n: int, mean: float = 100.0) -> list[float]:
    return [random.gauss(mean, 5) for _ in range(n)]


def beside(bound: float, ordered: Sequence[float]) -> tuple[float, float]:
    """A shift just below a bound and one just above: on the bound samples tie, which exact p-values ignore."""
    gap = min(high - low for low, high in pairwise(ordered))
    assert gap > 1e-9
    return bound - gap / 3, bound + gap / 3


def with_statistic(u: int, m: int, n: int) -> tuple[list[float], list[float]]:
    """m and n values without a tie, with Mann-Whitney statistic u of the first."""
    wins = [n] * (u // n) + [u % n] * (u < m * n)
    return [won - 0.5 + i / 1000 for i, won in enumerate(wins + [0] * (m - len(wins)))], [float(i) for i in range(n)]


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize(("m", "n"), [(1, 6), (3, 3), (5, 3), (5, 5), (9, 10), (20, 5), (20, 7), (20, 10), (40, 10)])
def test_rank_is_the_last_exact_mann_whitney_p_within_the_level(m: int, n: int, alpha: float) -> None:
    def p(u: int) -> float:
        found = scipy.mannwhitneyu(*with_statistic(u, m, n), alternative="less", method="exact")
        assert found.statistic == u
        return float(found.pvalue)

    rank = mann_whitney_rank(m, n, alpha)
    # 1e-12 for 3 against 3, where p is .05 but for the last bit
    assert rank == 0 or p(rank - 1) <= alpha + 1e-12
    assert p(rank) > alpha + 1e-12


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize(("m", "n"), [(5, 5), (5, 10), (20, 5), (12, 7)])
def test_shift_bounds_invert_the_exact_mann_whitney_test(m: int, n: int, alpha: float) -> None:
    random = Random(m * n)
    base, candidate = normal(random, m), normal(random, n, 97)

    def p(shift: float, alternative: str) -> float:
        moved = [value + shift for value in candidate]
        return float(scipy.mannwhitneyu(base, moved, alternative=alternative, method="exact").pvalue)

    ordered = sorted(b - c for b in base for c in candidate)
    _, low, high = hodges_lehmann(base, candidate, alpha)
    refused, kept = beside(low, ordered)
    assert p(refused, "greater") <= alpha < p(kept, "greater")
    kept, refused = beside(high, ordered)
    assert p(refused, "less") <= alpha < p(kept, "less")


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("n", [7, 8, 10, 14])
def test_location_bounds_invert_the_exact_wilcoxon_test(n: int, alpha: float) -> None:
    values = normal(Random(n), n)

    def p(location: float, alternative: str) -> float:
        moved = [value - location for value in values]
        return float(scipy.wilcoxon(moved, alternative=alternative, method="exact").pvalue)

    bounds = walsh_bounds(values, alpha)
    assert bounds is not None
    refused, kept = beside(bounds[0], walsh_averages(values))
    assert p(refused, "greater") <= alpha < p(kept, "greater")
    kept, refused = beside(bounds[1], walsh_averages(values))
    assert p(refused, "less") <= alpha < p(kept, "less")


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10, 20])
def test_trend_is_the_exact_kendall_test(n: int) -> None:
    random = Random(n)
    for _ in range(20):
        values = [value - random.random() * i for i, value in enumerate(normal(random, n))]
        expected = scipy.kendalltau(range(n), values, alternative="less", method="exact").pvalue
        assert kendall_p(values) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 59, 150, 473])
@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.01])
def test_rate_bounds_are_those_of_the_exact_binomial_test(n: int, alpha: float) -> None:
    for k in sorted({0, 1, n // 10, n // 2, n - 1, n}):
        # two-sided at 2 alpha: a one-sided alternative would move the other bound to 0 or 1
        expected = scipy.binomtest(k, n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact")
        assert clopper_pearson(k, n, alpha) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("events", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("rate", [0.0003, 0.01, 0.05, 0.3, 0.97])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_fewest_runs_are_the_first_below_the_level(events: int, rate: float, alpha: float) -> None:
    n = clean_runs(rate, events, alpha)
    assert scipy.binom.cdf(events, n, rate) < alpha <= scipy.binom.cdf(events, n - 1, rate)


def test_critical_values_to_the_printed_digits() -> None:
    for alpha, (z, student) in CRITICAL.items():
        assert z == round(scipy.norm.ppf(1 - alpha), 4)
        assert student == tuple(round(scipy.t.ppf(1 - alpha, MIN_SESSIONS - 1 + i), 4) for i in range(len(student)))
    assert list(STUDENT_99) == [round(scipy.t.ppf(0.99, df), 4) for df in range(1, 9)]


@pytest.mark.parametrize("n", range(3, 11))
def test_a_cold_first_run_is_one_student_gives_a_chance_in_a_hundred(n: int) -> None:
    random = Random(n)
    cold = 0
    for _ in range(200):
        values = [random.gauss(75, 20), *normal(random, n - 1)]
        t = (values[0] - fmean(values[1:])) / (stdev(values[1:]) * math.sqrt(1 + 1 / (n - 1)))
        p = scipy.t.cdf(t, n - 2)
        assert cold_start(values) == (p < 0.01)
        cold += cold_start(values)
    assert 0 < cold < 200


@pytest.mark.parametrize(("sessions", "runs"), [(4, 5), (8, 5), (5, 3)])
def test_session_deviation_is_the_between_component_of_anova(sessions: int, runs: int) -> None:
    # groups of equal size: F is the mean square between over that within, and s_b^2 their difference over the size
    random = Random(sessions)
    for offset in (0.0, 3.0, 30.0):
        groups = [normal(random, runs, random.gauss(100, offset)) for _ in range(sessions)]
        within = fmean(stdev(group) ** 2 for group in groups)
        between = max(0.0, (scipy.f_oneway(*groups).statistic - 1) * within / runs)
        assert session_deviation(groups) == pytest.approx(math.sqrt(between), abs=1e-6)


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize("count", range(4, 9))
def test_sessions_of_one_run_give_students_prediction_interval(count: int, alpha: float) -> None:
    means = normal(Random(count), count)
    low, high = scipy.t.interval(1 - 2 * alpha, count - 1, scale=stdev(means) * math.sqrt(1 + 1 / count))
    width = session_half_width([[mean] for mean in means], 0.0, alpha)
    assert (-width, width) == pytest.approx((low, high), rel=1e-4)
