"""Exact small-sample statistics of the gate: shifts and their bounds, trends, session spread, rates.

All bounds are one-sided. Ranks come from exact integer counts, so that 3 against 3 runs at level .05 is decided by
20 orders and not by the last bit of a float. Standard library only.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, combinations, combinations_with_replacement
from statistics import fmean, median

CRITICAL: Mapping[float, tuple[float, tuple[float, ...]]] = {
    0.05: (1.6449, (2.3534, 2.1318, 2.0150, 1.9432, 1.8946)),
    0.03: (1.8808, (2.9505, 2.6008, 2.4216, 2.3133, 2.2409)),
    0.025: (1.9600, (3.1824, 2.7764, 2.5706, 2.4469, 2.3646)),
    0.02: (2.0537, (3.4819, 2.9985, 2.7565, 2.6122, 2.5168)),
}
"""By level alpha: z(1 - alpha), and Student's t(1 - alpha, J - 1) for J = 4, 5, 6, 7, and 8 or more sessions."""

STUDENT_99: Sequence[float] = (31.8205, 6.9646, 4.5407, 3.7469, 3.3649, 3.1427, 2.9980, 2.8965)
"""Student's t(.99, df) for df = 1, 2, ..., 7, and 8 or more degrees of freedom."""

MIN_SESSIONS = 4
"""Fewer session means say too little about their own spread: t(.95) on 2 degrees of freedom is already 2.9."""


def hodges_lehmann(base: Sequence[float], candidate: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """The shift base - candidate with its lower and its upper bound, each at level alpha, in the values' unit.

    The shift is the median of all m * n differences, the bounds are the k-th from either end, k by the exact
    Mann-Whitney test (Hodges & Lehmann 1963); -inf and inf where there are too few runs for a bound.
    """
    differences = sorted(b - c for b in base for c in candidate)
    rank = mann_whitney_rank(len(base), len(candidate), alpha)
    low, high = (differences[rank - 1], differences[-rank]) if rank else (-math.inf, math.inf)
    return median(differences), low, high


@lru_cache(maxsize=256)
def mann_whitney_rank(m: int, n: int, alpha: float) -> int:
    """The largest k with P(U <= k - 1) <= alpha under the exact null of m against n values; 0: no bound exists.

    The counts of U are the coefficients of the Gaussian binomial (m + n over n) in q, the product over i = 1..n of
    (1 - q^(m+i)) / (1 - q^i).
    """
    few, many = sorted((m, n))
    counts = [1] + [0] * (few * many)
    for i in range(1, few + 1):
        for u in range(len(counts) - 1, many + i - 1, -1):
            counts[u] -= counts[u - many - i]
        for u in range(i, len(counts)):
            counts[u] += counts[u - i]
    return _rank(counts, alpha)


def runs_needed(m: int, alpha: float) -> int:
    """The fewest candidate runs with a bound against m >= 1 baseline runs: the least n with C(m+n, n) >= 1/alpha."""
    n = 1
    while math.comb(m + n, n) * _exact(alpha) < 1:
        n += 1
    return n


def walsh_averages(values: Sequence[float]) -> list[float]:
    """The n(n+1)/2 means of all pairs, each value with itself included, sorted; their median estimates the location."""
    return sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))


def walsh_bounds(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float] | None:
    """A lower and an upper bound of the location, each at level alpha; None for too few values, n < 5 at .05.

    The k-th Walsh average from either end, k by the exact null of Wilcoxon's signed-rank test.
    """
    rank = _signed_rank(len(values), alpha)
    averages = walsh_averages(values)
    return (averages[rank - 1], averages[-rank]) if rank else None


@lru_cache(maxsize=64)
def _signed_rank(n: int, alpha: float) -> int:
    """The largest k with P(W <= k - 1) <= alpha, W the sum of a random subset of the ranks 1..n."""
    counts = [1] + [0] * (n * (n + 1) // 2)
    for i in range(1, n + 1):
        for w in range(len(counts) - 1, i - 1, -1):
            counts[w] += counts[w - i]
    return _rank(counts, alpha)


def _rank(counts: Sequence[int], alpha: float) -> int:
    return bisect_right(list(accumulate(counts)), _exact(alpha) * sum(counts))


def _exact(alpha: float) -> Fraction:
    return Fraction(str(alpha))


def kendall_p(values: Sequence[float]) -> float:
    """The exact one-sided p of Kendall's test that values fall in their order (Mann 1945); 1.0 for fewer than 2.

    The share of all n! orders with as many inversions or more; a tied pair counts as not falling, on the safe side.
    """
    counts = _inversions(len(values))
    falling = sum(earlier > later for earlier, later in combinations(values, 2))
    return sum(counts[falling:]) / sum(counts)


@lru_cache(maxsize=64)
def _inversions(n: int) -> Sequence[int]:
    """How many of the n! orders have 0, 1, 2, ... inversions (Mahonian numbers), product of 1 + q + ... + q^(i-1)."""
    counts = [1] + [0] * (n * (n - 1) // 2)
    for i in range(2, n + 1):
        sums = [0] * i + list(accumulate(counts))
        counts = [sums[k + i] - sums[k] for k in range(len(counts))]
    return tuple(counts)


def cold_start(values: Sequence[float]) -> bool:
    """Whether the first value lies below the prediction limit of the n - 1 others; never for fewer than 3 values.

    mean - t s sqrt(1 + 1/(n - 1)) on n - 2 degrees of freedom, one-sided at level .01 (Hahn & Meeker 1991). Larger is
    better: negate latencies.
    """
    others = values[1:]
    if len(others) < 2:
        return False
    t = STUDENT_99[min(len(others) - 1, len(STUDENT_99)) - 1]
    return values[0] < fmean(others) - t * math.sqrt(_variance(others) * (1 + 1 / len(others)))


def session_half_width(sessions: Sequence[Sequence[float]], declared: float, alpha: float) -> float:
    """How far the offset of J baseline sessions and the candidate's own may move a shift, at level alpha.

    sqrt(1 + 1/J) * max(z declared, t s_b), the second from 4 sessions on. `declared` is the standard deviation of a
    session's offset in the values' unit, s_b its estimate; alpha is one of the levels in CRITICAL.
    """
    count = len(sessions)
    z, student = CRITICAL[alpha]
    spread = z * declared
    if count >= MIN_SESSIONS:
        t = student[min(count - MIN_SESSIONS, len(student) - 1)]
        spread = max(spread, t * session_deviation(sessions))
    return math.sqrt(1 + 1 / count) * spread


def session_deviation(sessions: Sequence[Sequence[float]]) -> float:
    """s_b = sqrt(max(0, var(session means) - mean within-session variance / runs per session)), 2 sessions or more.

    Sessions of one run have no variance of their own: without any other the whole spread counts as s_b.
    """
    within = [_variance(values) for values in sessions if len(values) > 1]
    noise = fmean(within) * fmean(1 / len(values) for values in sessions) if within else 0.0
    return math.sqrt(max(0.0, _variance([fmean(values) for values in sessions]) - noise))


def _variance(values: Sequence[float]) -> float:
    # statistics.variance sums fractions: 0.1 ms for 4 sessions of 5, a third of what a whole verdict takes
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def clopper_pearson(k: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """A lower and an upper bound, each at level alpha, of the rate behind k events in n runs (Clopper & Pearson 1934).

    Raises ValueError unless 0 <= k <= n and n >= 1.
    """
    if not (n >= 1 and 0 <= k <= n):
        raise ValueError(f"clopper_pearson(): k={k} events in n={n} runs; legal are n >= 1 and 0 <= k <= n")
    return 1 - _largest_rate(n - k, n, alpha), _largest_rate(k, n, alpha)


def clean_runs(rate: float, events: int = 0, alpha: float = 0.05) -> int:
    """The fewest runs that show a rate below `rate`, a fraction, with that many events among them: 59 for .05 and none.

    The least n at which the upper Clopper-Pearson bound of events in n lies below the rate. Raises ValueError unless
    0 < rate < 1 and events >= 0.
    """
    if not (0 < rate < 1 and events >= 0):
        legal = "0 < rate < 1, a fraction (0.05 for 5 %), and events >= 0"
        raise ValueError(f"clean_runs(): rate={rate} with events={events}; legal are {legal}")

    def show(n: int) -> bool:
        return _at_most(_log_ways(events, n), n, rate) < alpha

    n = events + 1
    while not show(n):
        n *= 2
    return bisect_left(range(n), x=True, lo=max(events + 1, n // 2), key=show)


def _largest_rate(k: int, n: int, alpha: float) -> float:
    """The rate p at which k or fewer events of n still have probability alpha, by bisection."""
    if k == n:
        return 1.0
    ways = _log_ways(k, n)
    low, high = 0.0, 1.0
    while low < (p := (low + high) / 2) < high:
        low, high = (p, high) if _at_most(ways, n, p) > alpha else (low, p)
    return p


def _log_ways(k: int, n: int) -> list[float]:
    # math.comb(n, i) itself leaves a float's range from n = 1030 on
    return [math.log(math.comb(n, i)) for i in range(k + 1)]


def _at_most(log_ways: Sequence[float], n: int, p: float) -> float:
    """The probability of as many events of n at rate p as there are ways given, or fewer."""
    hit, miss = math.log(p), math.log1p(-p)
    return math.fsum(math.exp(ways + i * hit + (n - i) * miss) for i, ways in enumerate(log_ways))
