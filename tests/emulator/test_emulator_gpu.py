"""The emulated GPU: how fast a stream is alone, beside others, and in a queue."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from threading import Timer
from typing import Any

import pytest

from pytest_llmperf.emulator.device import Demand, share
from pytest_llmperf.emulator.options import LoadOptions

from .instances import LLAMA, Emulate, Final, Instance, decode_rate, queue_wait, together

QUIET = "speed=5,noise=0"
SOLO = 500.0  # Gemma's 100 tok/s at speed=5


def ask(instance: Instance, tokens: int, **more: Any) -> Callable[[], Final]:  # noqa: ANN401
    return partial(instance.ask, tokens, **more)


def test_alone_a_stream_has_the_models_own_rate(emulate: Emulate) -> None:
    server = emulate(QUIET)
    assert decode_rate(server.ask(100)) == pytest.approx(SOLO, rel=0.15)
    assert decode_rate(server.ask(100, model=LLAMA)) == pytest.approx(0.68 * SOLO, rel=0.15)


def test_equal_instances_get_45_percent_each(emulate: Emulate) -> None:
    first, second = emulate(QUIET), emulate(QUIET, "agent2")
    together(ask(first, 1), ask(second, 1))
    with first.streaming():
        assert decode_rate(second.ask(40)) / SOLO == pytest.approx(0.45, abs=0.08)
    with second.streaming():
        assert decode_rate(first.ask(40)) / SOLO == pytest.approx(0.45, abs=0.08)


def test_unequal_instances_get_42_and_55_percent(emulate: Emulate) -> None:
    usual, small = emulate(QUIET), emulate(QUIET, "agent2")
    options: dict[str, Any] = {"num_ctx": 512, "num_gpu": 80}
    together(ask(usual, 1), ask(small, 1, **options))
    with usual.streaming():
        favoured = decode_rate(small.ask(80, **options)) / SOLO
    with small.streaming(**options):
        other = decode_rate(usual.ask(80)) / SOLO
    assert [other, favoured] == pytest.approx([0.42, 0.55], abs=0.06)
    assert other < favoured


DEFAULTS = LoadOptions(4096)


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        (DEFAULTS, [], 1.0),
        (DEFAULTS, [DEFAULTS], 0.45),
        (DEFAULTS, [DEFAULTS, DEFAULTS], 0.30),
        (DEFAULTS, [LoadOptions(512)], 0.42),
        (LoadOptions(512), [DEFAULTS], 0.55),
        (LoadOptions(512, num_gpu=80), [LoadOptions(512, num_gpu=10)], 0.55),
        (LoadOptions(512, num_gpu=10), [LoadOptions(512, num_gpu=80)], 0.42),
        (LoadOptions(4096, num_batch=1024), [DEFAULTS], 0.55),
        (LoadOptions(512), [DEFAULTS, DEFAULTS], 0.97 * 55 / 139),
    ],
)
def test_shares_of_the_device(mine: LoadOptions, others: list[LoadOptions], expected: float) -> None:
    assert share(Demand.of(mine), [Demand.of(other) for other in others]) == pytest.approx(expected)


def test_two_models_of_one_instance_share_the_device_like_two_instances(emulate: Emulate) -> None:
    server = emulate(QUIET)
    together(ask(server, 1), ask(server, 1, model=LLAMA))
    with server.streaming():
        assert decode_rate(server.ask(40, model=LLAMA)) == pytest.approx(0.45 * 0.68 * SOLO, rel=0.15)


def test_slots_of_one_instance_batch(emulate: Emulate) -> None:
    server = emulate(QUIET, OLLAMA_NUM_PARALLEL="2")
    server.ask(1)
    with server.streaming():
        assert decode_rate(server.ask(100)) == pytest.approx(1.6 * SOLO / 2, rel=0.15)


def test_requests_beyond_the_slots_wait_in_order(emulate: Emulate) -> None:
    server = emulate("speed=2,noise=0")
    server.ask(1)
    arrived: list[Final] = []

    def late(seconds: float) -> Final:
        time.sleep(seconds)
        arrived.append(server.ask(90, prompt=str(seconds)))
        return arrived[-1]

    finals = together(*(partial(late, delay) for delay in (0.0, 0.15, 0.3)))
    assert arrived == finals
    service = (finals[0]["prompt_eval_duration"] + finals[0]["eval_duration"]) / 1e9
    waits = [queue_wait(final) for final in finals]
    assert waits == pytest.approx([0, service - 0.15, 2 * service - 0.3], abs=0.4 * service)
    assert all(final["load_duration"] < 0.3 * service * 1e9 for final in finals)


def test_a_serial_device_runs_one_stream_at_a_time(emulate: Emulate) -> None:
    first, second = emulate(f"{QUIET},serial=1"), emulate(f"{QUIET},serial=1", "agent2")
    together(ask(first, 1), ask(second, 1))
    finals = together(ask(first, 100), ask(second, 100))
    assert [decode_rate(final) for final in finals] == pytest.approx([SOLO, SOLO], rel=0.15)
    assert max(queue_wait(final) for final in finals) > 0.1  # of the 0.21 s that the other one takes


def test_slowdown_is_what_it_says(emulate: Emulate) -> None:
    usual, slow = (emulate(f"speed=2,noise=0,ttft_ms=400,slowdown={by}", f"by-{by}") for by in (1, 1.5))
    a, b = usual.ask(60), slow.ask(60)
    for phase in ("prompt_eval_duration", "eval_duration"):
        assert b[phase] / a[phase] == pytest.approx(1.5, rel=0.15)


def test_the_time_to_the_first_token_is_the_one_set(emulate: Emulate) -> None:
    assert emulate("noise=0,ttft_ms=150").ask(1)["prompt_eval_duration"] == pytest.approx(150e6, rel=0.2)


def test_a_killed_instances_claim_lapses(emulate: Emulate) -> None:
    victim, survivor = emulate(QUIET), emulate(QUIET, "agent2")
    together(ask(victim, 1), ask(survivor, 1))
    with victim.streaming():
        assert decode_rate(survivor.ask(100)) == pytest.approx(0.45 * SOLO, rel=0.15)
        victim.process.kill()
        victim.process.wait()
    assert decode_rate(survivor.ask(100)) == pytest.approx(SOLO, rel=0.15)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP to hold a process")
def test_a_stream_that_was_held_up_catches_up(emulate: Emulate) -> None:
    server = emulate("noise=0,speed=2")
    undisturbed = server.ask(100)["eval_duration"]
    stop = Timer(0.15, os.kill, (server.process.pid, signal.SIGSTOP))
    resume = Timer(0.35, os.kill, (server.process.pid, signal.SIGCONT))
    stop.start()
    resume.start()
    assert server.ask(100)["eval_duration"] == pytest.approx(undisturbed, rel=0.1)


def test_a_changed_load_time_option_reloads(emulate: Emulate) -> None:
    server = emulate("speed=4")
    load_s = 0.5 / 4
    first, warm = server.ask(1, num_ctx=512), server.ask(1, num_ctx=512, temperature=0.1)
    changed = server.ask(1, num_ctx=1024)
    assert min(first["load_duration"], changed["load_duration"]) >= load_s * 1e9
    assert 0 < warm["load_duration"] < load_s * 1e9
    assert [model["context_length"] for model in server.loaded()] == [1024]


def test_a_reload_waits_for_requests_in_flight(emulate: Emulate) -> None:
    server = emulate(QUIET, OLLAMA_NUM_PARALLEL="2")
    server.ask(1)

    def reload() -> Final:
        time.sleep(0.05)
        return server.ask(1, num_ctx=512)

    running, reloaded = together(ask(server, 100), reload)
    assert decode_rate(running) == pytest.approx(SOLO, rel=0.15)
    assert reloaded["load_duration"] / 1e9 > running["total_duration"] / 1e9 - 0.05


def test_noise_depends_on_the_instance_and_repeats(emulate: Emulate) -> None:
    def prefill(name: str, emulator: str) -> float:
        server = emulate(f"speed=5,ttft_ms=400,vram_gb=16,{emulator}", name)  # where the four of them fit
        server.ask(1)
        return float(server.ask(1)["prompt_eval_duration"]) / 80e6

    first, second = prefill("agent1", "noise=0.7,seed=4"), prefill("agent2", "noise=0.7,seed=4")
    assert first > 1.3 * second
    assert prefill("agent1", "noise=0.7,seed=4") == pytest.approx(first, rel=0.25)
    assert prefill("agent1", "noise=0") == pytest.approx(1, rel=0.15)


def test_a_session_is_off_as_a_whole(emulate: Emulate) -> None:
    servers = [emulate("speed=5,ttft_ms=400,noise=0,session_noise=0.5", name) for name in ("agent1", "agent2")]
    one, two = (server.ask(1)["prompt_eval_duration"] / 80e6 for server in servers)
    assert one == pytest.approx(two, rel=0.15)
    assert one > 1.2


def test_without_a_budget_the_model_stops_by_itself(emulate: Emulate) -> None:
    server = emulate("speed=50")
    finals = [server.ask(-1, prompt=prompt) for prompt in ("a", "a", "b")]
    assert [final["done_reason"] for final in finals] == ["stop"] * 3
    lengths = [final["eval_count"] for final in finals]
    assert lengths[0] == lengths[1] != lengths[2]
    assert all(30 < length < 210 for length in lengths)
