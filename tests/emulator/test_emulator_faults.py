"""Faults on demand: one thing goes wrong, the rest of the emulator goes on as ever."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from pytest_llmperf.emulator import config, faults

from .instances import GEMMA, Emulate, Final, Instance, decode_rate, eventually

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals that a process can send itself")
README = Path(__file__).parents[2] / "README.md"
CHAT = {"model": GEMMA, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 10}}
PATIENCE_S = 0.7


def lines(server: Instance, sink: list[str]) -> None:
    """Adds the lines of a chat of ten tokens to `sink` as they come; an httpx error where they stop coming."""
    with httpx.stream("POST", f"http://{server.address}/api/chat", json=CHAT, timeout=PATIENCE_S) as answer:
        sink.extend(answer.iter_lines())


def before_the_ninth(server: Instance) -> None:
    for _ in range(8):
        assert server.ask(10)["eval_count"] == 10


def the_ninth(server: Instance, error: type[httpx.HTTPError]) -> list[str]:
    """What comes of the ninth answer before `error`."""
    before_the_ninth(server)
    received: list[str] = []
    with pytest.raises(error):
        lines(server, received)
    return received


@pytest.mark.parametrize(("fault", "tokens"), [("crash", 5), ("crash:2", 2), ("crash:30", 10)])
def test_crash_ends_the_process_in_the_ninth_answer(emulate: Emulate, fault: str, tokens: int) -> None:
    server = emulate(f"speed=50,fault={fault}")
    received = the_ninth(server, httpx.RemoteProtocolError)
    assert [json.loads(line)["done"] for line in received] == [False] * tokens
    assert server.process.wait(10) == (1 if sys.platform == "win32" else -signal.SIGKILL)


def test_hang_stops_the_ninth_answer_half_way_and_nothing_else(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=hang")
    assert len(the_ninth(server, httpx.ReadTimeout)) == 5
    assert server.get("/api/version").status_code == 200
    assert server.ask(10)["eval_count"] == 10


@posix
def test_freeze_stops_the_whole_process_in_the_ninth_answer(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=freeze")
    assert len(the_ninth(server, httpx.ReadTimeout)) == 5
    assert psutil.Process(server.process.pid).status() == psutil.STATUS_STOPPED
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"http://{server.address}/api/version", timeout=PATIENCE_S)


def test_malformed_spoils_the_line_in_the_middle_of_the_ninth_answer(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=malformed")
    before_the_ninth(server)
    ninth: list[str] = []
    tenth: list[str] = []
    lines(server, ninth)
    lines(server, tenth)
    with pytest.raises(json.JSONDecodeError):
        json.loads(ninth.pop(5))
    assert [json.loads(line)["done"] for line in ninth] == [False] * 9 + [True]
    assert [json.loads(line)["done"] for line in tenth] == [False] * 10 + [True]


def test_busy_refuses_every_chat(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=busy")
    for _ in range(3):
        answer = server.post("/api/chat", CHAT)
        assert answer.status_code == 503
        assert answer.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    assert server.ask(2)["eval_count"] == 2


@pytest.mark.parametrize(("fault", "size"), [("context", 2048), ("context:300", 300)])
def test_context_loads_with_a_size_of_its_own(emulate: Emulate, fault: str, size: int) -> None:
    server = emulate(f"speed=50,fault={fault}")
    server.ask(1, num_ctx=4096)
    assert server.ask(1, num_ctx=8192, prompt="word " * 2000)["prompt_eval_count"] == size
    assert [model["context_length"] for model in server.loaded()] == [size]
    assert server.loaded()[0]["size"] == 3_338_801_804 + size * 139_264
    log = server.stderr.read_text()
    assert f" -c {size} -np 1 " in log
    assert log.count("starting llama-server") == 1


def test_layers_puts_fewer_on_the_gpu_which_is_slower(emulate: Emulate) -> None:
    usual, fewer = emulate("speed=10,noise=0"), emulate("speed=10,noise=0,fault=layers", "agent2")
    rates = [decode_rate(server.ask(100, num_gpu=35)) for server in (usual, fewer)]
    assert "load_tensors: offloaded 25/35 layers to GPU" in fewer.stderr.read_text()
    (loaded,) = fewer.loaded()
    assert loaded["size_vram"] == loaded["size"] * 25 // 35
    assert rates[0] / rates[1] == pytest.approx(25 / 35 + 10 / 35 * 432 / 89.6, rel=0.25)


def test_no_more_layers_can_be_missing_than_were_asked_for(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=layers:20")
    server.ask(1, num_gpu=4)
    assert "load_tensors: offloaded 0/35 layers to GPU" in server.stderr.read_text()
    assert [model["size_vram"] for model in server.loaded()] == [0]


def test_slots_works_on_one_request_at_a_time_whatever_was_asked_for(emulate: Emulate) -> None:
    server = emulate("speed=5,noise=0,fault=slots", OLLAMA_NUM_PARALLEL="4")
    server.ask(1)
    with server.streaming(num_predict=150):
        began = time.monotonic()
        server.ask(1)
        assert time.monotonic() - began > 0.05  # of the 0.3 s that the other one takes
    assert " -c 4096 -np 1 " in server.stderr.read_text()


def test_slow_start_listens_long_before_it_answers(emulate: Emulate) -> None:
    server = emulate("fault=slow-start:1", ready=False)
    eventually(server.listening)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"http://{server.address}/", timeout=0.3)
    assert server.get("/").text == "Ollama is running"


def test_flood_writes_its_log_without_end(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=flood:1")
    assert server.ask(5)["eval_count"] == 5
    before = server.stderr.stat().st_size
    eventually(lambda: server.stderr.stat().st_size > before + 100_000)
    said = server.stderr.read_text().splitlines()
    assert len([line for line in said if len(line) == 1023]) > 100
    assert any('msg="Listening on' in line for line in said)


@pytest.mark.parametrize("stream", [True, False])
def test_cached_says_that_the_whole_prompt_was(emulate: Emulate, *, stream: bool) -> None:
    def final(fault: str) -> Final:
        answer = emulate(f"speed=50,fault={fault}").post("/api/chat", {**CHAT, "stream": stream})
        return dict(json.loads(answer.text.splitlines()[-1]))

    cached, usual = final("cached"), final("none")
    assert cached["prompt_eval_cached_count"] == cached["prompt_eval_count"] > 0
    assert cached.keys() - usual.keys() == {"prompt_eval_cached_count"}


@pytest.mark.parametrize("think", [None, True, "high"])
def test_thinking_thinks_in_the_first_half_of_a_chat(emulate: Emulate, think: object) -> None:
    answer = emulate("speed=50,fault=thinking").post("/api/chat", {**CHAT, "think": think})
    *chunks, final = [json.loads(line) for line in answer.text.splitlines()]
    thoughts = [bool(chunk["message"].get("thinking")) for chunk in chunks]
    assert thoughts == [True] * 5 + [False] * 5
    assert [bool(chunk["message"]["content"]) for chunk in chunks] == [not thought for thought in thoughts]
    assert (final["message"], final["eval_count"]) == ({"role": "assistant", "content": ""}, 10)


def test_thinking_thinks_in_whole_answers_too_unless_it_is_told_not_to(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=thinking")
    body = {"model": GEMMA, "prompt": "Hi", "stream": False, "options": {"num_predict": 9}}
    answer = server.post("/api/generate", body).json()
    assert (len(answer["thinking"].split()), len(answer["response"].split())) == (4, 5)
    without = server.post("/api/generate", {**body, "think": False}).json()
    assert "thinking" not in without
    assert len(without["response"].split()) == 9
    assert [part.strip() for part in (answer["thinking"], answer["response"])] == [
        " ".join(words) for words in (without["response"].split()[:4], without["response"].split()[4:])
    ]


def test_thinking_is_a_capability_that_the_official_client_sees(emulate: Emulate) -> None:
    server = emulate("speed=50,fault=thinking")
    assert server.client.show(GEMMA).capabilities == ["completion", "thinking"]
    assert all("thinking" in model["capabilities"] for model in server.get("/api/tags").json()["models"])
    message = server.client.chat(GEMMA, [{"role": "user", "content": "Hi"}], options={"num_predict": 4}).message
    assert [len((text or "").split()) for text in (message.thinking, message.content)] == [2, 2]


@pytest.mark.parametrize("text", ["crash:0", "crash:-1", "crash:", "crash:many", "layers:1.5", "hang:3", "Crash", ""])
def test_a_fault_that_is_none_is_answered_with_all_there_are(text: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.read({"LLMPERF_EMULATOR": f"fault={text}"})
    assert str(caught.value).startswith(f"LLMPERF_EMULATOR: fault={text!r} is not one of none, exit, silent, deaf, ")
    assert ", crash[:5], hang, " in str(caught.value)
    assert "where [:number] is a whole one above 0 and may be left out" in str(caught.value)


@pytest.mark.parametrize("name", faults.FAULTS)
def test_every_fault_is_in_the_readme(name: str) -> None:
    (row,) = [line for line in README.read_text("utf-8").splitlines() if line.startswith("| `fault` |")]
    entry = faults.FAULTS[name]
    assert f"`{name}{f'[:{entry.default}]' if isinstance(entry, faults.Numbered) else ''}`" in row
