"""A gate against itself, on hand-made sessions: what cries wolf, what is noticed, how much sessions differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from statistics import stdev

import pytest

from pytest_llmperf.model import Sample, Session
from pytest_llmperf.outcome import Check
from pytest_llmperf.selfcheck import _first, check, factors
from tests.builders import session, spec

GATED = ("total_throughput", "ttft", "overlap_efficiency")
TRIO = replace(spec(), gated=GATED)


def drawn(random: Random, pace: float = 1.0, noise: float = 0.005, runs: int = 10) -> Session:
    """A session in which everything takes `pace` times as long as usual, with noise from run to run."""

    def around(usual: float, *, share: float = noise) -> list[float]:
        return [usual * (1 + random.gauss(0, share)) for _ in range(runs)]

    return session(
        total_throughput=around(100 / pace), ttft=around(400 * pace), overlap_efficiency=around(95, share=0.005)
    )


def many(count: int, pace: float = 1.0, seed: int = 1) -> list[Session]:
    random = Random(seed)
    return [drawn(random, pace) for _ in range(count)]


def of(metric: str, checks: Sequence[Check]) -> Check:
    (found,) = (one for one in checks if one.metric == metric)
    return found


@pytest.mark.parametrize("count", [3, 6])
def test_sessions_alike_never_cry_wolf_and_slowed_ones_are_all_noticed(count: int) -> None:
    checks = check(TRIO, many(count), many(count, pace=1.69, seed=2))
    assert [one.metric for one in checks] == [*GATED, ""]
    assert [(one.trials, one.alarms) for one in checks] == [(count, 0)] * 4
    assert [one.noticed for one in checks] == [count, count, None, count]
    assert of("total_throughput", checks).slowed == pytest.approx(1 - 1 / 1.69, abs=0.01)
    assert of("ttft", checks).slowed == pytest.approx(0.69, abs=0.01)
    assert (of("overlap_efficiency", checks).slowed, of("", checks).slowed) == (None, None)


def test_a_slowdown_within_the_margins_is_not_noticed() -> None:
    checks = check(TRIO, many(6), many(6, pace=1.02, seed=2))
    assert [one.noticed for one in checks] == [0, 0, None, 0]


def test_a_slowed_metric_that_the_server_reports_of_itself_has_no_rate() -> None:
    calm = [session(decode_rate=[50.0, 50.1, 49.9, 50, 50.2])] * 3
    found, whole = check(replace(spec(), gated=("decode_rate",)), calm, calm)
    assert (found.noticed, found.slowed, whole.noticed) == (None, None, 0)


def test_sessions_that_differ_are_told_by_their_deviation() -> None:
    paces = [0.90, 1.10, 0.95, 1.05, 0.92, 1.08]
    random = Random(4)
    checks = check(TRIO, [drawn(random, pace) for pace in paces], many(6, pace=1.69))
    assert of("ttft", checks).session_sd == pytest.approx(stdev(paces), rel=0.05)
    assert of("total_throughput", checks).session_sd == pytest.approx(stdev(paces), rel=0.05)
    overlap = of("overlap_efficiency", checks).session_sd
    assert overlap is not None
    assert overlap < 0.5
    assert [one.declared for one in checks] == [0.01, 0.10, 1.0, None]
    assert of("", checks).session_sd is None


def test_sessions_alike_differ_by_less_than_their_runs() -> None:
    found = of("ttft", check(TRIO, many(6), many(6, pace=1.69)))
    assert found.session_sd is not None
    assert found.session_sd < 0.004


def test_what_the_mark_declares_is_shown_as_declared() -> None:
    checks = check(replace(TRIO, session_sd={"ttft": 0.2}), many(3), many(3, pace=1.69))
    assert of("ttft", checks).declared == 0.2


def test_a_metric_without_usable_values_has_no_deviation() -> None:
    empty, zero = session(makespan=[2.0] * 5), session(itl_p50=[18.0, 0, 18, 18, 18])
    gated = replace(spec(), gated=("queue_wait", "itl_p50"))
    wait, gaps, whole = check(gated, [zero, zero, empty], [zero] * 3)
    assert (wait.session_sd, gaps.session_sd) == (None, None)
    assert (wait.alarms, gaps.alarms, whole.alarms) == (0, 0, 0)
    assert gaps.slowed == 0


# --------------------------------------------------------------------------------------------------------- as a gate

TTFT = replace(spec(), gated=("ttft",), session_sd={"ttft": 0.0}, margins={"ttft": 0.10})
CALM = [400.0, 401, 399, 402, 398, 400.5, 399.5, 401.5, 398.5, 400]
SLOW = [2 * value for value in CALM]


def told(*sessions: Sequence[float]) -> Check:
    calm = [session(ttft=values) for values in sessions]
    return check(TTFT, calm, calm)[0]


def test_a_single_odd_session_is_not_confirmed_by_the_next() -> None:
    assert told(CALM, CALM, SLOW, CALM, CALM, CALM, CALM).alarms == 0


def test_two_odd_sessions_in_a_row_cry_wolf_once() -> None:
    # the first is confirmed by the second; the second is not by the third
    assert told(CALM, CALM, CALM, SLOW, SLOW, CALM, CALM).alarms == 1


def test_the_last_session_is_confirmed_by_the_first() -> None:
    assert told(SLOW, CALM, CALM, CALM, CALM, CALM, SLOW).alarms == 1


def test_a_trial_stops_at_the_look_that_decides() -> None:
    # held after 5 runs: what comes after is not looked at
    late = CALM[:5] + SLOW[5:]
    assert told(CALM, CALM, late, late, CALM, CALM, CALM).alarms == 0
    # neither held nor regressed after 5 runs, regressed after 7
    unsure = [400.0, 500, 800, 360, 410, 900, 950, 400, 400, 400]
    odd = [session(ttft=values) for values in (unsure, unsure, CALM, CALM, CALM, CALM)]
    calm = [session(ttft=CALM)] * 6
    assert check(TTFT, calm, odd)[0].noticed == 0, "the second session of 5 runs doesn't show it"
    odd[1] = session(ttft=SLOW)
    wide = replace(TTFT, max_runs=5)
    assert check(TTFT, calm, odd)[0].noticed == 1
    assert check(wide, calm, odd)[0].noticed == 0, "5 runs at most"


def test_baselines_and_confirmations_have_the_runs_that_the_gate_would_have() -> None:
    # odd values from the sixth run on would widen every baseline and blur every confirmation
    ragged = CALM[:5] + [4000.0] * 5
    calm = [session(ttft=ragged)] * 6
    slowed = [session(ttft=SLOW[:5] + [4.0] * 5)] * 6
    assert check(TTFT, calm, slowed)[0].noticed == 6


def test_the_first_runs_of_a_session_keep_what_was_discarded_on_the_way() -> None:
    kept = [Sample({"ttft": float(value)}) for value in range(4)]
    discarded, replaced = Sample({"ttft": 9.0}, kept=False), Sample({"ttft": 8.0}, kept=False, cause="x")
    whole = Session((discarded, kept[0], replaced, kept[1], kept[2], kept[3]), 0.5)
    assert _first(whole, 2).samples == (discarded, kept[0], replaced, kept[1])
    assert _first(whole, 0).samples == (discarded,)
    assert _first(whole, 9) == whole


# ----------------------------------------------------------------------------------------------------------- slowdown


@pytest.mark.parametrize(
    ("gated", "margins", "first", "rest"),
    [
        (GATED, {}, 1.30**2, 0.95**-2),
        (("total_throughput",), {}, 0.95**-2, 0.95**-2),
        (("ttft",), {}, 1.30**2, 1.0),
        (("makespan",), {}, 1.05**2, 1.05**2),
        (("total_throughput", "makespan"), {}, 0.95**-2, 0.95**-2),
        (("total_throughput", "makespan"), {"makespan": 0.2}, 1.2**2, 1.2**2),
        (("itl_p50", "ttft"), {"itl_p50": 0.5, "ttft": 0.1}, 1.1**2, 1.5**2),
        (("ttft", "ttft_p95"), {"ttft_p95": 0.5}, 1.5**2, 1.0),
        (("overlap_efficiency", "decode_rate"), {}, 1.0, 1.0),
    ],
)
def test_two_margins_are_a_factor_of_the_first_token_and_of_the_answer(
    gated: tuple[str, ...], margins: dict[str, float], first: float, rest: float
) -> None:
    assert factors(replace(spec(), gated=gated, margins=margins)) == pytest.approx((first, rest))
