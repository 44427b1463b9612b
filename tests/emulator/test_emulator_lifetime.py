"""How long a model stays loaded, and which options load it again."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from .instances import GEMMA, Emulate, Instance, eventually

EMPTY: dict[str, dict[str, object]] = {
    "/api/generate": {"model": GEMMA},
    "/api/chat": {"model": GEMMA, "messages": []},
}


@pytest.fixture
def server(emulate: Emulate) -> Instance:
    return emulate("speed=50", OLLAMA_KEEP_ALIVE="10m")


def answer(server: Instance, keep_alive: object = None) -> None:
    body = {"model": GEMMA, "prompt": "Hi", "keep_alive": keep_alive, "options": {"num_predict": 1}}
    assert server.post("/api/generate", body).status_code == 200


def left_s(server: Instance) -> float:
    (model,) = server.loaded()
    return (datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)).total_seconds()


def loads(server: Instance) -> int:
    return server.stderr.read_text().count("starting llama-server")


def test_keep_alive_of_any_request_replaces_what_is_left(server: Instance) -> None:
    answer(server)
    assert left_s(server) == pytest.approx(600, abs=20)
    answer(server, "1h")
    assert left_s(server) == pytest.approx(3600, abs=20)
    server.post("/api/chat", {"model": GEMMA, "messages": [], "keep_alive": 120})
    assert left_s(server) == pytest.approx(120, abs=20)
    assert loads(server) == 1


def test_a_request_without_keep_alive_leaves_what_an_earlier_one_has_set(server: Instance) -> None:
    answer(server, "1h")
    answer(server)
    assert left_s(server) == pytest.approx(3600, abs=20)


def test_the_request_that_came_last_decides_not_the_one_that_ended_last(emulate: Emulate) -> None:
    server = emulate("speed=50", OLLAMA_NUM_PARALLEL="2")
    with server.streaming():
        answer(server, "1h")
    eventually(lambda: server.stdout.read_text().count("/api/generate") == 2)
    assert left_s(server) == pytest.approx(3600, abs=20)


@pytest.mark.parametrize("path", EMPTY)
@pytest.mark.parametrize("keep_alive", [0, "0s", "900ms", 0.5])
def test_nothing_to_answer_and_less_than_a_second_to_live_is_an_unload(
    server: Instance, path: str, keep_alive: object
) -> None:
    answer(server)
    unloaded = server.post(path, {**EMPTY[path], "keep_alive": keep_alive}).json()
    assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
    assert "total_duration" not in unloaded
    eventually(lambda: server.loaded() == [])


def test_an_unload_of_what_is_not_loaded_loads_nothing(server: Instance) -> None:
    unloaded = server.post("/api/generate", {"model": GEMMA, "keep_alive": 0})
    assert (unloaded.status_code, unloaded.json()["done_reason"], loads(server)) == (200, "unload", 0)


def test_an_unload_answers_at_once_and_happens_after_the_requests_in_flight(server: Instance) -> None:
    with server.streaming():
        server.post("/api/generate", {"model": GEMMA, "keep_alive": 0})
        time.sleep(0.1)
        assert len(server.loaded()) == 1
    eventually(lambda: server.loaded() == [])


def test_a_request_that_comes_before_the_unload_happens_keeps_the_model(emulate: Emulate) -> None:
    server = emulate("speed=50", OLLAMA_NUM_PARALLEL="2")
    with server.streaming():
        server.post("/api/generate", {"model": GEMMA, "keep_alive": 0})
        answer(server, "1h")
    eventually(lambda: server.stdout.read_text().count("/api/generate") == 3)
    assert left_s(server) == pytest.approx(3600, abs=20)
    assert loads(server) == 1


def test_an_answer_with_keep_alive_0_is_whole_and_the_model_goes(server: Instance) -> None:
    body = {"model": GEMMA, "prompt": "Hi", "keep_alive": 0, "stream": False, "options": {"num_predict": 5}}
    assert server.post("/api/generate", body).json()["eval_count"] == 5
    eventually(lambda: server.loaded() == [])


@pytest.mark.parametrize(
    "change",
    [
        {"num_ctx": 1024},
        {"num_batch": 256},
        {"num_gpu": 80},
        {"main_gpu": 1},
        {"use_mmap": False},
        {"num_thread": 2},
        {"draft_num_predict": 4},
    ],
)
def test_a_load_time_option_loads_the_model_again(server: Instance, change: dict[str, Any]) -> None:
    server.ask(1)
    server.ask(1, **change)
    assert loads(server) == 2
    server.ask(1, **change)
    assert loads(server) == 2


def test_options_of_a_request_never_do(server: Instance) -> None:
    server.ask(1)
    changes: list[dict[str, Any]] = [
        {"temperature": 0.1, "seed": 7, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9},
        {"repeat_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": 1, "repeat_last_n": 3},
        {"num_keep": 2, "stop": ["."], "no_such_option": 1},
    ]
    for change in changes:
        server.ask(1, **change)
    assert loads(server) == 1


def test_a_request_with_num_gpu_minus_1_takes_any_loaded_runner_but_not_the_other_way_round(server: Instance) -> None:
    server.ask(1, num_gpu=17)
    server.ask(1)
    server.ask(1, num_gpu=-1)
    assert loads(server) == 1
    server.ask(1, num_gpu=-1, num_ctx=1024)
    server.ask(1, num_gpu=17, num_ctx=1024)
    assert loads(server) == 3
