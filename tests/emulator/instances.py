"""Real emulator processes, and what tests ask of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ollama import Client

GEMMA = "gemma3:4b-it-q4_K_M"
LLAMA = "llama3.1:8b-instruct-q4_0"

ARGV = [sys.executable, "-m", "pytest_llmperf.emulator", "serve"]
_LISTENING = re.compile(r'msg="Listening on (127\.0\.0\.1:\d+) \(version 0\.33\.0\)"')

Final = dict[str, Any]


def environment(folder: Path, name: str, emulator: str, extra: Mapping[str, str]) -> dict[str, str]:
    """That of an instance whose emulated device lives in `folder`, too."""
    home = folder / "session-1" / name
    home.mkdir(parents=True, exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "LLMPERF_"))}
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)) | {"HOME": str(home), "USERPROFILE": str(home)}
    return {**clean, **places, "OLLAMA_HOST": "127.0.0.1:0", "LLMPERF_EMULATOR": emulator, **extra}


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@dataclass
class Instance:
    """One running emulator."""

    process: subprocess.Popen[bytes]
    stderr: Path
    stdout: Path
    address: str = ""
    client: Client = field(default_factory=Client)

    @classmethod
    def start(cls, env: dict[str, str]) -> Instance:
        stderr, stdout = (Path(env["HOME"], name) for name in ("stderr", "stdout"))
        with stderr.open("wb") as err, stdout.open("wb") as out:
            return cls(subprocess.Popen(ARGV, env=env, stdout=out, stderr=err), stderr, stdout)

    def wait_until_ready(self) -> None:
        eventually(lambda: self.listening() or self.process.poll() is not None)
        assert self.address, self.stderr.read_text()
        assert self.get("/").text == "Ollama is running"

    def listening(self) -> bool:
        if found := _LISTENING.search(self.stderr.read_text()):
            self.address = found[1]
            self.client = Client(host=self.address)
        return bool(found)

    def stop(self) -> None:
        self.client.close()  # type: ignore[no-untyped-call]  # as the client has it
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.address}{path}", timeout=30)

    def post(self, path: str, body: object) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"http://{self.address}{path}", content=content, timeout=30)

    def ask(self, tokens: int, prompt: str = "hello", model: str = GEMMA, **options: object) -> Final:
        """The final record of one answer."""
        body = {"model": model, "prompt": prompt, "stream": False, "options": {"num_predict": tokens, **options}}
        answer = self.post("/api/generate", body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    @contextmanager
    def streaming(self, model: str = GEMMA, **options: object) -> Iterator[None]:
        """An answer that goes on for as long as the block runs, and is past its first token."""
        stream = self.client.generate(model, "go on", stream=True, options={"num_predict": 30_000, **options})
        next(iter(stream))
        yield
        self.client.close()  # type: ignore[no-untyped-call]  # as the client has it
        self.client = Client(host=self.address)

    def loaded(self) -> list[dict[str, Any]]:
        return list(self.get("/api/ps").json()["models"])


Emulate = Callable[..., Instance]


def together(*calls: Callable[[], Final]) -> list[Final]:
    """The results of calls made at the same moment."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def decode_rate(final: Final) -> float:
    """Tokens per wall second from the first token to the last."""
    return (int(final["eval_count"]) - 1) / float(final["eval_duration"]) * 1e9


def queue_wait(final: Final) -> float:
    """Seconds that were spent in no other phase."""
    phases = sum(final[f"{name}_duration"] for name in ("load", "prompt_eval", "eval"))
    return float(final["total_duration"] - phases) / 1e9
