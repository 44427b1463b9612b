"""Floors, levels of policies and the share of contended runs as rows: verdicts, bounds and the words beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.limits import against_contention, against_floor, against_level, decided, judge_rate
from pytest_llmperf.measured import Measured
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import Contended, Contention, Sample, Session, Verdict
from pytest_llmperf.policies import POLICIES, Level
from tests import builders
from tests.builders import CONDITIONS, measured, session

patient = settings(deadline=None, max_examples=80)

BETWEEN = "the floor lies between the bounds of these runs: more runs would help"
AROUND = (1.0, 1.01, 0.99, 1.005, 0.995)
TTFT = next(level for level in POLICIES["appendix-h2"].levels if level.metric == "ttft")


def around(middle: float) -> list[float]:
    return [middle * factor for factor in AROUND]


def today(metric: str, values: Sequence[float]) -> Measured:
    return measured(session(**{metric: values}))


def flagged(events: int, runs: int) -> Measured:
    return today("contention_rate", [100.0] * events + [0.0] * (runs - events))


@pytest.mark.parametrize(
    ("metric", "values", "floor", "verdict", "ends"),
    [
        ("total_throughput", [80, 81, 79, 80.4, 79.6], 90, "regressed", (79, 81)),
        ("total_throughput", [80, 81, 79, 80.4, 79.6], 79, "held", (79, 81)),
        ("total_throughput", [80, 81, 79, 80.4, 79.6], 80, "inconclusive", (79, 81)),
        ("ttft", [400, 410, 390, 405, 395], 500, "held", (390, 410)),
        ("ttft", [400, 410, 390, 405, 395], 389, "regressed", (390, 410)),
        ("ttft", [400, 410, 390, 405, 395], 400, "inconclusive", (390, 410)),
    ],
)
def test_a_floor_is_judged_on_bounds_in_the_metrics_unit(
    metric: str, values: list[float], floor: float, verdict: Verdict, ends: tuple[float, float]
) -> None:
    row = against_floor(metric, today(metric, values), floor)
    assert (row.verdict, row.margin, row.against, row.policy, row.runs) == (verdict, floor, "floor", "", 5)
    assert (row.low, row.high) == pytest.approx(ends)
    assert (row.value, row.baseline, row.change) == (values[0], None, None)
    assert row.reason == (BETWEEN if verdict == "inconclusive" else "")


@pytest.mark.parametrize(("metric", "middle", "floor"), [("ttft", 400, 500), ("total_throughput", 400, 300)])
def test_a_floor_catches_one_and_a_half_half_widths_and_more_runs_would_sharpen_it(
    metric: str, middle: float, floor: float
) -> None:
    row = against_floor(metric, today(metric, around(middle)), floor)
    assert row.catches80 == pytest.approx(1.5 * 0.01 * middle)  # the bounds of 5 runs are the extreme ones
    assert row.sharper == "runs"


def test_a_floor_needs_five_runs() -> None:
    row = against_floor("ttft", today("ttft", around(400)[:4]), 500)
    assert (row.verdict, row.low, row.high, row.catches80) == ("inconclusive", -math.inf, math.inf, None)
    assert row.reason == "4 runs can't decide: 5 runs are needed for a bound at level .05"


def test_the_kept_runs_of_every_session_count() -> None:
    first, second = session(ttft=around(400)[:3]), session(ttft=around(400)[3:])
    discarded = Session((Sample({"ttft": 9e9}, kept=False), *second.samples))
    row = against_floor("ttft", measured(first, discarded), 500)
    assert (row.verdict, row.runs) == ("held", 5)


def test_other_conditions_do_not_void_a_floor() -> None:
    now = replace(today("ttft", around(400)), conditions={**CONDITIONS, "server": "ollama 9"})
    assert against_floor("ttft", now, 500).verdict == "held"


def test_a_metric_no_run_has_is_invalid() -> None:
    now = today("total_throughput", around(100))
    words = "no run gave a value; it may need several agents, or this server may not report it"
    for row in (against_floor("ttft", now, 2000), against_level("appendix-h2", TTFT, now)):
        assert (row.verdict, row.value, row.runs, row.margin, row.reason) == ("invalid", None, 0, 2000, words)


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        (around(900), "held", ""),
        (around(1000), "held", ""),
        (around(1100), "held", "warning: beyond 1000 ms (appendix-h2, warning) for sure"),
        (
            around(2000),
            "inconclusive",
            f"{BETWEEN}; warning: beyond 1000 ms (appendix-h2, warning) for sure",
        ),
        (around(2100), "regressed", ""),
        (around(1900)[:4], "inconclusive", "4 runs can't decide: 5 runs are needed for a bound at level .05"),
    ],
)
def test_a_level_is_judged_on_its_critical_value_and_warns(values: list[float], verdict: Verdict, reason: str) -> None:
    row = against_level("appendix-h2", TTFT, today("ttft", values))
    assert (row.verdict, row.reason) == (verdict, reason)
    assert (row.margin, row.against, row.policy) == (2000, "floor", "appendix-h2, critical")


@pytest.mark.parametrize(
    ("level", "values", "reason"),
    [
        (
            Level(metric="speedup", warning=1.95, critical=1.90),
            [1.92] * 5,
            "warning: beyond 1.95 x (mine, warning) for sure",
        ),
        (
            Level(metric="overlap_efficiency", warning=97, critical=95),
            [96] * 5,
            "warning: beyond 97 % (mine, warning) for sure",
        ),
        (Level(metric="overlap_efficiency", warning=97, critical=95), [97] * 5, ""),
        (Level(metric="overlap_efficiency", critical=95), [95] * 5, ""),
    ],
)
def test_more_is_better_warns_below_and_no_warning_is_none(level: Level, values: list[float], reason: str) -> None:
    row = against_level("mine", level, today(level.metric, values))
    assert (row.verdict, row.reason) == ("held", reason)


@patient
@given(
    values=st.lists(st.floats(1, 5000), min_size=1, max_size=10),
    level=st.sampled_from([level for policy in POLICIES.values() for level in policy.levels]),
)
def test_a_warning_never_changes_a_verdict(values: list[float], level: Level) -> None:
    now = today(level.metric, values)
    judged, floor = against_level("mine", level, now), against_floor(level.metric, now, level.critical)
    assert replace(judged, policy="", reason=floor.reason) == floor
    if judged.reason != floor.reason:
        assert level.warning is not None
        beyond = min if METRICS[level.metric].better == "higher" else max
        assert beyond(*values, level.warning) != level.warning


@pytest.mark.parametrize(
    ("events", "runs", "verdict", "low", "high"),
    [
        (0, 5, "inconclusive", 0, 45.07),
        (1, 5, "inconclusive", 1.02, 65.74),
        (2, 5, "regressed", 7.64, 81.07),
        (0, 299, "held", 0, 1.00),
        (9, 150, "regressed", 3.17, 10.24),
    ],
)
def test_a_rate_is_judged_on_its_exact_bounds(
    events: int, runs: int, verdict: Verdict, low: float, high: float
) -> None:
    found = judge_rate(events, runs, Contention(target=2, limit=5))
    assert found[0] == verdict
    assert found[1:] == pytest.approx((low, high), abs=0.005)


def test_a_rate_that_touches_a_line_is_over_neither() -> None:
    _, low, high = judge_rate(2, 5, Contention())
    assert judge_rate(2, 5, Contention(target=low, limit=high))[0] == "inconclusive"
    assert judge_rate(2, 5, Contention(target=low, limit=math.nextafter(high, 100)))[0] == "held"
    assert judge_rate(2, 5, Contention(target=math.nextafter(low, 0), limit=high))[0] == "regressed"


@patient
@given(
    counts=st.integers(1, 60).flatmap(lambda runs: st.tuples(st.integers(0, runs), st.just(runs))),
    shares=st.lists(st.floats(0.1, 100), min_size=2, max_size=2).map(sorted),
)
def test_more_contended_runs_never_look_better(counts: tuple[int, int], shares: list[float]) -> None:
    events, runs = counts
    allowed = Contention(target=shares[0], limit=shares[1])
    order: list[Verdict] = ["held", "inconclusive", "regressed"]
    verdicts = [judge_rate(k, runs, allowed)[0] for k in range(max(0, events - 1), events + 1)]
    assert verdicts == sorted(verdicts, key=order.index)
    row = against_contention(allowed, flagged(events, runs))
    assert (row.verdict, row.runs) == (verdicts[-1], runs)
    assert row.value == pytest.approx(100 * events / runs)


CLAIM = "are needed to claim"
ONE = "1 of 5 runs contended:"
STRICT = Contention(target=1, limit=1)


@pytest.mark.parametrize(
    ("events", "runs", "allowed", "verdict", "reason"),
    [
        (
            0,
            5,
            Contention(),
            "inconclusive",
            f"0 of 5 runs contended: compatible with up to 45 %; 59 clean runs {CLAIM} < 5 % (max_runs=)",
        ),
        (
            0,
            10,
            STRICT,
            "inconclusive",
            f"0 of 10 runs contended: compatible with up to 26 %; 299 clean runs {CLAIM} < 1 % (max_runs=)",
        ),
        (
            1,
            5,
            Contention(),
            "inconclusive",
            f"{ONE} compatible with 1.0 % to 66 %; 93 runs with no more than 1 contended {CLAIM} < 5 % (max_runs=)",
        ),
        (1, 5, STRICT, "regressed", f"{ONE} at least 1.02 % for sure, over the target of 1 %"),
        (2, 5, Contention(), "regressed", "2 of 5 runs contended: at least 7.64 % for sure, over the target of 2 %"),
        (
            12,
            19,
            Contention(),
            "regressed",
            "12 of 19 runs contended: at least 41.8 % for sure, over the target of 2 %",
        ),
        (0, 59, Contention(), "held", ""),
        (1, 93, Contention(), "held", ""),
        (0, 5, Contention(target=2, limit=100), "held", ""),
        (
            2,
            2,
            Contention(target=50, limit=100),
            "inconclusive",
            "2 of 2 runs contended: compatible with 22 % to 100 %",
        ),
    ],
)
def test_the_share_of_contended_runs_says_what_it_takes_to_claim_less(
    events: int, runs: int, allowed: Contention, verdict: Verdict, reason: str
) -> None:
    row = against_contention(allowed, flagged(events, runs))
    assert (row.verdict, row.reason) == (verdict, reason)
    assert (row.metric, row.against, row.margin, row.runs) == ("contention_rate", "floor", allowed.limit, runs)
    assert (row.value, row.low, row.high) == (100 * events / runs, *judge_rate(events, runs, allowed)[1:])


UNTOLD = (
    " needs a baseline of ttft to tell whether a run was contended: list a metric in metrics= and record one with "
    "--llmperf-rebaseline, or take contended='speedup < 1.5'"
)


@pytest.mark.parametrize(
    ("contended", "reason"),
    [
        ("ttft doubled", f"'ttft doubled'{UNTOLD}"),
        ("ttft +3 s", f"'ttft +3 s'{UNTOLD}"),
        ("speedup < 1.5", "'speedup < 1.5' needs several agents to tell whether a run was contended"),
    ],
)
def test_runs_that_cannot_be_told_are_no_pass(contended: Contended, reason: str) -> None:
    row = against_contention(Contention(contended=contended), today("ttft", around(400)))
    assert (row.verdict, row.reason) == ("invalid", reason)
    assert (row.value, row.low, row.high, row.margin, row.runs) == (None, None, None, 5, 0)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_value_that_is_none_is_no_floor_held(odd: float) -> None:
    row = against_floor("ttft", measured(session(ttft=[100, 100, 100, 100, odd])), 500)
    assert (row.verdict, row.reason) == ("invalid", f"a run has {odd:g} ms, which is no measured value")


@pytest.mark.parametrize(
    ("floor", "told"),
    [(500, True), (50, True), (100, False)],
)
def test_a_session_may_end_once_every_floor_and_level_is_told(floor: float, told: bool) -> None:
    seen = session(ttft=around(100), overlap_efficiency=[99.0] * 5)
    assert decided(replace(builders.spec(), floors={"ttft": floor}), seen) is told
    held = replace(builders.spec(), floors={"ttft": 500}, policies=("appendix-h2",))
    assert decided(held, seen)
    level = replace(builders.spec(), policies=("appendix-h2",))
    assert not decided(level, session(ttft=around(2000), overlap_efficiency=[99.0] * 5))


def test_more_runs_would_not_tell_what_gives_no_value() -> None:
    assert decided(replace(builders.spec(), floors={"speedup": 1.5}), session(ttft=around(100)))


def test_a_contended_run_is_not_told_by_a_baseline_that_is_not_comparable() -> None:
    seen = measured(session(ttft=around(100)))
    recorded = builders.baseline(session(ttft=around(100)))
    other = replace(recorded, conditions={**recorded.conditions, "agent.options.num_ctx": 1024})
    assert against_contention(Contention(), seen, recorded).verdict == "invalid"
    row = against_contention(Contention(), seen, other)
    assert (row.verdict, row.reason) == ("not comparable", "a contended run is told by the baseline's ttft")


@pytest.mark.parametrize(("most", "told"), [(10, True), (58, True), (59, False), (100, False)])
def test_contention_takes_the_runs_of_a_claim_where_the_mark_allows_for_them(most: int, told: bool) -> None:
    spec = replace(builders.spec(), contention=Contention(), max_runs=most)
    assert decided(spec, session(contention_rate=[0.0] * 10)) is told
    assert decided(spec, session(contention_rate=[0.0] * 59))
    assert decided(spec, session(contention_rate=[100.0] * 10))
