"""The emulator answers as Ollama does: to Ollama's own client, and byte for byte where clients are picky."""

from __future__ import annotations

import json
import re
import socket
from datetime import datetime
from hashlib import sha256
from typing import Any

import httpx
import pytest
from ollama import ResponseError

from pytest_llmperf.identity import EMULATOR_PHYSICS

from .instances import GEMMA, Emulate, Instance, eventually

METRICS = ["total_duration", "load_duration", "prompt_eval_count"]
METRICS += ["prompt_eval_duration", "eval_count", "eval_duration"]


@pytest.fixture
def server(emulate: Emulate) -> Instance:
    return emulate("speed=50")


def test_the_official_client_generates(server: Instance) -> None:
    answer = server.client.generate(GEMMA, "Why is the sky blue?", options={"num_predict": 12})
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 12)
    assert len((answer.response or "").split()) == 12
    assert answer.model == GEMMA
    assert all((answer[name] or 0) > 0 for name in METRICS)


def test_the_official_client_streams_one_chunk_per_token(server: Instance) -> None:
    *tokens, final = server.client.generate(GEMMA, "Hi", stream=True, options={"num_predict": 9})
    assert len(tokens) == 9
    assert all(chunk.response and not chunk.done for chunk in tokens)
    assert final.done
    assert final.response == ""
    assert len(final.context or []) == (final.prompt_eval_count or 0) + 9
    whole = server.client.generate(GEMMA, "Hi", options={"num_predict": 9})
    assert whole.response == "".join(chunk.response or "" for chunk in tokens)


def test_the_official_client_chats(server: Instance) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = server.client.chat(GEMMA, messages, options={"num_predict": 7})
    assert answer.message.role == "assistant"
    assert len((answer.message.content or "").split()) == 7
    *tokens, final = server.client.chat(GEMMA, messages, stream=True, options={"num_predict": 7})
    assert "".join(chunk.message.content or "" for chunk in tokens) == answer.message.content
    assert (final.done_reason, final.eval_count, final.message.content) == ("length", 7, "")


def test_the_official_client_lists_the_models(server: Instance) -> None:
    models = {model.model: model for model in server.client.list().models}
    assert {GEMMA, "gemma3:latest", "llama3.1:8b", "qwen2.5:7b", "qwen2.5:7b-instruct-q4_K_M"} <= models.keys()
    assert models[GEMMA].digest == models["gemma3:latest"].digest == sha256(GEMMA.encode()).hexdigest()
    details = models[GEMMA].details
    assert details
    assert (details.family, details.quantization_level) == ("gemma3", "Q4_K_M")


def test_the_official_client_shows_a_model(server: Instance) -> None:
    shown = server.client.show("llama3.1:8b")
    assert shown.details
    assert shown.details.parameter_size == "8.0B"
    assert (shown.modelinfo or {})["llama.block_count"] == 32
    assert "completion" in (shown.capabilities or [])


def test_the_official_client_sees_what_is_loaded(server: Instance) -> None:
    assert server.client.ps().models == []
    server.client.generate("gemma3", "Hi", options={"num_predict": 1, "num_ctx": 512, "num_gpu": 17})
    (loaded,) = server.client.ps().models
    assert (loaded.model, loaded.context_length) == ("gemma3", 512)
    assert loaded.size_vram == int(loaded.size or 0) * 17 // 35


def test_an_unknown_model_is_a_404(server: Instance) -> None:
    with pytest.raises(ResponseError, match=r"^model 'gpt-7' not found \(status code: 404\)$"):
        server.client.generate("gpt-7", "Hi")
    for path in ("/api/chat", "/api/show"):
        answer = server.post(path, {"model": "gpt-7"})
        assert (answer.status_code, answer.text) == (404, """{"error":"model 'gpt-7' not found"}""")


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/generate", b"", 400, "missing request body"),
        ("/api/generate", b"{", 400, "unexpected EOF"),
        ("/api/generate", b"hello", 400, "invalid character 'h' looking for beginning of value"),
        ("/api/generate", b"[]", 400, "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
        ("/api/generate", {"prompt": "Hi"}, 404, "model '' not found"),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        (
            "/api/chat",
            {"messages": ["Hi"]},
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages",
        ),
        (
            "/api/generate",
            {"model": 3},
            400,
            "json: cannot unmarshal number into Go struct field GenerateRequest.model",
        ),
        ("/api/generate", {"model": GEMMA, "keep_alive": "300"}, 400, 'time: missing unit in duration "300"'),
        ("/api/generate", {"model": GEMMA, "think": True}, 400, f'"{GEMMA}" does not support thinking'),
    ],
)
def test_a_request_that_cannot_be_read(server: Instance, path: str, body: Any, status: int, error: str) -> None:  # noqa: ANN401
    answer = server.post(path, body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_ctx": "512"}, 'option "num_ctx" must be of type integer'),
        ({"num_gpu": True}, 'option "num_gpu" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "."}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_an_option_of_the_wrong_type_is_a_500(server: Instance, options: dict[str, object], error: str) -> None:
    answer = server.post("/api/generate", {"model": GEMMA, "prompt": "Hi", "options": options})
    assert (answer.status_code, answer.json()) == (500, {"error": error})


def test_an_unknown_option_is_only_a_warning_in_the_log(server: Instance) -> None:
    assert server.ask(2, num_gpus=80)["eval_count"] == 2
    assert 'level=WARN source=types.go:1 msg="invalid option provided" option=num_gpus' in server.stderr.read_text()


def test_an_empty_prompt_loads_and_an_empty_prompt_with_keep_alive_0_unloads(server: Instance) -> None:
    loaded = server.post("/api/generate", {"model": GEMMA, "options": {"num_ctx": 700}})
    assert loaded.headers["content-type"] == "application/json; charset=utf-8"
    assert list(loaded.json()) == ["model", "created_at", "response", "done", "done_reason"]
    assert loaded.json()["done_reason"] == "load"
    assert [model["context_length"] for model in server.loaded()] == [700]
    unloaded = server.post("/api/chat", {"model": GEMMA, "messages": [], "keep_alive": 0}).json()
    assert (unloaded["done_reason"], unloaded["message"]) == ("unload", {"role": "assistant", "content": ""})
    assert server.loaded() == []


def test_a_model_stays_as_long_as_keep_alive_says(emulate: Emulate) -> None:
    server = emulate("speed=50", OLLAMA_KEEP_ALIVE="-1")
    server.ask(1)
    assert datetime.fromisoformat(server.loaded()[0]["expires_at"]).year > 2300
    server.post("/api/generate", {"model": GEMMA, "prompt": "Hi", "keep_alive": "50ms", "options": {"num_predict": 1}})
    eventually(lambda: server.loaded() == [])


def test_chunks_have_ollamas_fields_in_ollamas_order(server: Instance) -> None:
    body = {"model": GEMMA, "prompt": "Hi", "options": {"num_predict": 3}}
    answer = server.post("/api/generate", body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    *chunks, final = [json.loads(line) for line in answer.text.splitlines()]
    assert [list(chunk) for chunk in chunks] == [["model", "created_at", "response", "done"]] * 3
    head = ["model", "created_at", "response", "done", "done_reason", "context"]
    assert list(final) == [*head, *METRICS]
    assert all(isinstance(final[name], int) for name in METRICS)
    stamps = [chunk["created_at"] for chunk in chunks]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp in stamps)
    assert stamps == sorted(stamps)
    assert "context" not in server.post("/api/generate", {**body, "raw": True}).text


def test_a_connection_serves_many_requests(server: Instance) -> None:
    with httpx.Client(base_url=f"http://{server.address}") as client:
        used = {client.get(path).extensions["network_stream"].get_extra_info("client_addr") for path in ("/",) * 3}
    assert len(used) == 1
    assert httpx.head(f"http://{server.address}/").status_code == 200
    assert server.get("/api/version").text == '{"version":"0.33.0"}'


@pytest.mark.parametrize("fault", ["none", "busy"])
def test_every_answer_says_that_it_is_an_emulators(emulate: Emulate, fault: str) -> None:
    server = emulate(f"speed=50,fault={fault}")
    body = {"model": GEMMA, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 1}}
    answers = [server.get(path) for path in ("/", "/api/version", "/api/ps", "/nowhere", "/api/chat")]
    answers += [server.post("/api/chat", each) for each in (body, {**body, "stream": False}, {"model": "gpt-7"})]
    answers += [httpx.head(f"http://{server.address}/"), httpx.request("BREW", f"http://{server.address}/")]
    assert {answer.headers["server"] for answer in answers} == {f"pytest-llmperf-emulator/{EMULATOR_PHYSICS}"}


def test_what_is_not_emulated_is_not_found(server: Instance) -> None:
    assert server.post("/api/embed", {}).status_code == 404
    assert server.get("/api/generate").status_code == 405


def test_requests_are_logged_as_gin_does(server: Instance) -> None:
    server.ask(1)
    line = r'\[GIN\] \d{4}/\d\d/\d\d - [\d:]{8} \| 200 \| +[\d.]+m?s \| +127\.0\.0\.1 \| POST     "/api/generate"'
    eventually(lambda: re.search(line, server.stdout.read_text()))


def test_a_client_that_goes_away_frees_its_slot(server: Instance) -> None:
    host, _, port = server.address.partition(":")
    body = json.dumps({"model": GEMMA, "prompt": "Hi", "options": {"num_predict": 30_000}}).encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /api/generate HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert client.recv(1)
    assert server.ask(2)["eval_count"] == 2
    eventually(lambda: "| 499 |" in server.stdout.read_text())
    assert "Traceback" not in server.stderr.read_text()
