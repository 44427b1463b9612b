"""How long a test takes by its baseline, and how all workers of a run pay for what they measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llmperf.budget import estimate, spoken, typed
from pytest_llmperf.case import Case
from pytest_llmperf.model import Baseline, Session, Spec
from pytest_llmperf.spending import UNLIMITED, Purse, expected
from tests.builders import TEST, baseline, session, settings, spec

RUNS = {"makespan": [4.0, 5.0, 6.0], "ttft": [400.0, 500.0, 600.0], "parallel_efficiency": [40.0, 50.0, 60.0]}
PAIR = replace(spec(), warmup_requests=3, solo_runs=2)


def recorded(load_s: float = 2.0, **missing: None) -> Baseline:
    """Two sessions alike: runs of 5 s, first tokens after half a second, a solo run as long as a run of both."""
    series = {name: values for name, values in RUNS.items() if name not in missing}
    return baseline(*[replace(session(**series), load_s=load_s)] * 2)


@pytest.mark.parametrize(
    ("of", "seconds"),
    [
        # starts 2, loads 2 x 2, warm-ups 3 x 2 x .5, solo rounds 2 x 5, the discarded run and five runs 6 x 5
        (PAIR, 2 + 4 + 3 + 10 + 30),
        (replace(PAIR, topology="shared"), 1 + 2 + 3 + 10 + 30),
        (replace(PAIR, solo_runs=0, warmup_requests=0), 2 + 4 + 30),
        (replace(PAIR, solo_runs=0, warmup_requests=0, max_runs=3), 2 + 4 + 20),
        (replace(PAIR, agents=PAIR.agents[:1], solo_runs=0), 1 + 2 + 1.5 + 30),
    ],
)
def test_an_estimate_adds_up_what_a_session_does_until_its_first_look(of: Spec, seconds: float) -> None:
    assert estimate(of, recorded()) == pytest.approx(seconds)


def test_solo_runs_take_as_long_as_everything_else_could_where_nothing_is_known_of_them() -> None:
    """Without a parallel efficiency, agents that never wait for each other are assumed: N makespans a round."""
    assert estimate(PAIR, recorded(parallel_efficiency=None)) == pytest.approx(2 + 4 + 3 + 20 + 30)


def test_runs_that_were_not_kept_say_nothing() -> None:
    slow = session(**{name: [1e4] for name in RUNS}).samples[0]
    first, second = recorded().sessions
    with_slow = Session((replace(slow, kept=False), *first.samples), first.load_s)
    assert estimate(PAIR, baseline(with_slow, second)) == estimate(PAIR, recorded())


@pytest.mark.parametrize(
    ("chosen", "of", "seconds"),
    [
        ({}, PAIR, 49),
        ({"rebaseline": True}, PAIR, 4 * 49),
        ({"selfcheck": True}, PAIR, 4 * (49 + 25)),  # ungated: nothing to slow down; ten runs instead of five
        # and as often through a relay by which everything takes 1 / .5^2 times as long
        (
            {"selfcheck": True},
            replace(PAIR, gated=("total_throughput",), margins={"total_throughput": 0.5}),
            5 * 4 * 74,
        ),
    ],
)
def test_recording_and_self_checks_take_all_their_sessions(
    tmp_path: Path, chosen: Mapping[str, bool], of: Spec, seconds: float
) -> None:
    case = Case(TEST, of, replace(settings(tmp_path), **chosen), ())  # type: ignore[arg-type]
    assert expected(case, recorded()) == pytest.approx(seconds)


def test_without_a_baseline_there_is_no_estimate(tmp_path: Path) -> None:
    case = Case(TEST, PAIR, settings(tmp_path), ())
    assert expected(case) is None
    case.path.parent.mkdir(parents=True)
    case.path.write_text("{", "utf-8")
    assert expected(case) is None


@pytest.mark.parametrize(
    ("seconds", "words", "option"),
    [
        (-3, "0 s", ""),
        (0.4, "0 s", ""),
        (23.6, "24 s", "24s"),
        (59.7, "1 min", "1m"),
        (200, "3 min 20 s", "3m20s"),
        (900, "15 min", "15m"),
        (5400, "1 h 30 min", "1h30m"),
        (3929, "1 h 5 min", "1h5m29s"),
    ],
)
def test_durations_are_said_in_words_and_as_they_are_typed(seconds: float, words: str, option: str) -> None:
    assert (spoken(seconds), typed(seconds)) == (words, option)


def spend(purse: Purse, estimated: float | None) -> None:
    """Measure something that takes no time."""
    with purse.spending(lambda: estimated, lambda: 0.0):
        pass


def test_an_estimate_is_taken_out_while_it_is_measured_and_only_the_time_it_took_afterwards(tmp_path: Path) -> None:
    mine, others = (Purse(900, tmp_path / "spent") for _ in range(2))
    with mine.spending(lambda: 600, lambda: 0.0):
        assert others.left_s == 300
        with pytest.raises(pytest.skip.Exception) as refused:
            spend(others, 400)
    assert str(refused.value) == (
        "llmperf: not measured: it takes about 6 min 40 s, and 5 min of --llmperf-budget=15m are left"
    )
    assert 800 < others.left_s <= 900
    spend(others, 400)


def test_waiting_for_the_device_is_not_paid_for(tmp_path: Path) -> None:
    purse, waited = Purse(900, tmp_path / "spent"), [7.0]
    with purse.spending(lambda: None, lambda: waited[0]):
        waited[0] += 100
    assert 900 < purse.left_s <= 1000


def test_what_breaks_is_paid_for_too(tmp_path: Path) -> None:
    purse = Purse(900, tmp_path / "spent")
    with pytest.raises(RuntimeError), purse.spending(lambda: 800, lambda: 0.0):
        raise RuntimeError
    assert 800 < purse.left_s <= 900


def test_when_nothing_is_left_a_test_goes_on_but_none_begins(tmp_path: Path) -> None:
    purse = Purse(90, tmp_path / "spent")
    (tmp_path / "spent").write_text("60.5\n31\n", "utf-8")
    for estimated in (None, 1.0):
        with pytest.raises(pytest.skip.Exception, match="not measured: nothing of --llmperf-budget=1m30s is left"):
            spend(purse, estimated)
    with purse.spending(None, lambda: 0.0):
        pass
    assert -2 < purse.left_s <= -1.5


def test_without_a_budget_nothing_is_estimated_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with UNLIMITED.spending(lambda: pytest.fail("estimated"), lambda: 0.0):
        pass
    assert list(tmp_path.iterdir()) == []
