"""Runs that are tried: on an emulator process, against a socket that breaks, and hand-made where only numbers count."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from pytest_llmperf.model import InvalidRunError
from pytest_llmperf.runs import Attempt, attempt, cause_of, run
from pytest_llmperf.traffic import Run
from tests import builders
from tests.benches import BUSY, fleets, workload

Serve = Callable[[str], str]

NONCES = (f"[{number}]" for number in count(1))
AGENT = workload("a", tokens=8, prompts=("Why?", "How?"))


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts an emulator and returns its URL."""
    with fleets(tmp_path, monkeypatch) as fleet_of:
        yield lambda emulator: fleet_of().start("agent1", {"LLMPERF_EMULATOR": emulator}).url


def test_a_run_that_counts_has_no_cause(serve: Serve) -> None:
    url = serve("speed=50")
    tried = attempt([(AGENT, url), (workload("b"), url)], NONCES)
    assert isinstance(tried.run, Run)
    assert [(track.agent, track.tokens) for track in tried.run.tracks] == [("a", 16), ("b", 16)]
    assert (tried.cause, tried.short) == ("", False)


def test_a_run_whose_model_stops_early_has_its_numbers_and_a_cause(serve: Serve) -> None:
    tried = attempt([(AGENT, serve("speed=50,fault=short"))], NONCES)
    assert isinstance(tried.run, Run)
    assert (tried.cause, tried.short) == ("the model stopped early (4 of 8 tokens)", True)


def test_a_prompt_that_a_cache_has_answered_is_a_cause(serve: Serve) -> None:
    tried = attempt([(AGENT, serve("speed=50,fault=cached"))], NONCES)
    assert tried.cause.startswith("the server had the prompt in its cache (")
    assert not tried.short


def test_of_a_thinking_model_the_first_thought_is_the_first_token(serve: Serve) -> None:
    tried = attempt([(AGENT, serve("speed=50,fault=thinking"))], NONCES)
    assert isinstance(tried.run, Run)
    assert tried.cause == ""
    for exchange in tried.run.exchanges:
        assert exchange.tokens == 8
        assert exchange.first_token - exchange.released < exchange.server["prompt_eval"] + 0.05
        assert len(exchange.gaps) > 4, "thoughts and words are one stream"


EOF = "an error was encountered while running the model: unexpected EOF"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("no-done", "the stream ended without done after 4 chunks (HTTP 200)"),
        ("error", f"the server answered 200 with an error after 3 chunks: {EOF}"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_cause_and_leaves_no_run(serve: Serve, fault: str, cause: str) -> None:
    url = serve(f"speed=50,fault={fault}")
    assert attempt([(AGENT, url)], NONCES) == Attempt(None, cause)
    with pytest.raises(InvalidRunError) as caught:
        run([(AGENT, url)], NONCES)
    assert str(caught.value) == cause


def test_only_the_request_that_the_server_refuses_is_a_cause(serve: Serve) -> None:
    url = serve("speed=50,fault=hiccup")
    tried = [attempt([(AGENT, url)], NONCES) for _ in range(6)]
    assert [one.cause for one in tried] == ["", "", "", "", BUSY, ""]
    assert tried[4].run is None


@contextmanager
def breaking() -> Iterator[tuple[str, list[bytes]]]:
    """A server that resets the connection in answer to a request: its URL, and the requests it got."""
    asked = list[bytes]()

    def reset() -> None:
        while True:
            peer, _ = door.accept()
            with peer:
                if not (request := peer.recv(1 << 16)):
                    return
                asked.append(request)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=reset)
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}", asked
        socket.create_connection(door.getsockname()).close()
        thread.join(timeout=20)
    assert not thread.is_alive()


def test_a_connection_that_breaks_is_no_cause_but_the_end() -> None:
    with breaking() as (url, asked), pytest.raises(InvalidRunError, match=f"^{url} broke the connection: .*reset"):
        attempt([(AGENT, url)], NONCES)
    assert len(asked) == 1


def test_a_server_that_is_not_there_is_no_cause_but_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    with pytest.raises(InvalidRunError, match=f"^{url} does not answer: .*refused"):
        attempt([(AGENT, url)], NONCES)


@pytest.mark.parametrize(
    ("load", "makespan", "cause"),
    [
        (0.0, 5.0, ""),
        (1.0, 5.0, ""),
        (1.1, 5.0, "the server loaded the model during the run (1.1 s)"),
        (2.0, 20.0, ""),
        (2.1, 20.0, "the server loaded the model during the run (2.1 s)"),
    ],
)
def test_a_load_is_a_cause_from_a_second_and_a_tenth_of_the_run_on(load: float, makespan: float, cause: str) -> None:
    loading = builders.exchange(makespan / 2, load=load)
    assert cause_of(builders.run(loading, builders.exchange(makespan))) == cause


def test_a_server_that_reports_no_load_is_believed() -> None:
    assert cause_of(builders.ending(5.0, 6.0)) == ""


def test_how_long_a_run_took_is_never_a_cause() -> None:
    quick, slow = builders.ending(1.0), builders.ending(3600.0)
    assert cause_of(quick) == cause_of(slow) == ""


def test_a_short_answer_does_not_hide_a_load() -> None:
    loading = replace(builders.exchange(5.0, load=3.0), budget=48)
    tried = Attempt(builders.run(loading), cause_of(builders.run(loading)))
    assert (tried.cause, tried.short) == ("the server loaded the model during the run (3.0 s)", False)
