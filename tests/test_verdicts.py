"""From measured runs to judged rows: each verdict, its numbers in the metric's unit, and its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import verdicts
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import Baseline, Sample, Session, Spec, Verdict
from pytest_llmperf.outcome import Row
from pytest_llmperf.verdicts import against_baseline, against_control, disagreement, gain
from tests.builders import CONDITIONS, baseline, measured, session, spec

STEADY = replace(spec(), session_sd={"total_throughput": 0.0, "ttft": 0.0, "overlap_efficiency": 0.0})
AROUND = (1.0, 1.01, 0.99, 1.005, 0.995)
NAN, INF = math.nan, math.inf


def around(middle: float) -> list[float]:
    return [middle * factor for factor in AROUND]


def recorded(metric: str, *sessions: Sequence[float]) -> Baseline:
    return baseline(*(session(**{metric: values}) for values in sessions))


def today(metric: str, *sessions: Sequence[float]) -> Measured:
    return measured(*(session(**{metric: values}) for values in sessions))


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
    assert (row.runs, row.baseline_runs, row.against) == (5, 5, "baseline")


@pytest.mark.parametrize(("max_runs", "z"), [(5, 1.6449), (7, 1.8808), (10, 1.9600), (20, 2.0537)])
def test_a_declared_session_deviation_widens_the_interval_at_the_level_of_the_looks(max_runs: int, z: float) -> None:
    of = replace(spec(), max_runs=max_runs, session_sd={"total_throughput": 0.02})
    row = judged("total_throughput", [100] * 9, [80] * 5, of)
    half = math.sqrt(2) * z * 0.02  # of one baseline session and today's
    assert row.low == pytest.approx(1 - 0.8 * math.exp(half))
    assert row.high == pytest.approx(1 - 0.8 * math.exp(-half))


def test_the_metrics_own_session_deviation_counts_where_none_is_declared() -> None:
    row = judged("ttft", [400] * 5, [400] * 5, replace(spec(), max_runs=5))
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
    assert row.margin == pytest.approx(0.05)
    assert bool(row.reason) == (verdict == "inconclusive")
    assert row.again is None
    assert not row.worse_twice


def test_an_inconclusive_row_says_what_would_decide() -> None:
    row = judged("total_throughput", around(100), [90, 100, 85, 104, 95])
    assert row.reason == (
        "runs differ too much among themselves: even 100 candidate runs would not tell the estimate from the margin"
    )
    assert not row.never


@pytest.mark.parametrize(
    ("metric", "before", "now", "catches"),
    [
        ("total_throughput", [100] * 5, [100] * 5, 0.05),
        ("ttft", [400] * 5, [400] * 5, 0.30),
        ("overlap_efficiency", [98] * 5, [98] * 5, 5.0),
        # h = 8 of 5 v 5 runs at .05, larger than the margin: h + h / 2
        ("overlap_efficiency", [98, 94, 90, 86, 82], [98, 94, 90, 86, 82], 12.0),
    ],
)
def test_a_row_carries_its_power(metric: str, before: list[float], now: list[float], catches: float) -> None:
    row = judged(metric, before, now, replace(STEADY, max_runs=5))
    assert row.catches80 == pytest.approx(catches)
    assert row.sharper == "runs"


def test_sessions_are_named_where_they_blur_more_than_runs() -> None:
    row = judged("ttft", around(400), around(400), replace(spec(), max_runs=5))
    half = math.hypot(math.sqrt(2) * 1.6449 * 0.10, math.log(1.01))
    assert row.catches80 == pytest.approx(math.expm1(max(math.log(1.3), half) + half / 2), rel=0.01)
    assert row.sharper == "sessions"


@pytest.mark.parametrize("metric", ["total_throughput", "ttft", "overlap_efficiency"])
def test_too_few_runs_have_no_bounds_and_no_power(metric: str) -> None:
    row = judged(metric, around(90), [70])
    assert row.verdict == "inconclusive"
    assert math.inf in {abs(row.low or 0), abs(row.high or 0)}
    assert row.catches80 is None
    assert row.never
    assert row.reason == (
        "5 baseline and 1 candidate run can't decide: it takes at least 3 candidate runs, or more baseline sessions"
    )


def test_sessions_that_differ_as_much_as_the_margin_can_never_decide() -> None:
    row = judged("ttft", around(400), around(400), replace(spec(), margins={"ttft": 0.1}))
    assert (row.verdict, row.never, row.sharper) == ("inconclusive", True, "sessions")
    assert row.reason == (
        "can never decide, however many sessions are recorded: session offsets alone (+-31.9 %) reach the margin of "
        "10 %; it takes a wider margin or steadier sessions"
    )
    row = judged("ttft", around(400), around(400), replace(spec(), margins={"ttft": 0.25}))
    assert row.reason == (
        "can never decide: record more sessions: session offsets alone (+-31.9 %) reach the margin of 25 %; "
        "4 instead of 1 would do"
    )
    assert not judged("ttft", around(400), around(800), replace(spec(), margins={"ttft": 0.25})).never, "decided"


def test_a_margin_of_the_mark_goes_before_the_metrics_own() -> None:
    wide = replace(STEADY, margins={"total_throughput": 0.25})
    row = judged("total_throughput", around(100), around(80), wide)
    assert row.verdict == "held"
    assert row.margin == pytest.approx(0.25)


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


@pytest.mark.parametrize("metric", ["ttft", "makespan"])
def test_a_metric_that_other_conditions_void_is_neither_new_nor_undecidable(metric: str) -> None:
    now = replace(today(metric, [400.0]), conditions={**CONDITIONS, "server": "ollama 9"})
    row = against_baseline(metric, STEADY, now, recorded("ttft", [400.0]))
    assert (row.verdict, row.never) == ("not comparable", False)
    assert row.reason == "server: ollama 0.12.3 -> ollama 9 (the runner changed, not this change)"


# -------------------------------------------------------------------------------------------------- second sessions

SLOW, UNSURE, CALM = around(80), [80, 100, 75, 104, 85], around(100)


def twice(first: Sequence[float], second: Sequence[float], of: Spec = STEADY) -> Row:
    return against_baseline(
        "total_throughput", of, today("total_throughput", first, second), recorded("total_throughput", around(100))
    )


def test_a_second_session_confirms_and_both_are_shown() -> None:
    row = twice(SLOW, around(85))
    assert (row.verdict, row.value, row.runs, row.reason) == ("regressed", 80, 5, "")
    assert row.again is not None
    assert (row.again.verdict, row.again.value, row.again.runs) == ("regressed", 85, 5)
    assert row.again.change == pytest.approx(0.15)
    assert not row.worse_twice


@pytest.mark.parametrize(
    ("second", "verdict", "reason"),
    [
        (CALM, "held", "not confirmed: a second session did not show it"),
        (around(110), "improved", "not confirmed: a second session did not show it"),
        (
            UNSURE,
            "inconclusive",
            "not confirmed for sure: a second session is estimated beyond the margin too, but its bound is not",
        ),
    ],
)
def test_what_a_second_session_does_not_show_is_inconclusive(
    second: list[float], verdict: Verdict, reason: str
) -> None:
    row = twice(SLOW, second)
    assert (row.verdict, row.reason) == ("inconclusive", reason)
    assert row.again is not None
    assert row.again.verdict == verdict
    assert not row.never


@pytest.mark.parametrize(
    ("first", "second", "worse"),
    [(UNSURE, UNSURE, True), (UNSURE, SLOW, True), (SLOW, UNSURE, True), (UNSURE, CALM, False), (SLOW, CALM, False)],
)
def test_worse_twice_is_inconclusive_with_both_estimates_beyond_the_margin(
    first: list[float], second: list[float], *, worse: bool
) -> None:
    row = twice(first, second)
    assert (row.verdict, row.worse_twice) == ("inconclusive", worse)
    assert row.again is not None


def test_a_metric_that_was_in_no_doubt_has_no_second_session() -> None:
    row = twice(CALM, SLOW)
    assert (row.verdict, row.again, row.worse_twice) == ("held", None, False)


def test_the_second_session_has_one_look() -> None:
    # 3 of the 25 differences are below 0: the bound is the third at level .025 of three looks, the fifth at .05 of one
    before, second = [100, 99, 98.5, 97.5, 97], [98.7, 94.9, 94.8, 94.7, 94.6]
    of = replace(STEADY, margins={"total_throughput": 0.02})
    assert judged("total_throughput", before, second, of).verdict == "inconclusive"
    row = against_baseline(
        "total_throughput", of, today("total_throughput", SLOW, second), recorded("total_throughput", before)
    )
    assert row.verdict == "regressed"
    assert row.again == judged("total_throughput", before, second, replace(of, max_runs=5))


def test_a_regression_that_a_second_session_could_not_look_at_is_invalid() -> None:
    of = replace(STEADY, session_sd={"queue_wait": 0.0})
    now = measured(session(queue_wait=around(200)), session(ttft=around(400)))
    row = against_baseline("queue_wait", of, now, recorded("queue_wait", around(100)))
    assert (row.verdict, row.again) == ("invalid", None)
    assert row.reason == f"second session: {GONE}"
    row = against_baseline("queue_wait", of, now, recorded("queue_wait", around(200)))
    assert (row.verdict, row.again, row.reason) == ("held", None, "")


def test_other_conditions_void_a_second_session_too() -> None:
    now = replace(today("total_throughput", SLOW, SLOW), conditions={**CONDITIONS, "server": "ollama 9"})
    row = against_baseline("total_throughput", STEADY, now, recorded("total_throughput", around(100)))
    assert (row.verdict, row.again, row.worse_twice) == ("not comparable", None, False)


# ------------------------------------------------------------------------------------------- when to stop, when again

BOTH = replace(STEADY, gated=("total_throughput", "ttft"))
BEFORE = session(total_throughput=around(100), ttft=around(400))


@pytest.mark.parametrize(
    ("total", "ttft", "ends", "again"),
    [
        (CALM, around(400), True, False),
        (CALM, around(800), True, True),
        (SLOW, [400, 900, 300, 500, 410], True, True),
        (CALM, [400, 440, 360, 420, 480], True, False),
        (CALM, [400, 640, 360, 520, 480], False, False),
        (CALM, [620, 640, 300, 600, 380], False, True),
    ],
)
def test_a_session_ends_when_all_is_decided_and_doubts_take_a_second(
    total: list[float], ttft: list[float], *, ends: bool, again: bool
) -> None:
    now = session(total_throughput=total, ttft=ttft)
    assert verdicts.enough(BOTH, now, baseline(BEFORE)) == ends
    assert verdicts.doubtful(BOTH, now, baseline(BEFORE)) == again


def test_what_cannot_be_judged_takes_no_more_runs_and_no_second_session() -> None:
    of = replace(BOTH, gated=("total_throughput", "ttft", "makespan", "itl_p50"))
    now = session(total_throughput=CALM, ttft=[-1.0, 1, 1, 1, 1], makespan=around(2))
    assert verdicts.enough(of, now, baseline(BEFORE))
    assert not verdicts.doubtful(of, now, baseline(BEFORE))


# --------------------------------------------------------------------------------------------------------- bad input

SHARE = "and only values above 0 can change by a share; take it out of metrics=, or hold it by floors="
NO_VALUE = "it may need several agents, or this server may not report it"
GONE = f"the metric disappeared: the baseline has it and no run gave a value; {NO_VALUE}"


@pytest.mark.parametrize(
    ("metric", "before", "now", "reason"),
    [
        ("ttft", around(400), [400, NAN, 400, 400, 400], "a run has nan ms, which is no measured value"),
        ("ttft", around(400), [400, INF, 400, 400, 400], "a run has inf ms, which is no measured value"),
        ("queue_wait", around(9), [9, -INF, 9, 9, 9], "a run has -inf ms, which is no measured value"),
        ("ttft", [NAN, *around(400)], around(400), "a run of the baseline has nan ms, which is no measured value"),
        ("queue_wait", [INF, *around(9)], around(9), "a run of the baseline has inf ms, which is no measured value"),
        ("itl_p50", around(18), [18, 18, 0, 18, 18], f"a run has 0 ms, {SHARE}"),
        ("itl_p50", around(18), [*around(18), -1.5], f"a run has -1.5 ms, {SHARE}"),
        ("itl_p50", [0.0, *around(18)], around(18), f"a run of the baseline has 0 ms, {SHARE}"),
        ("total_throughput", [-1.0], around(100), f"a run of the baseline has -1 tok/s, {SHARE}"),
        ("ttft", around(400), [], GONE),
        ("ttft", [], [], f"no run gave a value; {NO_VALUE}"),
    ],
)
def test_what_is_no_measurement_is_invalid(metric: str, before: list[float], now: list[float], reason: str) -> None:
    row = judged(metric, before, now, spec())
    assert (row.verdict, row.reason, row.runs) == ("invalid", reason, len(now))
    assert (row.value, row.change, row.margin) == (None, None, None)


def lacking(metric: str, values: Sequence[float], without: int) -> Session:
    """A session in which so many more runs have no value of the metric."""
    runs = [Sample({metric: value}) for value in values] + [Sample({"makespan": 2.0})] * without
    return Session((Sample({"makespan": 3.0}, kept=False), *runs), 0.5)


@pytest.mark.parametrize(
    ("values", "without", "verdict", "reason"),
    [
        (around(400), 1, "held", "1 of 6 runs gave no value"),
        (around(400)[:4], 1, "held", "1 of 5 runs gave no value"),
        (around(400), 2, "invalid", "2 of 7 runs gave no value, more than 20% of them"),
        (around(400)[:3], 2, "invalid", "2 of 5 runs gave no value, more than 20% of them"),
        ([400.0] * 5, 1, "held", "no run-to-run variation: mocked or cached server?; 1 of 6 runs gave no value"),
    ],
)
def test_some_runs_may_lack_a_metric(values: list[float], without: int, verdict: Verdict, reason: str) -> None:
    before = [400.0] * 5 if len(set(values)) == 1 else around(400)
    row = against_baseline("ttft", STEADY, measured(lacking("ttft", values, without)), recorded("ttft", before))
    assert (row.verdict, row.reason, row.runs) == (verdict, reason, len(values))


def test_a_baseline_may_lack_a_metric_in_runs_and_in_whole_sessions() -> None:
    old = baseline(lacking("ttft", around(400), 5), session(makespan=[2.0] * 5), session(ttft=around(410)))
    row = against_baseline("ttft", STEADY, today("ttft", around(400)), old)
    assert (row.verdict, row.baseline_runs, row.reason) == ("held", 10, "")


def test_a_new_metric_is_inconclusive_until_it_is_recorded() -> None:
    row = against_baseline("ttft", spec(), today("ttft", around(400)), recorded("total_throughput", around(100)))
    assert (row.verdict, row.value, row.runs, row.never) == ("inconclusive", 400, 5, True)
    assert row.reason == (
        "new metric: the baseline was recorded without it and can never decide; record it anew with "
        "--llmperf-rebaseline"
    )
    assert (row.baseline, row.change) == (None, None)


CURE = "candidate runs, or more baseline sessions"
CONSTANT = "no run-to-run variation: mocked or cached server?"


@pytest.mark.parametrize(
    ("before", "now", "verdict", "reason"),
    [
        ([50.0] * 5, [50.0] * 5, "held", CONSTANT),
        ([50.0] * 5, [40.0] * 5, "regressed", CONSTANT),
        ([50.0] * 5, [60.0] * 5, "improved", CONSTANT),
        ([50.0] * 5, around(50), "held", ""),
        (around(50), [50.0] * 5, "held", ""),
        ([50.0] * 20, around(50)[:2], "held", ""),
        (around(50), around(50) * 2, "held", ""),
        (around(50) * 4, around(50)[:3], "held", ""),
        (
            around(50),
            [50.0],
            "inconclusive",
            f"5 baseline and 1 candidate run can't decide: it takes at least 3 {CURE}",
        ),
        (
            [50.0],
            around(50),
            "inconclusive",
            f"1 baseline and 5 candidate runs can't decide: it takes at least 39 {CURE}",
        ),
        (around(50) * 8, [50.0], "held", ""),
    ],
)
def test_unequal_numbers_of_runs_and_no_variance_are_judged_as_they_are(
    before: list[float], now: list[float], verdict: Verdict, reason: str
) -> None:
    row = judged("total_throughput", before, now)
    assert (row.verdict, row.reason) == (verdict, reason)
    assert (row.baseline_runs, row.runs) == (len(before), len(now))


def test_zero_and_less_are_values_of_a_metric_with_differences() -> None:
    assert judged("queue_wait", [0, -1, 1, 0, 2], [0, -2, 1, 0, 1], STEADY).verdict == "held"


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


# ------------------------------------------------------------------------------------------------------- comparisons


def sides(metric: str, control: Sequence[float], treatment: Sequence[float]) -> tuple[Session, Session]:
    return session(**{metric: control}), session(**{metric: treatment})


@pytest.mark.parametrize(
    ("metric", "treatment", "verdict", "margin"),
    [
        ("total_throughput", around(100), "held", 0.05),
        ("total_throughput", around(80), "regressed", 0.05),
        ("total_throughput", around(120), "improved", 0.05),
        ("ttft", around(100), "held", 0.10),
        ("ttft", around(120), "regressed", 0.10),
        ("overlap_efficiency", around(100), "held", 5.0),
    ],
)
def test_a_treatment_is_judged_against_its_control_without_a_session_term(
    metric: str, treatment: list[float], verdict: Verdict, margin: float
) -> None:
    row, found = against_control(metric, spec(), sides(metric, around(100), treatment))
    assert (row.verdict, row.against, row.policy) == (verdict, "control", "")
    assert row.margin == pytest.approx(margin)
    assert (row.baseline, row.value, row.runs, row.baseline_runs) == (100, treatment[0], 5, 5)
    assert found is not None
    assert (found.interleaved, found.half_session) == (True, 0)


def test_a_margin_of_the_mark_goes_before_the_interleaved_one() -> None:
    row, _ = against_control("ttft", replace(spec(), margins={"ttft": 0.25}), sides("ttft", around(400), around(450)))
    assert row.verdict == "held"
    assert row.margin == pytest.approx(0.25)


def test_an_undecided_comparison_asks_for_runs_a_side() -> None:
    noisy = [90, 110, 95, 105, 100]
    row, _ = against_control("total_throughput", spec(), sides("total_throughput", noisy, noisy))
    assert row.verdict == "inconclusive"
    assert row.reason.startswith("runs differ too much among themselves: about ")
    assert row.reason.endswith(" interleaved runs a side would decide, if the estimate stays")


def test_two_runs_a_side_decide_nothing_and_ask_for_no_sessions() -> None:
    of, two = replace(spec(), max_runs=2), sides("ttft", [400, 401], [400, 402])
    row, _ = against_control("ttft", of, two)
    assert (row.verdict, row.never, row.catches80) == ("inconclusive", False, None)
    assert row.reason == "2 control and 2 treatment runs can't decide: it takes at least 3 of each (max_runs=)"
    row, _ = gain("ttft", 0.1, of, two)
    assert (row.verdict, row.never) == ("inconclusive", False)


@pytest.mark.parametrize(
    ("metric", "by", "treatment", "verdict", "reason"),
    [
        ("total_throughput", 0.15, around(120), "held", ""),
        ("total_throughput", 0.15, around(110), "regressed", "refuted: the gain is smaller for sure"),
        (
            "total_throughput",
            0.15,
            around(115),
            "inconclusive",
            "not shown: the gain may be smaller; more runs would tell (max_runs=)",
        ),
        ("total_throughput", 0.0, around(105), "held", ""),
        ("total_throughput", 0.0, around(95), "regressed", "refuted: the gain is smaller for sure"),
        ("ttft", 0.15, around(80), "held", ""),
        ("ttft", 0.15, around(90), "regressed", "refuted: the gain is smaller for sure"),
        ("overlap_efficiency", 3.0, around(106), "held", ""),
        ("overlap_efficiency", 3.0, around(100), "regressed", "refuted: the gain is smaller for sure"),
        (
            "total_throughput",
            0.15,
            [100.0] * 5,
            "regressed",
            f"refuted: the gain is smaller for sure; {CONSTANT}",
        ),
    ],
)
def test_a_claim_is_held_refuted_or_not_shown(
    metric: str, by: float, treatment: list[float], verdict: Verdict, reason: str
) -> None:
    control = [100.0] * 5 if reason.endswith(CONSTANT) else around(100)
    row, found = gain(metric, by, spec(), sides(metric, control, treatment))
    assert found is not None
    assert (row.verdict, row.reason) == (verdict, reason)
    assert (row.margin, row.claim, row.against, row.never) == (by, True, "control", False)
    assert (row.catches80, row.sharper) == (None, None)


@pytest.mark.parametrize(
    ("control", "treatment", "reason"),
    [
        ([], around(100), f"control: no run gave a value; {NO_VALUE}; list metrics= that both sides have"),
        (around(100), [], f"treatment: no run gave a value; {NO_VALUE}; list metrics= that both sides have"),
        ([0.0, 1, 1, 1, 1], around(100), f"control: a run has 0 ms, {SHARE}"),
        (around(100), [1.0, 1, 1, 1, NAN], "treatment: a run has nan ms, which is no measured value"),
    ],
)
def test_a_side_that_cannot_be_judged_is_named(control: list[float], treatment: list[float], reason: str) -> None:
    both = sides("ttft", control, treatment)
    for row, found in (against_control("ttft", spec(), both), gain("ttft", 0.1, spec(), both)):
        assert (row.verdict, row.against, row.reason, found) == ("invalid", "control", reason, None)


# ------------------------------------------------------------------------------------------------------ disagreement

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
    assert disagreement([replace(better, against="control"), replace(worse, against="control")]) == OPPOSITE
    assert disagreement([better]) is None
    assert disagreement([replace(better, against="floor"), worse]) is None
    assert disagreement([better, Row(metric="total_throughput", verdict="invalid")]) is None
    assert disagreement([]) is None
