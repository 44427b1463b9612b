"""The emulated GPU's memory: what fits side by side, and what becomes of what doesn't."""

from __future__ import annotations

import re
import signal
import time
from functools import partial

import httpx
import pytest

from pytest_llmperf.emulator import models, placement
from pytest_llmperf.emulator.options import LoadOptions
from pytest_llmperf.emulator.placement import Placement

from .instances import GEMMA, LLAMA, Emulate, Final, Instance, decode_rate, eventually, together

WHOLE = 3_338_801_804 + 4096 * 139_264  # bytes of Gemma with Ollama's default context: 3.64 GiB
LAYERS = 35
ROOM_FOR_ONE = "speed=20,noise=0,vram_gb=5"
SPILLED_SIZE = WHOLE * 13 // LAYERS  # 13 layers fit into what a whole Gemma leaves of 5 GiB
NO_ROOM = (
    "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory\n"
    f"alloc_tensor_range: failed to allocate CUDA0 buffer of size {WHOLE}\n"
    "error loading model: unable to allocate CUDA0 buffer"
)


def on_gpu(*instances: Instance) -> list[int]:
    """`size_vram` of every model that is loaded."""
    return [model["size_vram"] for instance in instances for model in instance.loaded()]


def load(instance: Instance, **options: object) -> httpx.Response:
    return instance.post("/api/generate", {"model": GEMMA, "options": options})


def unload(instance: Instance) -> None:
    assert instance.post("/api/generate", {"model": GEMMA, "keep_alive": 0}).status_code == 200


def test_three_instances_fit_on_the_default_device_and_a_fourth_does_not(emulate: Emulate) -> None:
    servers = [emulate("speed=20", f"agent{number}") for number in range(1, 5)]
    for server in servers:
        server.ask(1)
    assert on_gpu(*servers) == [WHOLE, WHOLE, WHOLE, WHOLE * 10 // LAYERS]
    assert [model["size"] for server in servers for model in server.loaded()] == [WHOLE] * 4


def test_four_small_contexts_do_not_fit_on_the_default_device_either(emulate: Emulate) -> None:
    servers = [emulate("speed=20", f"agent{number}") for number in range(1, 5)]
    answers = [load(server, num_ctx=512, num_gpu=80).status_code for server in servers]
    assert answers == [200, 200, 200, 500]


def test_layers_that_do_not_fit_stay_on_the_cpu_and_are_slow(emulate: Emulate) -> None:
    first, second = emulate(ROOM_FOR_ONE), emulate(ROOM_FOR_ONE, "agent2")
    whole, spilled = first.ask(100), second.ask(100)
    assert on_gpu(first, second) == [WHOLE, SPILLED_SIZE]
    assert "load_tensors: offloaded 35/35 layers to GPU" in first.stderr.read_text()
    assert "load_tensors: offloaded 13/35 layers to GPU" in second.stderr.read_text()
    slowdown = 13 / 35 + 22 / 35 * 432 / 89.6
    assert decode_rate(whole) / decode_rate(spilled) == pytest.approx(slowdown, rel=0.25)


def test_a_full_device_leaves_everything_to_the_cpu(emulate: Emulate) -> None:
    first, second = emulate("speed=20,vram_gb=3.7"), emulate("speed=20,vram_gb=3.7", "agent2")
    first.ask(1)
    assert second.ask(20)["eval_count"] == 20
    assert on_gpu(first, second) == [WHOLE, 0]


@pytest.mark.parametrize("num_gpu", [80, LAYERS, 14])
@pytest.mark.parametrize("stream", [True, False])
def test_asked_for_layers_that_do_not_fit_are_a_500(emulate: Emulate, num_gpu: int, *, stream: bool) -> None:
    first, second = emulate(ROOM_FOR_ONE), emulate(ROOM_FOR_ONE, "agent2")
    first.ask(1)
    body = {"model": GEMMA, "prompt": "Hi", "stream": stream, "options": {"num_gpu": num_gpu}}
    answer = second.post("/api/generate", body)
    error = NO_ROOM.replace(str(WHOLE), str(WHOLE * min(num_gpu, LAYERS) // LAYERS))
    assert (answer.status_code, answer.json()) == (500, {"error": error})
    assert on_gpu(first, second) == [WHOLE]
    assert 'msg="Load failed" model=gemma3:4b-it-q4_K_M error="llama-server process has' in second.stderr.read_text()


@pytest.mark.parametrize("num_gpu", [13, 0])
def test_asked_for_layers_that_fit_are_loaded(emulate: Emulate, num_gpu: int) -> None:
    first, second = emulate(ROOM_FOR_ONE), emulate(ROOM_FOR_ONE, "agent2")
    first.ask(1)
    assert load(second, num_gpu=num_gpu).json()["done_reason"] == "load"
    assert on_gpu(second) == [WHOLE * num_gpu // LAYERS]


@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_a_stopped_or_killed_instance_gives_its_memory_back(emulate: Emulate, number: signal.Signals) -> None:
    first, second = emulate(ROOM_FOR_ONE), emulate(ROOM_FOR_ONE, "agent2")
    first.ask(1)
    assert load(second, num_gpu=80).status_code == 500
    with first.streaming():
        first.process.send_signal(number)
        first.process.wait(10)
    second.ask(1)
    assert on_gpu(second) == [WHOLE]


def test_an_unloaded_model_gives_its_memory_back(emulate: Emulate) -> None:
    first, second = emulate(ROOM_FOR_ONE), emulate(ROOM_FOR_ONE, "agent2")
    first.ask(1)
    second.ask(1)
    for server in (first, second):
        unload(server)
    second.ask(1)
    assert on_gpu(first, second) == [WHOLE]


def test_a_model_whose_time_is_up_gives_its_memory_back_unasked(emulate: Emulate) -> None:
    first, second = emulate(ROOM_FOR_ONE), emulate(ROOM_FOR_ONE, "agent2")
    first.post("/api/generate", {"model": GEMMA, "keep_alive": "1100ms"})
    assert on_gpu(first) == [WHOLE]
    eventually(lambda: load(second, num_gpu=80).status_code == 200)
    assert on_gpu(second) == [WHOLE]


def test_an_instance_unloads_its_own_idle_models_to_make_room(emulate: Emulate) -> None:
    server = emulate("speed=20,vram_gb=6")
    server.ask(1)
    server.ask(1, model=LLAMA)
    (left,) = server.loaded()
    assert (left["name"], left["size_vram"]) == (LLAMA, left["size"])
    server.ask(1, num_gpu=80)
    assert [model["name"] for model in server.loaded()] == [GEMMA]


def test_an_instance_unloads_no_more_than_it_must(emulate: Emulate) -> None:
    server = emulate("speed=20,vram_gb=9")
    for model in (LLAMA, GEMMA, "qwen2.5:7b"):
        server.ask(1, model=model)
    assert [model["name"] for model in server.loaded()] == ["qwen2.5:7b", GEMMA]


def test_a_load_waits_for_the_requests_of_a_model_in_its_way(emulate: Emulate) -> None:
    server = emulate("speed=20,noise=0,vram_gb=6")
    server.ask(1)

    def other() -> Final:
        time.sleep(0.05)
        return server.ask(1, model=LLAMA)

    running, loaded = together(partial(server.ask, 600), other)
    assert running["eval_count"] == 600
    assert loaded["load_duration"] / 1e9 > running["total_duration"] / 1e9 - 0.1
    assert [model["name"] for model in server.loaded()] == [LLAMA]


def test_loads_at_the_same_moment_never_share_a_byte(emulate: Emulate) -> None:
    servers = [emulate("speed=20,vram_gb=8", f"agent{number}") for number in range(1, 5)]
    together(*(partial(server.ask, 1) for server in servers))
    rest = 8 * 2**30 - 2 * WHOLE
    assert sorted(on_gpu(*servers)) == [0, WHOLE * (rest * LAYERS // WHOLE) // LAYERS, WHOLE, WHOLE]


def test_slots_need_a_cache_each(emulate: Emulate) -> None:
    server = emulate("speed=20", OLLAMA_NUM_PARALLEL="3")
    server.ask(1)
    assert on_gpu(server) == [WHOLE + 2 * 4096 * 139_264]


def test_the_log_says_how_much_is_free(emulate: Emulate) -> None:
    first = emulate("speed=20,vram_gb=8")
    first.ask(1)
    second = emulate("speed=20,vram_gb=8", "agent2")
    free = [re.findall(r'total="12\.0 GiB" available="(.*?)"', server.stderr.read_text()) for server in (first, second)]
    assert free == [["8.0 GiB"], ["4.4 GiB"]]


@pytest.mark.parametrize(
    ("num_gpu", "free", "layers", "speed"),
    [
        (-1, WHOLE, 35, 1.0),
        (80, 12 * WHOLE, 35, 1.0),
        (17, WHOLE, 17, 1.0),
        (0, 0, 0, 1.0),
        (-1, WHOLE - 1, 34, 1 / (34 / 35 + 1 / 35 * 432 / 89.6)),
        (-1, 0, 0, 89.6 / 432),
    ],
)
def test_what_fits_into_what_is_free(num_gpu: int, free: int, layers: int, speed: float) -> None:
    found: Placement = placement.asked(models.MODELS[GEMMA], LoadOptions(4096, num_gpu=num_gpu), 1).within(free)
    assert (found.layers, found.size_vram) == (layers, WHOLE * layers // LAYERS)
    assert found.speed == (1.0 if speed == 1.0 else pytest.approx(speed))
    assert found.size_vram <= free
