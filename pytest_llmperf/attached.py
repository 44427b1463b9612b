"""Servers that run already: used, never started, never stopped, and left as they were found."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from pytest_llmperf import identity, ollama
from pytest_llmperf.instance import Instance
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import LlmperfError, OptionValue

_LIFETIME = "30m"
"""Longer than any pause between two requests of a measurement."""

_FOR_EVER_S = 10 * 365 * 86400
"""Go's longest duration, which stands for ever, is 292 years."""


class Attached(Instance):
    """One server that is not ours: `url`, `version`. What was not in its memory before is not there afterwards."""

    ours = False

    def __init__(self, fleet: Fleet, name: str, url: str) -> None:
        self.url = url
        self._before: Sequence[Mapping[str, Any]] | None = None
        super().__init__(fleet, name, {})

    @property
    def emulated(self) -> bool:
        """Whether the emulator answers there."""
        return self._emulated

    @property
    def backend(self) -> str:
        """What kind of server this is, as the conditions say it."""
        if self._emulated:
            return "emulator"
        return "ollama that ran already" if identity.is_local(self.url) else "ollama on another machine"

    @property
    def store(self) -> str:
        """Where its models are, in words."""
        return f"the model store of {self.url}"

    @property
    def pid(self) -> int:
        """Not known of a server that somebody else has started; raises LlmperfError."""
        raise LlmperfError(f"{self.url} was running already: its process is not known, only its URL")

    def load(self, control: ollama.Control, model: str, options: Mapping[str, OptionValue]) -> None:
        """Load a model and wait for it; not for ever, so that a killed pytest holds nobody's memory for long."""
        self._loaded[model] = options
        control.load(model, options, keep_alive=_LIFETIME)

    def stop(self) -> None:
        """Leave in its memory what was there, for as long as it would have been, and nothing else."""
        with self.control() as control:
            for model, options in self._loaded.items():
                if found := ollama.entry_of(model, self._before or ()):
                    control.load(model, options, keep_alive=_left(found))
                else:
                    control.unload(model)
        self._loaded.clear()

    def restart(self) -> None:
        """A new session on a server that can't be restarted: unload what it was given, so that it is loaded anew."""
        with self.control() as control:
            for model in self._loaded:
                control.unload(model)
        self._start()

    def why_dead(self) -> str | None:
        """That it does not answer any more, None while it does."""
        with self.control() as control:
            return None if control.ready() else f"{self.name} ({self.url}) does not answer any more"

    def _start(self) -> None:
        self.log = self._fleet.folder / f"{self.name}.log"
        self.log.write_text(f"{self.url} was running already: its log is where its owner has put it\n", "utf-8")
        self.env: Mapping[str, str] = MappingProxyType({})
        self._loaded = dict[str, Mapping[str, OptionValue]]()
        with self.control() as control:
            if (version := control.ready()) is None:
                raise LlmperfError(f"--llmperf-backend: {self.url} does not answer GET /api/version; is it an Ollama?")
            self.version, self._emulated = version, control.is_emulator()
            if self._before is None:
                self._before = control.loaded() or []


class AttachedFleet(Fleet):
    """The servers of `urls`, in their order, as the instances of one test."""

    def __init__(self, urls: Sequence[str], lane: AbstractContextManager[float], env: Mapping[str, str]) -> None:
        super().__init__(None, lane, env)
        self._urls = urls
        self._unused: Iterator[str] = iter(urls)

    def new_session(self) -> None:
        """Let every server load its models anew."""
        self._stop_relays()
        self._open_session(self.folder.parent)
        for instance in self.instances:
            instance.restart()

    def _new(self, name: str, env: Mapping[str, str], *, slots: int, gpu: str | None) -> Instance:  # noqa: ARG002
        if env or gpu is not None:
            given = ", ".join([*env, *(["gpus="] if gpu is not None else [])])
            raise LlmperfError(f"{given} can't be set for a server that runs already; leave --llmperf-backend out")
        if (url := next(self._unused, None)) is None:
            have = f"--llmperf-backend names {len(self._urls)} server{'s' * (len(self._urls) != 1)}"
            raise LlmperfError(f"{have}, and this test needs one more, {name!r}; name as many as it has instances")
        found = Attached(self, name, url)
        for other in self.instances:
            if _addresses(other.url) & _addresses(url):
                raise LlmperfError(f"--llmperf-backend: {other.url} and {url} are one server; name different ones")
            if other.emulated != found.emulated:
                which = "real, the other an emulator" if found.emulated else "an emulator, the other real"
                raise LlmperfError(f"--llmperf-backend: {other.url} is {which} ({url}); name servers of one kind")
        return found


def _addresses(url: str) -> set[tuple[str, int]]:
    where = urlsplit(url)
    with suppress(OSError):
        found = socket.getaddrinfo(where.hostname, where.port, type=socket.SOCK_STREAM)
        return {(str(address[4][0]), int(address[4][1])) for address in found}
    return set()


def _left(entry: Mapping[str, Any]) -> int:
    """Seconds that a model would have stayed in memory, -1 for ever, by its entry of /api/ps."""
    until = datetime.fromisoformat(str(entry["expires_at"]))
    seconds = round((until - datetime.now(UTC)).total_seconds())
    return -1 if seconds > _FOR_EVER_S else max(1, seconds)
