"""All we know of Ollama: how it is started, asked and heard. The emulator starts and speaks alike."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import httpx

from pytest_llmperf.model import InvalidRunError, LlmperfError, OptionValue, Workload
from pytest_llmperf.traffic import Exchange, Line, Recording

START_LIMIT_S = 60.0
LOAD_LIMIT_S = 600.0
"""A large model comes off a slow disk in minutes; Ollama's own limit is 5 min without progress."""

SEED = 1
"""Sent with every request unless the options name another: equal prompts then give equal work."""

_SCRUBBED = re.compile(r"(OLLAMA_|LLAMA_ARG_|GGML_|LLMPERF_EMULATOR$|(HTTPS?|ALL|NO)_PROXY$)", re.IGNORECASE)
_LISTENING = re.compile(r"Listening on (?P<host>\S+):(?P<port>\d+) \(version")
_LOOPBACK = re.compile(r"(https?://)?(127(\.\d+){3}|localhost|\[::1\])(:(?P<port>\d+))?/?$")


def find(configured: str | None, rootdir: Path) -> str:
    """The ollama binary: the configured one (a path relative to rootdir, or a name), else the one on PATH."""
    if configured and (found := shutil.which(str(rootdir / configured)) or shutil.which(configured)):
        return found
    if configured:
        raise LlmperfError(
            f"ini llmperf_ollama names {configured!r}, which is no program; give the path of an ollama binary, "
            "or measure the emulator: --llmperf-backend=emulator"
        )
    if found := shutil.which("ollama"):
        return found
    raise LlmperfError(
        "no server to measure: there is no ollama on PATH; install it or set llmperf_ollama=/path/to/ollama in the "
        "ini file, or measure the emulator: --llmperf-backend=emulator"
    )


def argv(binary: str | None) -> list[str]:
    """The command that serves; None stands for the emulator."""
    return [binary, "serve"] if binary else [sys.executable, "-m", "pytest_llmperf.emulator", "serve"]


def environment(  # noqa: PLR0913  # one keyword per decision
    home: Path,
    extra: Mapping[str, str],
    *,
    models: Path | None,
    slots: int = 1,
    gpu: str | None = None,
    caller: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """A server's environment: the caller's without what would bend a measurement, a HOME of its own, `extra` last.

    `models` is the model store, None for the emulator, `slots` how many requests it works on at once, `gpu` the index
    or UUID of the only GPU it may see. Temporary files (runners of older servers, the emulated device) go beside HOME:
    shared by a session, gone with it.
    """
    env = {name: value for name, value in caller.items() if not _SCRUBBED.match(name)}
    env |= dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA"), str(home))
    env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(home.parent))
    env |= {"OLLAMA_HOST": "127.0.0.1:0", "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NOPRUNE": "1", "OLLAMA_NO_CLOUD": "1"}
    env |= {"OLLAMA_NUM_PARALLEL": str(slots)}  # unset it is 1, or up to 4 by memory, depending on the version
    env |= dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), gpu) if gpu is not None else {}
    if models is None:
        env |= {"LLMPERF_EMULATOR": caller.get("LLMPERF_EMULATOR", "")}
    else:
        # a fresh HOME would make the driver compile its kernels anew, and load times measure that
        env |= {"CUDA_CACHE_PATH": caller.get("CUDA_CACHE_PATH", str(Path.home() / ".nv/ComputeCache"))}
        env |= {"OLLAMA_MODELS": str(models)}
    env |= extra
    _refuse_open_host(env["OLLAMA_HOST"])
    return env


def _refuse_open_host(host: str) -> None:
    if not _LOOPBACK.match(host):
        raise LlmperfError(
            f"OLLAMA_HOST={host} would open the server to the network; use 127.0.0.1:0 (the server picks a port) "
            "or 127.0.0.1:PORT"
        )


def listening(log_text: str) -> str | None:
    """The URL a server says it listens on, None before it does; that is not readiness yet."""
    found = _LISTENING.search(log_text)
    return f"http://{found['host']}:{found['port']}" if found else None


def gpu(log_text: str) -> str | None:
    """The devices of the server's "inference compute" lines, e.g. `CUDA NVIDIA RTX 4090 24.0 GiB`, or `cpu`."""
    devices = [_device(line) for line in log_text.splitlines() if "inference compute" in line]
    return " + ".join(devices) or None


def _device(line: str) -> str:
    fields = {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', line)}
    if fields.get("library") == "cpu":
        return "cpu"  # the line's total is the host's memory
    named = [fields.get("library"), fields.get("description") or fields.get("name"), fields.get("total")]
    return " ".join(word for word in named if word)


class Control:
    """Control calls to one server, outside every timed window. Proxies of the caller are ignored."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def __enter__(self) -> Self:
        """Usable in a `with`: the connections are closed at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def ready(self) -> str | None:
        """The server's version once it answers 200, else None: an open port is not readiness yet."""
        try:
            answer = self._client.get("/api/version", timeout=2)
        except httpx.TransportError:
            return None
        return str(answer.json()["version"]) if answer.status_code == httpx.codes.OK else None

    def models(self) -> dict[str, dict[str, Any]]:
        """The models of the store by name, with `digest` and `details`."""
        return {model["name"]: model for model in self._call("GET", "/api/tags")["models"]}

    def loaded(self) -> list[dict[str, Any]] | None:
        """What is in memory now, with `size` and `size_vram` in bytes; None from servers that have no /api/ps."""
        answer = self._answer("GET", "/api/ps")
        return None if answer.status_code == httpx.codes.NOT_FOUND else list(self._body("/api/ps", answer)["models"])

    def load(self, model: str, options: Mapping[str, OptionValue]) -> None:
        """Load a model and wait for it: an empty prompt generates nothing and needs no reply."""
        body = {"model": model, "options": dict(options), "keep_alive": -1, "stream": False}
        self._call("POST", "/api/generate", body, LOAD_LIMIT_S)

    def _call(self, method: str, path: str, body: object = None, limit_s: float = 30) -> dict[str, Any]:
        return self._body(path, self._answer(method, path, body, limit_s))

    def _answer(self, method: str, path: str, body: object = None, limit_s: float = 30) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body, timeout=limit_s)
        except httpx.TransportError as error:
            raise InvalidRunError(f"{self._url} does not answer {method} {path}: {error}") from error

    def _body(self, path: str, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise InvalidRunError(f"{self._url}{path} answered {answer.status_code}: {_error_text(answer.text)}")
        found: dict[str, Any] = answer.json()
        return found


def _error_text(body: str) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:200] or "nothing"


def digest_of(model: str, models: Mapping[str, Mapping[str, Any]], store: str) -> Mapping[str, Any]:
    """A model's entry in the store; LlmperfError that says which store was searched and what to type."""
    found = models.get(model) or models.get(f"{model}:latest")
    if found is None:
        here = ", ".join(sorted(models)) or "no model at all"
        raise LlmperfError(f"model {model!r} is not in {store}, which has {here}; type: ollama pull {model}")
    return found


def request(workload: Workload, prompt: str, url: str) -> bytes:
    """One streaming /api/chat request as it goes over the wire."""
    options = {"seed": SEED, **workload.options, "num_predict": workload.tokens}
    message = {"role": "user", "content": prompt}
    payload = {"model": workload.model, "messages": [message], "options": options, "keep_alive": -1, "stream": True}
    body = json.dumps(payload).encode()
    host = url.partition("//")[2]
    head = f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def exchange(recording: Recording, status: int, answer: Sequence[Line], *, budget: int, release: float) -> Exchange:
    """A recorded answer as an Exchange, times relative to `release`; InvalidRunError if it is not whole."""
    if status != httpx.codes.OK:
        said = _error_text("\n".join(line.text for line in answer))
        raise InvalidRunError(f"the server answered {status} with an error: {said}")
    chunks = [(line, _parsed(line.text)) for line in answer]
    for number, (_, chunk) in enumerate(chunks):
        if "error" in chunk:
            raise InvalidRunError(f"the server answered 200 with an error after {number} chunks: {chunk['error']}")
    if not chunks or not chunks[-1][1].get("done"):
        raise InvalidRunError(f"the stream ended without done after {len(chunks)} chunks (HTTP {status})")
    spoken = [line for line, chunk in chunks if _text(chunk)]
    final = chunks[-1][1]
    if not spoken or "eval_count" not in final:
        raise InvalidRunError("the server answered without a single token; change prompts= or the model")
    return Exchange(
        released=recording.released - release,
        first_token=spoken[0].at - release,
        ended=chunks[-1][0].at - release,
        gaps=tuple(b.at - a.at for a, b in pairwise(spoken) if a.alone and b.alone),
        tokens=final["eval_count"],
        budget=budget,
        server={name.removesuffix("_duration"): ns / 1e9 for name, ns in final.items() if name.endswith("_duration")},
    )


def _parsed(text: str) -> dict[str, Any]:
    try:
        chunk = json.loads(text)
    except ValueError as error:
        raise InvalidRunError(f"the server sent a line that is not JSON: {text[:80]!r}") from error
    if not isinstance(chunk, dict):
        raise InvalidRunError(f"the server sent a line that is not a JSON object: {text[:80]!r}")
    return chunk


def _text(chunk: Mapping[str, Any]) -> str:
    """What a chunk adds: content or thinking, of /api/chat or /api/generate."""
    said = chunk.get("message") or {}
    return (said.get("content") or said.get("thinking") or chunk.get("response") or chunk.get("thinking")) or ""
