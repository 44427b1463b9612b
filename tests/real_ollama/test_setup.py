"""The genuine Ollama of these tests: it runs, its models answer as they should, and it goes without a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from .genuine import WHEELS, Genuine, SetUpError, reason_not_here, set_up
from .tiny_model import SIZES, WORDS, gguf

ONE_THREAD = {"num_thread": 1}


@contextmanager
def serving(genuine: Genuine, home: Path) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    log = home / "serve.log"
    env = {"HOME": str(home), "OLLAMA_HOST": "127.0.0.1:0", "OLLAMA_MODELS": str(genuine.models)}
    with log.open("wb") as sink:
        server = subprocess.Popen([genuine.binary, "serve"], env=env, stderr=sink, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://{address(log)}", timeout=60, trust_env=False) as client:
            yield client, psutil.Process(server.pid)
    finally:
        stop(server)


def stop(leader: subprocess.Popen[bytes]) -> None:
    os.killpg(leader.pid, signal.SIGTERM)
    try:
        leader.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(leader.pid, signal.SIGKILL)
        raise


def address(log: Path) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := re.search(r"Listening on (127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.01)
    pytest.fail(f"ollama serve names no port:\n{log.read_text()}")


@pytest.fixture(scope="module")
def server(genuine_ollama: Genuine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(genuine_ollama, tmp_path_factory.mktemp("home")) as (client, _):
        yield client


def chat(server: httpx.Client, model: str, prompt: str, **options: float) -> list[dict[str, Any]]:
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "options": {"num_predict": 16} | ONE_THREAD | options,
    }
    with server.stream("POST", "/api/chat", json=request) as reply:
        assert reply.status_code == 200
        return [json.loads(line) for line in reply.iter_lines()]


def text(lines: list[dict[str, Any]]) -> str:
    return "".join(line["message"]["content"] for line in lines)


def test_the_server_is_ollama_0_5_4(server: httpx.Client, genuine_ollama: Genuine) -> None:
    assert server.get("/api/version").json() == {"version": genuine_ollama.version}
    assert genuine_ollama.version.startswith("0.5.4")


def test_the_server_lists_both_models_with_their_sizes(server: httpx.Client) -> None:
    models = server.get("/api/tags").json()["models"]

    assert {model["name"]: round(model["size"] / 1e6) for model in models} == {"small:latest": 7, "medium:latest": 49}
    assert {model["details"]["quantization_level"] for model in models} == {"F16"}


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize(
    ("prompt", "seed"), [("hello", 1), ("which of the two?", 2), ("word " * 100, 3), ("été 🙂", 4)]
)
def test_a_chat_streams_exactly_the_tokens_asked_for(
    server: httpx.Client, model: str, temperature: float, prompt: str, seed: int
) -> None:
    *chunks, final = chat(server, model, prompt, temperature=temperature, seed=seed)

    assert not any(chunk["done"] for chunk in chunks)
    assert (final["done"], final["done_reason"], final["eval_count"]) == (True, "length", 16)
    said = text(chunks).split()
    assert len(said) == 16
    assert {f"\u2581{word}" for word in said} <= set(WORDS)


@pytest.mark.parametrize("model", SIZES)
def test_a_long_greedy_answer_does_not_end_early(server: httpx.Client, model: str) -> None:
    """Ollama cuts a stream after 30 equal tokens, and a model ends it with its end token."""
    *_, final = chat(server, model, "go on", temperature=0, num_predict=200)

    assert (final.get("done_reason"), final.get("eval_count")) == ("length", 200)


def test_what_is_said_depends_on_the_seed_and_the_prompt(server: httpx.Client) -> None:
    seeds = {text(chat(server, "small", "hello", temperature=0.8, seed=seed)) for seed in range(5)}
    prompts = {text(chat(server, "small", f"{number} hello", temperature=0)) for number in range(5)}

    assert len(seeds) == 5
    assert len(prompts) == 5


def test_the_whole_conversation_reaches_the_model(server: httpx.Client) -> None:
    """Through the template; without one Ollama drops what the system role says."""

    def prompt_tokens(*roles: str) -> int:
        messages = [{"role": role, "content": "bada bada bada bada"} for role in roles]
        request = {"model": "small", "messages": messages, "stream": False, "options": {"num_predict": 2} | ONE_THREAD}
        count: int = server.post("/api/chat", json=request).json()["prompt_eval_count"]
        return count

    assert (
        prompt_tokens("user") < prompt_tokens("system", "user") < prompt_tokens("system", "user", "assistant", "user")
    )


def test_stopping_the_group_takes_the_runner_along(genuine_ollama: Genuine, tmp_path: Path) -> None:
    with serving(genuine_ollama, tmp_path) as (client, process):
        chat(client, "small", "hello")
        runners = process.children(recursive=True)
        assert runners

    _, alive = psutil.wait_procs(runners, timeout=10)
    assert [runner for runner in alive if runner.status() != psutil.STATUS_ZOMBIE] == []


def test_every_blob_is_named_by_its_digest(genuine_ollama: Genuine) -> None:
    blobs = list((genuine_ollama.models / "blobs").iterdir())

    assert len(blobs) == 4  # two models, and one template and one configuration for both
    assert [blob.name for blob in blobs] == [f"sha256-{sha256(blob.read_bytes()).hexdigest()}" for blob in blobs]


@pytest.mark.parametrize("size", SIZES)
def test_the_manifest_names_the_model_as_it_is_made_again(genuine_ollama: Genuine, size: str) -> None:
    library = genuine_ollama.models / "manifests" / "registry.ollama.ai" / "library"
    manifest = json.loads((library / size / "latest").read_text())
    again = gguf(size)

    assert manifest["layers"][0]["digest"] == f"sha256:{sha256(again).hexdigest()}"
    for layer in [manifest["config"], *manifest["layers"]]:
        blob = genuine_ollama.models / "blobs" / layer["digest"].replace(":", "-")
        assert blob.stat().st_size == layer["size"]


def test_a_model_has_the_same_bytes_everywhere() -> None:
    assert sha256(gguf("small")).hexdigest() == "9deeebe44a38ac0d2e804d464477a01e7cea83b89e23b77304184f8c744e94ae"
    assert gguf("small", seed=8) != gguf("small", seed=7)


def test_a_second_set_up_reuses_the_first(genuine_ollama: Genuine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = genuine_ollama.models.parents[1]

    assert set_up(folder) == genuine_ollama


@pytest.mark.skipif(bool(reason_not_here()), reason="needs a machine where only the download can fail")
def test_a_failed_download_says_what_pip_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(SetUpError) as caught:
        set_up(tmp_path)

    first = next(iter(WHEELS))
    assert f"failed with 'ERROR: No matching distribution found for {first}'" in str(caught.value)
    assert f"try `python -m pip download --no-deps {first} " in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the platform is the first reason")
def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert reason_not_here() == (
        "genuine Ollama: there is no C compiler `cc` on the PATH: try `apt-get install gcc libc6-dev`"
    )


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("false", "1 skipped"), ("true", "1 error")])
def test_what_can_not_be_set_up_is_skipped_but_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    for name, value in {
        "PATH": "",
        "CI": ci,
        "LLMPERF_GENUINE_OLLAMA": str(tmp_path / "empty"),
        "COLUMNS": "300",
    }.items():
        monkeypatch.setenv(name, value)
    chosen = f"{__file__}::{test_the_server_is_ollama_0_5_4.__name__}"
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", chosen]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert outcome in output
    assert str(reason_not_here()) in output
