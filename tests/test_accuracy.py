"""How exact the times of some runs are, and how that is said."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_llmperf import accuracy, chat
from pytest_llmperf.accuracy import Accuracy, Spread
from pytest_llmperf.report.failure import exactness
from pytest_llmperf.runs import attempt
from pytest_llmperf.traffic import Line, Recording, Run
from tests import builders
from tests.benches import fleets, workload

EPOCH = 1_800_000_000.0


def run(*late: float, skew: float = 0.0, merged: int = 0, behind: tuple[float, ...] = ()) -> Run:
    exchange = replace(builders.exchange(1.0), chunks=10, merged=merged, behind=behind)
    return replace(builders.run(exchange), late=late, skew=skew)


def test_runs_are_taken_together() -> None:
    found = accuracy.of([run(*(n / 1000 for n in range(101)), skew=0.001), run(skew=0.003, merged=4, behind=(0.1,))])
    assert found == Accuracy(late=Spread(0.05, 0.099, 0.1), behind=Spread(0.1, 0.1, 0.1), skew=0.003, merged=0.2)


def test_without_runs_there_is_nothing_to_tell() -> None:
    assert accuracy.of([]) is None


def test_a_server_whose_clock_is_another_tells_nothing() -> None:
    found = accuracy.of([run(behind=(-3.0, -3.1, 0.1))])
    assert found == Accuracy(late=None, behind=None, skew=0.0, merged=0.0)


def test_each_line_is_as_far_behind_the_servers_stamp_as_it_arrived_later() -> None:
    start = datetime.fromtimestamp(EPOCH, UTC)
    stamps = [(start + timedelta(seconds=at)).isoformat() for at in (1.5, 2.5)]
    first = {"message": {"content": "a"}, "created_at": stamps[0], "done": False}
    last = {
        "message": {"content": ""},
        "created_at": stamps[1].replace("+00:00", "001Z"),
        "done": True,
        "eval_count": 1,
    }
    lines = [Line(1.75, json.dumps(first), alone=False), Line(3.0, json.dumps(last), alone=True)]
    found = chat.exchange(Recording(0, 0, (), EPOCH), 200, lines, budget=1, release=0.0)
    assert found.behind == pytest.approx([0.25, 0.5], abs=1e-5)
    assert (found.chunks, found.merged) == (1, 1)
    assert chat.exchange(Recording(0, 0, ()), 200, lines, budget=1, release=0.0).behind == ()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            Accuracy(late=Spread(22e-6, 75e-6, 1e-3), behind=Spread(20e-6, 132e-6, 1e-3), skew=0.00021, merged=0.001),
            (
                "arrivals stamped by the kernel, read 22 us (p99 75) later; 20 us (p99 132) behind the server's own "
                "stamps; 0.1 % of the chunks merged; agents began within 0.21 ms"
            ),
        ),
        (
            Accuracy(late=None, behind=None, skew=0.0, merged=0.0),
            "arrivals stamped when read; agents began within 0.00 ms",
        ),
    ],
)
def test_it_is_said_in_one_line(found: Accuracy, words: str) -> None:
    assert exactness(found) == words


def test_a_real_run_knows_how_exact_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fleets(tmp_path, monkeypatch) as fleet_of:
        url = fleet_of().start("agent1", {"LLMPERF_EMULATOR": "speed=10"}).url
        tried = [attempt([(workload("a"), url)], (f"[{n}]" for n in range(9))) for _ in range(2)][1]
    assert tried.run
    found = accuracy.of([tried.run])
    assert found
    assert found.behind
    assert 0 <= found.behind.median < 0.05
    assert 0 <= found.skew < 1
    if sys.platform == "linux":
        assert found.late
        assert 0 <= found.late.median <= found.late.p99 <= found.late.most < 1
