"""What we know of Ollama: finding it, its environment, its log, its requests and its answers."""

from __future__ import annotations

import json
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pytest_llmperf import chat, ollama
from pytest_llmperf.instance import Instance
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import InvalidRunError, LlmperfError, Workload
from pytest_llmperf.traffic import Exchange, Line, Recording

GEMMA = "gemma3:4b-it-q4_K_M"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caller's home."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "me"))
    return tmp_path / "me"


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


# finding it


def test_without_configuration_the_ollama_on_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = program(tmp_path / "bin" / "ollama")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert ollama.find(None, tmp_path) == str(binary)


@pytest.mark.parametrize("configured", ["tools/ollama-0.5", "{root}/tools/ollama-0.5", "ollama-0.5"])
def test_the_configured_one_is_a_path_or_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str
) -> None:
    binary = program(tmp_path / "tools" / "ollama-0.5")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert ollama.find(configured.format(root=tmp_path), tmp_path) == str(binary)


def test_no_ollama_is_an_error_with_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LlmperfError) as caught:
        ollama.find(None, tmp_path)
    assert str(caught.value) == (
        "no server to measure: there is no ollama on PATH; install it or set llmperf_ollama=/path/to/ollama in the "
        "ini file, or measure the emulator: --llmperf-backend=emulator"
    )


def test_a_configured_binary_that_is_none_is_an_error_although_path_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin" / "ollama").parent))
    (tmp_path / "notes.txt").write_text("not executable")
    with pytest.raises(LlmperfError) as caught:
        ollama.find("notes.txt", tmp_path)
    assert str(caught.value) == (
        "ini llmperf_ollama names 'notes.txt', which is no program; give the path of an ollama binary, or measure the "
        "emulator: --llmperf-backend=emulator"
    )


def test_both_kinds_of_server_are_started_with_serve() -> None:
    assert ollama.argv("/opt/ollama") == ["/opt/ollama", "serve"]
    assert ollama.argv(None) == [sys.executable, "-m", "pytest_llmperf.emulator", "serve"]


# its environment

BENDING = {
    "OLLAMA_NUM_PARALLEL": "4",
    "OLLAMA_HOST": "0.0.0.0:11434",
    "LLAMA_ARG_THREADS": "1",
    "GGML_CUDA_FORCE_MMQ": "1",
    "HTTP_PROXY": "http://proxy:3128",
    "https_proxy": "http://proxy:3128",
    "ALL_PROXY": "socks5://proxy",
    "no_proxy": "localhost",
    "LLMPERF_EMULATOR": "speed=20",
}


STORE = Path("/models")


@pytest.mark.parametrize("models", [None, STORE])
def test_what_would_bend_a_measurement_stays_with_the_caller(home: Path, models: Path | None) -> None:
    caller = {**BENDING, "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "MY_OLLAMA_NOTE": "kept"}
    env = ollama.environment(Path("/scratch/agent1"), {}, models=models, caller=caller)
    set_anew = {"OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_NUM_PARALLEL"}
    inherited = {name: env[name] for name in caller if name in env and name not in set_anew}
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "MY_OLLAMA_NOTE": "kept"}
    assert inherited == kept | ({"LLMPERF_EMULATOR": "speed=20"} if models is None else {})


def test_an_instance_has_a_home_of_its_own_and_picks_its_port(home: Path) -> None:
    scratch = str(Path("/scratch/agent1"))
    env = ollama.environment(Path(scratch), {}, models=None, caller={"HOME": str(home)})
    homes = {"HOME": scratch, "USERPROFILE": scratch, "LOCALAPPDATA": scratch}
    quiet = {"OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NOPRUNE": "1", "OLLAMA_NO_CLOUD": "1", "OLLAMA_NUM_PARALLEL": "1"}
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(Path("/scratch")))
    assert env == {**homes, **temporary, **quiet, "OLLAMA_HOST": "127.0.0.1:0", "LLMPERF_EMULATOR": ""}


def test_a_real_server_gets_its_models_and_the_compiled_kernels_of_its_caller(home: Path) -> None:
    env = ollama.environment(Path("/scratch"), {}, models=STORE, caller={})
    assert env["CUDA_CACHE_PATH"] == str(home / ".nv/ComputeCache")
    assert env["OLLAMA_MODELS"] == str(STORE)
    named = {"CUDA_CACHE_PATH": "/cache"}
    assert named.items() <= ollama.environment(Path("/scratch"), {}, models=STORE, caller=named).items()


def test_slots_and_the_only_gpu_are_set(home: Path) -> None:
    env = ollama.environment(Path("/scratch"), {}, models=STORE, slots=2, gpu="GPU-4711", caller={})
    wanted = {"OLLAMA_NUM_PARALLEL": "2", "CUDA_VISIBLE_DEVICES": "GPU-4711", "ROCR_VISIBLE_DEVICES": "GPU-4711"}
    assert (wanted | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).items() <= env.items()


def test_what_a_test_asks_for_wins(home: Path) -> None:
    extra = {"OLLAMA_KEEP_ALIVE": "0", "OLLAMA_HOST": "localhost:4321", "HTTP_PROXY": "mine"}
    assert extra.items() <= ollama.environment(Path("/scratch"), extra, models=STORE, caller=BENDING).items()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:0", "http://127.0.0.1:80/", "localhost:1", "[::1]:11434"])
def test_loopback_addresses_are_legal(host: str) -> None:
    assert ollama.environment(Path(), {"OLLAMA_HOST": host}, models=None, caller={})["OLLAMA_HOST"] == host


@pytest.mark.parametrize("host", ["0.0.0.0", "0.0.0.0:11434", ":0", "[::]:1", "192.168.0.7", "127.0.0.1.example.org"])
def test_an_address_that_others_could_reach_is_refused(host: str) -> None:
    with pytest.raises(LlmperfError) as caught:
        ollama.environment(Path(), {"OLLAMA_HOST": host}, models=STORE, caller={})
    assert str(caught.value) == (
        f"OLLAMA_HOST={host} would open the server to the network; use 127.0.0.1:0 (the server picks a port) or "
        "127.0.0.1:PORT"
    )


# its log


@pytest.mark.parametrize(
    ("line", "url"),
    [
        (
            "2023/12/18 10:00:00 routes.go:930: Listening on 127.0.0.1:11434 (version 0.1.17)",
            "http://127.0.0.1:11434",
        ),
        (
            'time=2026-08-21T10:00:00.000Z level=INFO msg="Listening on 127.0.0.1:41234 (version 0.33.0)"',
            "http://127.0.0.1:41234",
        ),
        ('level=INFO msg="Listening on [::1]:41234 (version 0.33.0)"', "http://[::1]:41234"),
        ('level=INFO msg="Listening on 127.0.0.1:412', None),
        ('level=INFO msg="server config" env="map[OLLAMA_HOST:http://127.0.0.1:0]"', None),
    ],
)
def test_the_address_is_read_off_old_and_new_logs(line: str, url: str | None) -> None:
    assert ollama.listening(f"total blobs: 5\n{line}\n") == url


@pytest.mark.parametrize(
    ("fields", "device"),
    [
        pytest.param(
            'id=GPU-1 filter_id="" library=CUDA name=CUDA0 description="NVIDIA GeForce RTX 4080 Laptop GPU" '
            'compute=8.9 libdirs=ollama,cuda_v13 driver=13.0 pci_id=0000:01:00.0 type=discrete total="12.0 GiB"',
            "CUDA NVIDIA GeForce RTX 4080 Laptop GPU 12.0 GiB",
            id="0.33",
        ),
        pytest.param(
            'id=GPU-1 library=cuda variant=v12 compute=8.9 driver=12.4 name="NVIDIA GeForce RTX 4090" total="23.6 GiB" '
            'available="23.3 GiB"',
            "cuda NVIDIA GeForce RTX 4090 23.6 GiB",
            id="0.5",
        ),
        pytest.param(
            'id=cpu library=cpu compute="" name=cpu description=cpu libdirs=ollama driver="" pci_id="" type="" '
            'total="31.3 GiB" available="30.1 GiB"',
            "cpu",
            id="0.33 without a GPU",
        ),
        pytest.param(
            'id=0 library=cpu variant=avx2 compute="" driver=0.0 name="" total="31.3 GiB" available="22.5 GiB"',
            "cpu",
            id="0.5 without a GPU",
        ),
    ],
)
def test_the_device_is_read_off_the_log(fields: str, device: str) -> None:
    log = f'level=INFO msg="discovering available GPUs..."\nlevel=INFO msg="inference compute" {fields}\n'
    assert ollama.gpu(log) == device


def test_a_log_without_a_device_gives_none() -> None:
    assert ollama.gpu(
        "\n".join(f'msg="inference compute" id={n} library=CUDA description="RTX {n}" total="12 GiB"' for n in (1, 2))
    ) == ("CUDA RTX 1 12 GiB + CUDA RTX 2 12 GiB")
    assert ollama.gpu("2023/12/18 10:00:00 routes.go:930: Listening on 127.0.0.1:11434 (version 0.1.17)") is None


# its requests


def sent(workload: Workload) -> tuple[list[str], dict[str, Any]]:
    head, _, body = chat.request(workload, "[x-1] Why?", "http://127.0.0.1:4321").partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines.pop() == f"Content-Length: {len(body)}"
    return lines, json.loads(body)


def test_a_request_is_one_streamed_chat_message() -> None:
    head, body = sent(Workload(name="a", model="m", options={"num_ctx": 512}, prompts=("Why?",), tokens=16))
    assert head == ["POST /api/chat HTTP/1.1", "Host: 127.0.0.1:4321", "Content-Type: application/json"]
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "[x-1] Why?"}],
        "options": {"seed": 1, "num_ctx": 512, "num_predict": 16},
        "stream": True,
    }


def test_the_token_budget_is_fixed_and_the_seed_can_be_named() -> None:
    options = {"seed": 7, "num_predict": 999}
    _, body = sent(Workload(name="a", model="m", options=options, prompts=("Why?",), tokens=16))
    assert body["options"] == {"seed": 7, "num_predict": 16}


# its answers

FINAL = {
    "message": {"role": "assistant", "content": ""},
    "done": True,
    "done_reason": "length",
    "total_duration": 3_500_000_000,
    "prompt_eval_count": 12,
    "eval_count": 16,
    "eval_duration": 2_000_000_000,
}


def token(text: str, kind: str = "content") -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", kind: text}, "done": False}


def heard(*chunks: Mapping[str, Any] | str, status: int = 200, together: tuple[int, ...] = ()) -> Exchange:
    """The exchange of an answer whose lines arrived at 11, 12, 13, ... s; the agents were released at 10 s."""
    texts = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    answer = [Line(11.0 + n, text, alone=n not in together) for n, text in enumerate(texts)]
    return chat.exchange(Recording(10.5, 10.6, ()), status, answer, budget=16, release=10.0)


def test_times_are_seconds_since_the_release() -> None:
    exchange = heard(token("Be"), token("cause"), FINAL)
    assert (exchange.released, exchange.first_token, exchange.ended) == (0.5, 1.0, 3.0)
    assert (exchange.tokens, exchange.budget, exchange.short) == (16, 16, False)


def test_an_answer_below_its_budget_is_short() -> None:
    assert heard(token("Be"), {**FINAL, "eval_count": 15}).short


def test_durations_that_the_server_omits_because_they_are_zero_stay_absent() -> None:
    assert heard(token("Be"), FINAL).server == {"total": 3.5, "eval": 2.0}


def test_thinking_is_a_first_token() -> None:
    assert heard(token(""), token("Hm", "thinking"), token("Be"), FINAL).first_token == 2.0


def test_generate_is_understood_too() -> None:
    chunks = [{"response": "", "thinking": "Hm", "done": False}, {"response": "Be", "done": False}]
    assert heard(*chunks, {**FINAL, "response": ""}).gaps == (1.0,)


def test_the_final_chunk_can_hold_the_only_text() -> None:
    exchange = heard(token(""), {**FINAL, "message": {"role": "assistant", "content": "Because"}})
    assert exchange.first_token == exchange.ended == 2.0


def test_gaps_are_those_between_chunks_that_came_alone() -> None:
    chunks = [token(word) for word in "abcde"]
    assert heard(*chunks, FINAL).gaps == (1.0, 1.0, 1.0, 1.0)
    assert heard(*chunks, FINAL, together=(2,)).gaps == (1.0, 1.0)


NO_TOKEN = "the server answered without a single token; change prompts= or the model"


@pytest.mark.parametrize(
    ("chunks", "status", "words"),
    [
        (
            [token("Be"), token("cause"), {"error": "unexpected EOF"}],
            200,
            "the server answered 200 with an error after 2 chunks: unexpected EOF",
        ),
        ([{"error": "model 'm' not found"}], 404, "the server answered 404 with an error: model 'm' not found"),
        (["404 page not found"], 404, "the server answered 404 with an error: 404 page not found"),
        ([], 503, "the server answered 503 with an error: nothing"),
        ([token("Be")], 200, "the stream ended without done after 1 chunks (HTTP 200)"),
        ([], 200, "the stream ended without done after 0 chunks (HTTP 200)"),
        ([token("Be"), "<html>"], 200, "the server sent a line that is not JSON: '<html>'"),
        (["[1]"], 200, "the server sent a line that is not a JSON object: '[1]'"),
        ([FINAL], 200, NO_TOKEN),
        ([token("Be"), {"done": True, "done_reason": "load"}], 200, NO_TOKEN),
    ],
)
def test_a_broken_answer_is_an_invalid_run(chunks: list[Mapping[str, Any] | str], status: int, words: str) -> None:
    with pytest.raises(InvalidRunError) as caught:
        heard(*chunks, status=status)
    assert str(caught.value) == words


# control calls


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """An emulator, with a proxy in the caller's environment that must not be used."""
    monkeypatch.setenv("LLMPERF_EMULATOR", "speed=20")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(Fleet(None, nullcontext(0.0))) as fleet:
        yield fleet.start("agent1")


def test_models_are_listed_and_loaded_past_the_callers_proxy(instance: Instance) -> None:
    with instance.control() as control:
        assert control.ready() == instance.version == "0.33.0"
        entry = ollama.digest_of(GEMMA, control.models(), instance.store)
        assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
        assert entry["details"]["quantization_level"] == "Q4_K_M"
        control.load(GEMMA, {"num_ctx": 512})
        with pytest.raises(InvalidRunError) as caught:
            control.load("nope:1b", {})
    assert str(caught.value) == f"{instance.url}/api/generate answered 404: model 'nope:1b' not found"
    assert "starting llama-server" in instance.log.read_text()


def test_what_is_loaded_is_told_in_bytes(instance: Instance) -> None:
    with instance.control() as control:
        assert control.loaded() == []
        control.load(GEMMA, {"num_ctx": 512, "num_gpu": 7})
        loaded = control.loaded()
    assert loaded is not None
    [entry] = loaded
    assert (entry["name"], entry["size_vram"]) == (GEMMA, entry["size"] * 7 // 35)
    assert entry["size"] > 3e9


def test_a_server_that_cannot_tell_what_is_loaded_gives_none() -> None:
    asked = list[str]()

    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # as servers before 0.1.33
            asked.append(self.path)
            self.send_error(404, "404 page not found")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Old) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with ollama.Control(f"http://127.0.0.1:{server.server_port}") as control:
            assert control.loaded() is None
        thread.join()
    assert asked == ["/api/ps"]


def test_a_model_without_a_tag_is_the_latest() -> None:
    assert ollama.digest_of("m", {"m:latest": {"digest": "1"}}, "the store") == {"digest": "1"}


def test_a_model_that_is_not_in_the_store_is_an_error_that_says_what_is() -> None:
    with pytest.raises(LlmperfError) as caught:
        ollama.digest_of("nope:1b", {"b": {}, "a": {}}, "the model store /models")
    assert str(caught.value) == (
        "model 'nope:1b' is not in the model store /models, which has a, b; type: ollama pull nope:1b"
    )
    with pytest.raises(LlmperfError, match=r"which has no model at all; type: ollama pull nope:1b$"):
        ollama.digest_of("nope:1b", {}, "the model store /models")


def test_a_server_that_does_not_answer_is_an_invalid_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    with ollama.Control(url) as control:
        assert control.ready() is None
        with pytest.raises(InvalidRunError, match=f"^{url} does not answer GET /api/tags: .*refused"):
            control.models()
