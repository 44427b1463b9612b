"""One isolated server: its process, what we know of Ollama, and its place in the fleet's folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_llmperf import ollama
from pytest_llmperf.model import LlmperfError, OptionValue
from pytest_llmperf.scratch import MARK
from pytest_llmperf.server import Server, ServerError
from pytest_llmperf.store import model_store, view

if TYPE_CHECKING:
    from pytest_llmperf.instances import Fleet

_PORT_TAKEN = ("address already in use", "Only one usage of each socket address")
_NO_CONDITIONS = frozenset({"OLLAMA_HOST", "OLLAMA_MODELS"})
"""Where a server listens and where its models are changes no measurement; which models they are is a condition."""

_OPEN = re.compile("(OLLAMA|GGML|LLAMA|CUDA|HIP|ROCR|LLMPERF)_")
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)


class Instance:
    """One isolated server: `url`, `port`, `version`, `log` (path), `env` (read-only). Loopback only.

    `slots` is how many requests it works on at once, `gpu` the only GPU it may see, None: all.
    """

    ours = True
    """Whether the server is started and stopped by this plugin."""

    def __init__(
        self, fleet: Fleet, name: str, extra: Mapping[str, str], *, slots: int = 1, gpu: str | None = None
    ) -> None:
        self.name, self.slots, self.gpu = name, slots, gpu
        self._fleet, self._extra = fleet, dict(extra)
        self._start()

    def __repr__(self) -> str:
        return f"<Instance {self.name} {self.url}>"

    @property
    def on_purpose(self) -> Mapping[str, str]:
        """What the test itself set in the environment and may bend a measurement.

        Of variables that are not the server's own there is a hash, of secrets nothing: it stands in a committed file.
        """
        scratch = tempfile.gettempdir()
        said = {k: v for k, v in self._extra.items() if k not in _NO_CONDITIONS and not v.startswith(scratch)}
        return {name: _told(name, value) for name, value in said.items()}

    @property
    def emulated(self) -> bool:
        """Whether this is the emulator."""
        return self._fleet.binary is None

    @property
    def backend(self) -> str:
        """What kind of server this is, as the conditions say it."""
        return "emulator" if self.emulated else "ollama"

    @property
    def store(self) -> str:
        """Where its models are, in words."""
        return "the emulator" if self.emulated else f"the model store {self._extra.get('OLLAMA_MODELS', model_store())}"

    @property
    def port(self) -> int:
        """The port the server chose."""
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    def control(self) -> ollama.Control:
        """A connection for control calls, to be used in a `with`."""
        return ollama.Control(self.url)

    def load(self, control: ollama.Control, model: str, options: Mapping[str, OptionValue]) -> None:
        """Load a model over one of its connections and wait for it."""
        control.load(model, options)

    def log_size(self) -> int:
        """Bytes that the log has now."""
        return self.log.stat().st_size

    def log_since(self, position: int) -> str:
        """What was written to the log after so many bytes; all of it where it has been cut meanwhile."""
        with self.log.open("rb") as log:
            log.seek(position if position <= self.log_size() else 0)
            return log.read().decode("utf-8", "replace")

    def mispinned(self) -> str:
        """A sentence where it was given one GPU and sees another number of them, else nothing."""
        seen = ollama.gpu(self.log_since(0))
        if self.gpu is None or seen is None or (seen != "cpu" and " + " not in seen):
            return ""
        return f"{self.name}: gpus={self.gpu!r} was declared, and the server sees {seen}; name a GPU that it can use"

    def stop(self) -> None:
        """Stop the server and everything it started."""
        self._server.stop()

    def restart(self) -> None:
        """Stop it and start it anew in the fleet's present session folder: new port, same environment."""
        self.stop()
        self._start()

    def why_dead(self) -> str | None:
        """How the server ended with its last words, None while it runs."""
        code = self._server.wait(0.5)  # its connections break a moment before it has ended
        return None if code is None else f"{self.name} exited with code {code}; {self._server.last_words()}"

    def _start(self) -> None:
        home = self._fleet.folder / self.name
        home.mkdir(exist_ok=True)
        self.log = self._fleet.folder / f"{self.name}.log"
        models = None if self.emulated else self._models()
        env = ollama.environment(home, self._extra, models=models, slots=self.slots, gpu=self.gpu)
        env[MARK] = str(self._fleet.folder.parent)
        self.env: Mapping[str, str] = MappingProxyType(env)
        self._server = Server(ollama.argv(self._fleet.binary), env=env, cwd=home, log_path=self.log)
        try:
            self.url, self.version = self._readiness()
        except BaseException:
            self._server.stop()
            raise

    def _models(self) -> Path:
        """Its own view of the caller's store, or the store that the test has given it."""
        if own := self._extra.get("OLLAMA_MODELS"):
            return Path(own)
        return view(model_store(), self._fleet.folder.parent / f"models-{self.name}")

    def _readiness(self) -> tuple[str, str]:
        try:
            url = self._server.wait_until(
                lambda: ollama.listening(self._server.log_text()), limit_s=ollama.START_LIMIT_S, what="listening"
            )
            version = self._server.wait_until(
                lambda: ollama.ready(url), limit_s=ollama.START_LIMIT_S, what="answering HTTP"
            )
            return url, version
        except ServerError as error:
            if any(words in str(error) for words in _PORT_TAKEN):
                host = self.env["OLLAMA_HOST"]
                remedy = "leave OLLAMA_HOST out and the server picks a free one"
                raise LlmperfError(f"OLLAMA_HOST={host}: the port is in use; {remedy}\n{error}") from error
            raise


def _told(name: str, value: str) -> str:
    if _SECRET.search(name):
        return "set"
    return value if _OPEN.match(name) else f"sha256:{sha256(value.encode()).hexdigest()[:12]}"
