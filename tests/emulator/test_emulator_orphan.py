"""With fault=orphan a model runs in a process of its own, as under Ollama: it ends, is left behind, or is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from threading import Timer
from typing import Any

import psutil
import pytest

from .instances import GEMMA, LLAMA, Emulate, Instance, eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends by signals")
BODY: dict[str, Any] = {"model": GEMMA, "prompt": "Hi"}
LOST = {"error": "an error was encountered while running the model: unexpected EOF"}


@pytest.fixture
def server(emulate: Emulate) -> Iterator[Instance]:
    """An emulator that has loaded a model; its runner is gone at the end, even if the emulator was killed."""
    server = emulate("speed=20,noise=0,ttft_ms=12000,fault=orphan")
    server.post("/api/generate", {"model": GEMMA})
    families = runners(server)
    yield server
    if server.process.poll() is None:
        families += runners(server)
    for runner in families:
        if runner.is_running():
            runner.kill()


def runners(server: Instance) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def loads(server: Instance) -> int:
    return server.stderr.read_text().count("starting llama-server")


def gone(runner: psutil.Process) -> bool:
    return not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE


def test_each_loaded_model_has_a_runner_in_the_servers_group_with_its_environment(server: Instance) -> None:
    server.post("/api/generate", {"model": LLAMA})
    assert len(runners(server)) == 2
    for runner in runners(server):
        assert runner.cmdline()[-1] == "llama-server"
        assert os.getpgid(runner.pid) == os.getpgid(server.process.pid)
        assert runner.environ()["LLMPERF_EMULATOR"].endswith("fault=orphan")


def test_nothing_else_has_one(emulate: Emulate) -> None:
    server = emulate("speed=20")
    server.ask(1)
    assert runners(server) == []


def test_it_ends_when_the_model_is_unloaded(server: Instance) -> None:
    (runner,) = runners(server)
    server.post("/api/generate", {"model": GEMMA, "keep_alive": 0})
    eventually(lambda: gone(runner))
    assert server.loaded() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_a_server_that_is_asked_to(server: Instance, number: signal.Signals) -> None:
    (runner,) = runners(server)
    server.process.send_signal(number)
    assert server.process.wait(10) == 0
    assert gone(runner)


def test_it_outlives_a_server_that_is_killed(server: Instance) -> None:
    (runner,) = runners(server)
    server.process.kill()
    server.process.wait()
    runner.send_signal(signal.SIGPIPE)
    with pytest.raises(psutil.TimeoutExpired):
        runner.wait(0.3)
    assert runner.ppid() != server.process.pid
    assert not gone(runner)


def test_killed_before_the_first_token_the_answer_is_a_500_and_the_next_one_loads_again(server: Instance) -> None:
    killer = Timer(0.25, runners(server)[0].kill)  # of the 0.6 s that the first token takes
    killer.start()
    answer = server.post("/api/generate", BODY)
    assert (answer.status_code, answer.json()) == (500, LOST)
    assert (loads(server), server.ask(2)["eval_count"], loads(server)) == (1, 2, 2)
    assert len(runners(server)) == 1
    assert len(server.loaded()) == 1


def test_killed_in_the_middle_the_stream_ends_with_an_error_line(server: Instance) -> None:
    killer = Timer(1.2, runners(server)[0].kill)  # the first of 15 s of tokens comes after 0.6 s
    killer.start()
    answer = server.post("/api/generate", {**BODY, "options": {"num_predict": 30_000}})
    *chunks, last = [json.loads(line) for line in answer.text.splitlines()]
    assert (answer.status_code, last) == (200, LOST)
    assert [chunk["done"] for chunk in chunks] == [False] * len(chunks)
    assert (len(chunks) > 1, server.ask(2)["eval_count"], loads(server)) == (True, 2, 2)


def test_killed_while_idle_the_next_request_loads_again(server: Instance) -> None:
    runners(server)[0].kill()
    assert (server.ask(2)["eval_count"], loads(server)) == (2, 2)
