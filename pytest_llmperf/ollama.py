"""All we know of Ollama: how it is started, asked and heard. The emulator starts and speaks alike."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from pytest_llmperf.chat import error_text
from pytest_llmperf.model import InvalidRunError, LlmperfError, OptionValue

START_LIMIT_S = 60.0
UNLOAD_LIMIT_S = 60.0
LOAD_LIMIT_S = 600.0
"""A large model comes off a slow disk in minutes; Ollama's own limit is 5 min without progress."""

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
    if gpu is not None:
        env |= dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), gpu)
        env |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi's and NVML's order; CUDA's own is the fastest first
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


def ready(url: str, limit_s: float = 2) -> str | None:
    """A server's version once it answers 200 like an Ollama, else None: an open port is not readiness yet.

    By the standard library: a start takes 20 ms, and to make an httpx client for it would take 5 more.
    """
    where = urlsplit(url)
    try:
        with closing(HTTPConnection(where.hostname or "", where.port, timeout=limit_s)) as connection:
            connection.request("GET", "/api/version")
            answer = connection.getresponse()
            return str(json.loads(answer.read())["version"]) if answer.status == httpx.codes.OK else None
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None


class Control:
    """Control calls to one server, outside every timed window. Proxies of the caller are ignored."""

    def __init__(self, url: str) -> None:
        self._url = url
        # no certificate store for plain HTTP: to read it takes longer than a server takes to start
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10, verify=False)  # noqa: S501

    def __enter__(self) -> Self:
        """Usable in a `with`: the connections are closed at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def ready(self) -> str | None:
        """The server's version once it answers 200, else None: an open port is not readiness yet."""
        return ready(self._url)

    def models(self) -> dict[str, dict[str, Any]]:
        """The models of the store by name, with `digest` and `details`."""
        return {model["name"]: model for model in self._call("GET", "/api/tags")["models"]}

    def loaded(self) -> list[dict[str, Any]] | None:
        """What is in memory now, with `size` and `size_vram` in bytes; None from servers that have no /api/ps."""
        answer = self._answer("GET", "/api/ps")
        return None if answer.status_code == httpx.codes.NOT_FOUND else list(self._body("/api/ps", answer)["models"])

    def load(self, model: str, options: Mapping[str, OptionValue], keep_alive: int | str = -1) -> None:
        """Load a model and wait for it: an empty prompt generates nothing and needs no reply."""
        body = {"model": model, "options": dict(options), "keep_alive": keep_alive, "stream": False}
        self._call("POST", "/api/generate", body, LOAD_LIMIT_S)

    def unload(self, model: str) -> None:
        """Unload a model and wait until it is gone; the server's own answer comes before that."""
        self._call("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        give_up = time.monotonic() + UNLOAD_LIMIT_S
        while entry_of(model, self.loaded() or ()):
            if time.monotonic() > give_up:
                raise InvalidRunError(f"{self._url} still has {model} in memory {UNLOAD_LIMIT_S:g} s after its unload")
            time.sleep(0.05)

    def is_emulator(self) -> bool:
        """Whether the emulator answers: it says so in every response."""
        server: str = self._answer("GET", "/api/version").headers.get("server", "")
        return server.startswith("pytest-llmperf-emulator")

    def _call(self, method: str, path: str, body: object = None, limit_s: float = 30) -> dict[str, Any]:
        return self._body(path, self._answer(method, path, body, limit_s))

    def _answer(self, method: str, path: str, body: object = None, limit_s: float = 30) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body, timeout=limit_s)
        except httpx.TransportError as error:
            raise InvalidRunError(f"{self._url} does not answer {method} {path}: {error}") from error

    def _body(self, path: str, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise InvalidRunError(f"{self._url}{path} answered {answer.status_code}: {error_text(answer.text)}")
        found: dict[str, Any] = answer.json()
        return found


def digest_of(model: str, models: Mapping[str, Mapping[str, Any]], store: str, host: str = "") -> Mapping[str, Any]:
    """A model's entry in the store; LlmperfError that says which store was searched and what to type.

    `host` is the URL of a server that is not asked by default.
    """
    found = models.get(model) or models.get(f"{model}:latest")
    if found is None:
        here = ", ".join(sorted(models)) or "no model at all"
        pull = f"OLLAMA_HOST={host} ollama pull" if host else "ollama pull"
        raise LlmperfError(f"model {model!r} is not in {store}, which has {here}; type: {pull} {model}")
    return found


def entry_of(model: str, loaded: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """A model's entry of /api/ps, None where it is not loaded."""
    return next((entry for entry in loaded if entry["name"] in (model, f"{model}:latest")), None)
