"""Instances: a server process, what we know of Ollama and a scratch folder, put together and taken apart again."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from pathlib import Path
from types import MappingProxyType

from pytest_llmperf import ollama
from pytest_llmperf.model import LlmperfError
from pytest_llmperf.scratch import MARK, Scratch
from pytest_llmperf.server import Server, ServerError, terminated_as_interrupted
from pytest_llmperf.store import model_store, view
from pytest_llmperf.values import is_name

_PORT_TAKEN = ("address already in use", "Only one usage of each socket address")
_NO_CONDITIONS = frozenset({"OLLAMA_HOST", "OLLAMA_MODELS"})
"""Where a server listens and where its models are changes no measurement; which models they are is a condition."""


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
        """The environment variables that the test itself set, without those that only say where something is."""
        return {name: value for name, value in self._extra.items() if name not in _NO_CONDITIONS}

    @property
    def emulated(self) -> bool:
        """Whether this is the emulator."""
        return self._fleet.binary is None

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
        models = None if self.emulated else view(model_store(), self._fleet.folder.parent / f"models-{self.name}")
        env = ollama.environment(home, self._extra, models=models, slots=self.slots, gpu=self.gpu)
        env[MARK] = str(self._fleet.folder.parent)
        self.env: Mapping[str, str] = MappingProxyType(env)
        self._server = Server(ollama.argv(self._fleet.binary), env=env, cwd=home, log_path=self.log)
        try:
            self.url, self.version = self._readiness()
        except BaseException:
            self._server.stop()
            raise

    def _readiness(self) -> tuple[str, str]:
        try:
            url = self._server.wait_until(
                lambda: ollama.listening(self._server.log_text()), limit_s=ollama.START_LIMIT_S, what="listening"
            )
            with ollama.Control(url) as control:
                limit_s = ollama.START_LIMIT_S
                return url, self._server.wait_until(control.ready, limit_s=limit_s, what="answering HTTP")
        except ServerError as error:
            if any(words in str(error) for words in _PORT_TAKEN):
                host = self.env["OLLAMA_HOST"]
                remedy = "leave OLLAMA_HOST out and the server picks a free one"
                raise LlmperfError(f"OLLAMA_HOST={host}: the port is in use; {remedy}\n{error}") from error
            raise


class Fleet:
    """The instances of one test, the device lane they run in, and their scratch folder; `binary` None is the emulator.

    The lane is taken before the first start and given back after the last stop; `waited_s` is how long that took.
    """

    def __init__(self, binary: str | None, lane: AbstractContextManager[float]) -> None:
        self.binary = binary
        self.instances: list[Instance] = []
        self.folder, self.waited_s = Path(), 0.0
        self._relays: list[Server] = []
        self._lane, self._held = lane, ExitStack()

    def start(
        self,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        slots: int = 1,
        gpu: str | None = None,
    ) -> Instance:
        """Start one instance and wait for its first HTTP 200."""
        self._open()
        instance = self._new(self._named(name), _texts(env or {}), slots=slots, gpu=gpu)
        self.instances.append(instance)
        return instance

    def new_session(self) -> None:
        """Stop all instances, then start them anew, one after the other."""
        self._stop_relays()
        for instance in self.instances:
            instance.stop()
        self._open_session(self.folder.parent)
        for instance in self.instances:
            instance.restart()

    def relayed(self, first: float, rest: float) -> list[str]:
        """Put a relay before each instance until the session ends, and return the relays' URLs in the same order.

        A relay makes the time to the first token `first` times as long and the whole answer `rest` times.
        """
        return [self._relay(instance, first, rest) for instance in self.instances]

    def logs(self) -> list[Path]:
        """The logs of the present session's servers."""
        return sorted(instance.log for instance in self.instances)

    def close(self) -> None:
        """Stop everything, remove the scratch folder, give the lane back; also after an error in between."""
        with self._held:
            for instance in self.instances:
                self._held.callback(instance.stop)
            self._held.callback(self._stop_relays)
        self.instances.clear()

    def _new(self, name: str, env: Mapping[str, str], *, slots: int, gpu: str | None) -> Instance:
        return Instance(self, name, env, slots=slots, gpu=gpu)

    def _open(self) -> None:
        if self.folder.name:
            return
        self._held.enter_context(terminated_as_interrupted())
        self.waited_s = self._held.enter_context(self._lane)
        scratch = Scratch()
        self._held.callback(scratch.close)
        self._open_session(scratch.path)

    def _named(self, name: str | None) -> str:
        taken = {instance.name.casefold() for instance in self.instances}
        free = (word for number in count(1) if (word := f"instance{number}") not in taken)
        name = name or next(free)
        if not is_name(name) or name.casefold() in taken:
            legal = "letters, digits, - and _, and no other instance of the test has it"
            raise LlmperfError(f"no instance can be called {name!r}: a name is {legal}")
        return name

    def _relay(self, instance: Instance, first: float, rest: float) -> str:
        slower = ["--first", f"{first:.6g}", "--rest", f"{rest:.6g}"]
        argv = [sys.executable, "-m", "pytest_llmperf.relay", instance.url, *slower]
        log, env = self.folder / f"{instance.name}-relay.log", {**os.environ, MARK: str(self.folder.parent)}
        relay = Server(argv, env=env, cwd=self.folder, log_path=log)
        self._relays.append(relay)
        return relay.wait_until(
            lambda: ollama.listening(relay.log_text()), limit_s=ollama.START_LIMIT_S, what="listening"
        )

    def _stop_relays(self) -> None:
        while self._relays:
            self._relays.pop().stop()

    def _open_session(self, scratch: Path) -> None:
        self.folder = scratch / f"session-{secrets.token_hex(4)}"
        self.folder.mkdir()


def _texts(env: Mapping[str, object]) -> Mapping[str, str]:
    for variable, value in env.items():
        if not isinstance(value, str):
            raise LlmperfError(f"env[{variable!r}] must be a text, not {value!r}")
    return {variable: str(value) for variable, value in env.items()}
