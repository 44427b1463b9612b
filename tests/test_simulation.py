"""The simulation of the decision rule: its worlds are what they say, and its verdicts are the plugin's own."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import fmean, quantiles

import pytest

from benchmarks.decision_rule.simulation import (
    NOISES,
    POLICIES,
    Case,
    Outcome,
    Series,
    block,
    gated,
    in_turns,
    mean,
    offsets,
    session,
    share,
)
from pytest_llmperf import plan, verdicts
from pytest_llmperf.model import Session, Verdict, worst
from pytest_llmperf.outcome import Row
from tests import builders

TWO = Case(sigmas=(0.8, 1.2), offset=0.5, declared=0.5)
METRICS = ("overlap_efficiency", "queue_wait")


def as_measured(values: Series, runs: int) -> Session:
    """Of one metric that is better higher and one that is better lower, both on scale "diff"."""
    higher, lower = values
    return builders.session(overlap_efficiency=higher[:runs], queue_wait=[-value for value in lower[:runs]])


def by_the_plugin(case: Case, seed: int) -> Outcome:
    """What `gated` makes of these random numbers, through the modules a real measurement goes through."""
    declared = {name: case.declared * sigma for name, sigma in zip(METRICS, case.sigmas, strict=True)}
    spec = replace(builders.spec(), gated=METRICS, margins=dict.fromkeys(METRICS, 1.0), session_sd=declared)
    random = Random(seed)
    *stored, own, other = offsets(random, case)
    baseline = builders.baseline(*(as_measured(session(random, case, each, 5), 5) for each in stored))
    values = session(random, case, own, 10, case.worse)
    runs = next(n for n in (5, 7, 10) if n == 10 or verdicts.enough(spec, as_measured(values, n), baseline))
    first = as_measured(values, runs)

    def rows(*sessions: Session) -> list[Row]:
        return [verdicts.against_baseline(metric, spec, builders.measured(*sessions), baseline) for metric in METRICS]

    once = worst([row.verdict for row in rows(first)])
    if not verdicts.doubtful(spec, first, baseline):
        return Outcome(once, once, runs)
    both = rows(first, as_measured(session(random, case, other, 5, case.worse), 5))
    twice = any(row.worse_twice for row in both)
    return Outcome(once, worst([row.verdict for row in both]), runs, again=5, worse_twice=twice)


@pytest.mark.parametrize("worse", [0.0, 1.5])
def test_a_simulated_test_ends_as_the_plugin_would_end_it(worse: float) -> None:
    case = replace(TWO, worse=worse)
    seen = set()
    for seed in range(100):
        random = Random(seed)
        found = gated(random, case, offsets(random, case))
        assert found == by_the_plugin(case, seed)
        seen.add((found.once, found.verdict, found.worse_twice))
    assert ("inconclusive", "inconclusive", False) in seen
    if worse:
        assert {("regressed", "regressed", False), ("inconclusive", "inconclusive", True)} <= seen


def test_without_noise_only_what_is_worse_by_more_than_the_margin_is_red() -> None:
    held, between, worse = (block(Case(sigmas=(0.0,), worse=by), 1, seed=1)[0][0] for by in (0.0, 0.9, 1.1))
    assert held == between == Outcome("held", "held", runs=5)
    assert worse == Outcome("regressed", "regressed", runs=5, again=5)


def test_only_the_metric_that_is_hit_gets_worse() -> None:
    clean, slower = (session(Random(1), replace(TWO, hit=1), [0.0, 0.0], 5, worse) for worse in (0.0, 2.0))
    assert slower[0] == clean[0]
    assert slower[1] == pytest.approx([value - 2 for value in clean[1]])


def test_an_offset_moves_a_whole_session_by_that_many_sigmas() -> None:
    clean, moved = (session(Random(1), TWO, offset, 5) for offset in ([0.0, 0.0], [1.0, -1.0]))
    assert moved[0] == pytest.approx([value + 0.8 for value in clean[0]])
    assert moved[1] == pytest.approx([value - 1.2 for value in clean[1]])


def test_offsets_are_shared_as_declared() -> None:
    assert all(one == other for one, other in offsets(Random(1), TWO))
    drawn = offsets(Random(1), replace(TWO, shared="metric", sessions=8))
    assert len(drawn) == 10
    assert len({value for each in drawn for value in each}) == 20


def test_an_offset_that_nobody_shares_differs_from_test_to_test() -> None:
    huge = Case(tests=20, offset=100.0)
    together = block(huge, 20, seed=1)
    apart = block(replace(huge, shared="nobody"), 20, seed=1)
    assert all(len({one.held for one in job}) == 1 for job in together)
    assert any(len({one.held for one in job}) == 2 for job in apart)


def test_turns_are_taken_in_abba_order_within_one_session() -> None:
    case = Case(sigmas=(1.0,), worse=2.0, noise="drift -0.3 a run")
    values = session(Random(1), case, [0.0], 8)[0]
    old, new = in_turns(Random(1), case, [0.0], 4)
    assert old == [[values[run] for run in (0, 3, 4, 7)]]
    assert new == [[values[run] - 2 for run in (1, 2, 5, 6)]]


def test_taking_turns_cancels_the_sessions_offset() -> None:
    quiet, shaky = (block(Case(offset=sd, interleaved=True, worse=1.5), 50, seed=1) for sd in (0.0, 2.0))
    assert quiet == shaky
    assert {one.runs for job in quiet for one in job} == {10, 14, 20}


def test_noises_are_what_their_names_say() -> None:
    normal, cold, drift = (
        [NOISES[name](Random(1), run) for run in range(3)] for name in ("normal", "first run -8", "drift -0.3 a run")
    )
    assert [a - b for a, b in zip(cold, normal, strict=True)] == pytest.approx([-8, 0, 0])
    assert [a - b for a, b in zip(drift, normal, strict=True)] == pytest.approx([0, -0.3, -0.6])
    random = Random(1)
    events = [NOISES["6 % of runs -10"](random, 0) for _ in range(10_000)]
    assert fmean(value < -5 for value in events) == pytest.approx(0.06, abs=0.01)
    tails = [NOISES["Student's t3"](random, 0) for _ in range(10_000)]
    assert quantiles(tails, n=40)[-1] == pytest.approx(3.182 / 3**0.5, rel=0.1)  # t(.975, 3) over its deviation


def test_a_block_is_its_seeds() -> None:
    case = Case(worse=1.0, tests=2)
    jobs = block(case, 20, seed=1)
    assert [len(job) for job in jobs] == [2] * 20
    assert jobs == block(case, 20, seed=1)
    assert jobs != block(case, 20, seed=2)


def test_fixed_n_takes_all_its_runs_at_once() -> None:
    assert {one.runs for job in block(Case(looks=(10,)), 20, seed=1) for one in job} == {10}


def test_another_stopping_rule_is_obeyed() -> None:
    assert plan.looks(10) == (5, 7, 10)
    patient = block(Case(sigmas=(0.1,), enough=lambda _found, _most: False), 5, seed=1)
    assert {one.runs for job in patient for one in job} == {10}


@pytest.mark.parametrize(
    ("verdict", "twice", "red"),
    [
        ("regressed", False, [True, True, True]),
        ("inconclusive", True, [False, True, True]),
        ("inconclusive", False, [False, False, True]),
        ("held", False, [False, False, False]),
        ("improved", False, [False, False, False]),
    ],
)
def test_what_is_red_under_each_policy(verdict: Verdict, twice: bool, red: list[bool]) -> None:
    outcome = Outcome(verdict, verdict, 5, worse_twice=twice)
    assert [outcome.red(policy) for policy in POLICIES] == red


def test_what_is_worse_twice_was_regressed_or_not_sure_at_first() -> None:
    outcomes = [job[0] for job in block(Case(sigmas=(1.2,), worse=1.5), 200, seed=1)]
    assert {one.once for one in outcomes if one.worse_twice} == {"inconclusive", "regressed"}
    assert {one.verdict for one in outcomes if one.worse_twice} == {"inconclusive"}


def test_figures_come_with_their_standard_error() -> None:
    assert share([True, False] * 50) == "50.00 ±5.00"
    assert share([False] * 98) == "0.00 ±1.01"
    assert mean([1, 3]) == "2.00 ±1.00"
