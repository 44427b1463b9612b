"""From measured runs to judged rows: each verdict, its numbers in the metric's unit, and its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, Row, Spec, Verdict
from pytest_llmperf.verdicts import against_baseline, against_floor, disagreement
from tests.builders import CONDITIONS, baseline, measured, session, spec

STEADY = replace(spec(), session_sd={"total_throughput": 0.0, "ttft": 0.0, "overlap_efficiency": 0.0})
AROUND = (1.0, 1.01, 0.99, 1.005, 0.995)


def around(middle: float) -> list[float]:
    return [middle * factor for factor in AROUND]


def recorded(metric: str, *sessions: Sequence[float]) -> Baseline:
    return baseline(*(session(**{metric: values}) for values in sessions))


def today(metric: str, values: Sequence[float]) -> Measured:
    return measured(session(**{metric: values}))


def judged(metric: str, before: Sequence[float], now: Sequence[float], of: Spec = STEADY) -> Row:
    return against_baseline(metric, of, today(metric, now), recorded(metric, before))


@pytest.mark.parametrize(
    ("metric", "before", "now", "worsening"),
    [
        ("total_throughput", 100, 80, 0.20),
        ("total_throughput", 100, 125, -0.25),
        ("ttft", 400, 600, 0.50),
        ("ttft", 400, 300, -0.25),
        ("overlap_efficiency", 98, 90, 8.0),
        ("overlap_efficiency", 90, 98, -8.0),
        ("queue_wait", 0, 80, 80.0),
        ("queue_wait", 80, 0, -80.0),
    ],
)
def test_runs_without_noise_have_the_change_that_is_seen(
    metric: str, before: float, now: float, worsening: float
) -> None:
    row = judged(metric, [before] * 5, [now] * 5, replace(STEADY, session_sd={metric: 0.0}))
    assert (row.change, row.low, row.high) == pytest.approx((worsening,) * 3)
    assert (row.baseline, row.value) == (before, now)
    assert row.verdict == ("regressed" if worsening > 0 else "improved")
    assert row.reason == "no run-to-run variation: mocked or cached server?"
    assert (row.runs, row.baseline_runs, row.floor) == (5, 5, False)


def test_a_declared_session_deviation_widens_the_interval() -> None:
    row = judged("total_throughput", [100] * 5, [80] * 5, replace(spec(), session_sd={"total_throughput": 0.02}))
    half = math.sqrt(2) * 1.6449 * 0.02  # of one baseline session and today's, one-sided at .05
    assert row.low == pytest.approx(1 - 0.8 * math.exp(half))
    assert row.high == pytest.approx(1 - 0.8 * math.exp(-half))


def test_the_metrics_own_session_deviation_counts_where_none_is_declared() -> None:
    row = judged("ttft", [400] * 5, [400] * 5, spec())
    assert row.high == pytest.approx(math.exp(math.sqrt(2) * 1.6449 * 0.10) - 1)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (around(100), "held"),
        (around(99), "held"),
        (around(110), "improved"),
        (around(90), "regressed"),
        ([90, 100, 85, 104, 95], "inconclusive"),
        (around(95.5), "inconclusive"),  # worse for sure, yet within the margin
    ],
)
def test_each_verdict_of_a_comparison(now: list[float], verdict: Verdict) -> None:
    row = judged("total_throughput", around(100), now)
    assert row.verdict == verdict
    assert row.margin == 0.05
    assert bool(row.reason) == (verdict == "inconclusive")


def test_an_inconclusive_row_says_what_would_decide() -> None:
    row = judged("total_throughput", around(100), [90, 100, 85, 104, 95])
    assert row.reason == (
        "runs differ too much among themselves: even 100 candidate runs would not tell the estimate from the margin"
    )


def test_too_few_runs_have_no_bounds() -> None:
    row = judged("ttft", around(400), [300])
    assert row.verdict == "inconclusive"
    assert row.change == pytest.approx(-0.25)
    assert math.inf in (row.high, row.low)
    assert row.reason.startswith("5 baseline and 1 candidate runs can't decide")


def test_a_margin_of_the_mark_goes_before_the_metrics_own() -> None:
    wide = replace(STEADY, margins={"total_throughput": 0.25})
    row = judged("total_throughput", around(100), around(80), wide)
    assert (row.verdict, row.margin) == ("held", 0.25)


def test_all_sessions_of_the_baseline_count() -> None:
    row = against_baseline(
        "ttft", STEADY, today("ttft", around(400)), recorded("ttft", around(380), around(420), around(400))
    )
    assert (row.baseline, row.baseline_runs, row.runs) == (400, 15, 5)


def test_a_fired_trigger_voids_the_verdict_and_keeps_the_change_as_an_indication() -> None:
    other = {**CONDITIONS, "agent.options.num_ctx": 1024, "server": "ollama 0.13.0"}
    now = replace(today("total_throughput", [80] * 5), conditions=other)
    row = against_baseline("total_throughput", STEADY, now, recorded("total_throughput", [100] * 5))
    assert row.verdict == "not comparable"
    assert (row.change, row.low, row.high) == pytest.approx((0.2, 0.2, 0.2))
    assert row.reason.splitlines() == [
        "agent.options.num_ctx: 512 -> 1024 (this change declares another workload)",
        "server: ollama 0.12.3 -> ollama 0.13.0 (the runner changed, not this change)",
    ]


def test_a_metric_the_baseline_does_not_have_is_no_baseline() -> None:
    row = against_baseline("ttft", spec(), today("ttft", around(400)), recorded("total_throughput", around(100)))
    assert (row.verdict, row.value, row.runs) == ("no baseline", 400, 5)
    assert row.reason == "the baseline was recorded without this metric"
    assert (row.baseline, row.change) == (None, None)


def test_a_metric_no_run_has_is_invalid() -> None:
    now = today("total_throughput", around(100))
    words = "no run gave a value; it may need several agents, or this server may not report it"
    for row in (against_baseline("ttft", spec(), now, recorded("ttft", [1])), against_floor("ttft", now, 500)):
        assert (row.verdict, row.value, row.runs, row.reason) == ("invalid", None, 0, words)


@pytest.mark.parametrize(
    ("before", "now", "where", "least"),
    [([0.0, *around(18)], around(18), "baseline", 0), (around(18), [*around(18), -1.5], "measurement", -1.5)],
)
def test_what_is_not_above_zero_has_no_change_in_percent(
    before: list[float], now: list[float], where: str, least: float
) -> None:
    row = judged("itl_p50", before, now)
    assert row.verdict == "invalid"
    assert row.reason == (
        f"a run of the {where} has {least:g} ms, and only values above 0 can change by a share; "
        "take it out of metrics=, or hold it by floors="
    )
    assert row.runs == len(now)


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
    assert (row.verdict, row.margin, row.floor, row.runs) == (verdict, floor, True, 5)
    assert (row.low, row.high) == pytest.approx(ends)
    assert (row.value, row.baseline, row.change) == (values[0], None, None)
    between = "the floor lies between the bounds of these runs: more runs would help"
    assert row.reason == (between if verdict == "inconclusive" else "")


def test_a_floor_needs_five_runs() -> None:
    row = against_floor("ttft", today("ttft", around(400)[:4]), 500)
    assert row.verdict == "inconclusive"
    assert row.reason == "4 runs can't decide: 5 runs are needed for a bound at level .05"
    assert (row.low, row.high) == (-math.inf, math.inf)


def test_other_conditions_do_not_void_a_floor() -> None:
    now = replace(today("ttft", around(400)), conditions={**CONDITIONS, "server": "ollama 9"})
    assert against_floor("ttft", now, 500).verdict == "held"


@given(
    before=st.lists(st.floats(1, 1e4), min_size=1, max_size=8),
    now=st.lists(st.floats(1, 1e4), min_size=1, max_size=8),
    metric=st.sampled_from(["total_throughput", "ttft", "overlap_efficiency"]),
)
def test_any_runs_give_a_row_whose_interval_holds_its_change(
    before: list[float], now: list[float], metric: str
) -> None:
    row = judged(metric, before, now)
    assert row.verdict in {"held", "improved", "inconclusive", "regressed"}
    assert row.change is not None
    assert row.low is not None
    assert row.high is not None
    slack = 1e-9 * (1 + abs(row.change))
    assert row.low - slack <= row.change <= row.high + slack


OPPOSITE = (
    "overlap_efficiency and total_throughput point in opposite directions: overlap only measures how evenly the "
    "agents end, total_throughput how much work is done; trust total_throughput"
)


def moved(metric: str, low: float, high: float) -> Row:
    return Row(metric=metric, verdict="held", change=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("overlap", "total", "said"),
    [
        ((8, 10), (-0.2, -0.1), OPPOSITE),
        ((-10, -8), (0.1, 0.2), OPPOSITE),
        ((8, 10), (0.1, 0.2), None),
        ((-10, -8), (-0.2, -0.1), None),
        ((-1, 10), (-0.2, -0.1), None),
        ((8, 10), (-0.2, 0.1), None),
        ((0, 10), (-0.2, -0.1), None),
        ((-10, 0), (0.1, 0.2), None),
    ],
)
def test_balance_against_work_done_is_said_when_both_are_sure(
    overlap: tuple[float, float], total: tuple[float, float], said: str | None
) -> None:
    rows = [moved("total_throughput", *total), moved("overlap_efficiency", *overlap), moved("ttft", 0.1, 0.2)]
    assert disagreement(rows) == said


def test_floors_and_single_metrics_disagree_with_nothing() -> None:
    better, worse = moved("overlap_efficiency", -10, -8), moved("total_throughput", 0.1, 0.2)
    assert disagreement([better, worse]) == OPPOSITE
    assert disagreement([better]) is None
    assert disagreement([replace(better, floor=True), worse]) is None
    assert disagreement([better, Row(metric="total_throughput", verdict="invalid")]) is None
    assert disagreement([]) is None
