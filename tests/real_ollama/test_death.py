"""A genuine Ollama whose processes are killed: its server leaves its runner behind, its runner breaks a stream."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import psutil
import pytest

from pytest_llmperf.instance import Instance
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import InvalidRunError, Workload
from pytest_llmperf.protocol import Bench
from tests.benches import fleets, spec

from .genuine import Genuine


@pytest.fixture
def fleet(genuine_ollama: Genuine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("OLLAMA_MODELS", str(genuine_ollama.models))
    with fleets(tmp_path, monkeypatch) as fleet_of:
        yield fleet_of(str(genuine_ollama.binary))
    assert list(tmp_path.glob("llmperf-*")) == []


def bench_on(instance: Instance) -> Bench:
    options = {"num_thread": 1, "num_ctx": 2048}
    agent = Workload(name="a", model="medium", options=options, prompts=("Why?",), tokens=400)
    return Bench(spec(agent), [instance])


def runner_of(instance: Instance) -> psutil.Process:
    (runner,) = psutil.Process(instance.pid).children()
    return runner


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_the_runner_of_a_killed_server_is_stopped_with_its_fleet(fleet: Fleet) -> None:
    instance = fleet.start()
    bench_on(instance).load()
    runner, server = runner_of(instance), psutil.Process(instance.pid)
    server.kill()
    assert str(instance.why_dead()).startswith("instance1 exited with code -9; the last lines of its log:\n")
    assert runs(runner), "nothing was left behind: this test shows nothing"
    fleet.close()
    assert not runs(runner)


def test_a_server_that_is_killed_in_a_run_is_named_and_its_runner_is_stopped(fleet: Fleet) -> None:
    instance = fleet.start()
    bench = bench_on(instance)
    bench.load()
    bench.warm_up()
    runner = runner_of(instance)
    Timer(0.2, psutil.Process(instance.pid).kill).start()
    with pytest.raises(InvalidRunError, match="instance1 exited with code -9; the last lines of its log:\n"):
        bench.session((5,))
    assert runs(runner), "nothing was left behind: this test shows nothing"
    instance.stop()
    eventually(lambda: not runs(runner))


def test_a_run_whose_runner_is_killed_is_replaced(fleet: Fleet) -> None:
    instance = fleet.start()
    bench = bench_on(instance)
    bench.load()
    bench.warm_up()
    bench.discard()
    Timer(0.2, runner_of(instance).kill).start()
    bench.step()
    discarded, broken, kept = bench.so_far().samples
    assert (discarded.kept, broken.kept, kept.kept) == (False, False, True)
    eof = "an error was encountered while running the model: unexpected EOF"
    assert re.fullmatch(rf"the server answered 200 with an error after \d+ chunks: {eof}", broken.cause)
