"""Fleets: the instances of one test, their scratch folder and the device lane, put together and taken apart again."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from pathlib import Path
from types import MappingProxyType

from pytest_llmperf import ollama
from pytest_llmperf.instance import Instance
from pytest_llmperf.legal import ELSEWHERE, WORDS
from pytest_llmperf.model import LlmperfError, Spec
from pytest_llmperf.scratch import MARK, Scratch
from pytest_llmperf.server import Server, terminated_as_interrupted
from pytest_llmperf.values import is_name, is_text, shown


class Fleet:
    """The instances of one test, the device lane they run in, and their scratch folder; `binary` None is the emulator.

    The lane is taken before the first start and given back after the last stop; `waited_s` is how long that took.
    `env` is set for every instance; the lane is that of `gpus`, or of all where there are none.
    """

    def __init__(
        self,
        binary: str | None,
        lane: AbstractContextManager[float],
        env: Mapping[str, str] = MappingProxyType({}),
        gpus: Sequence[str] = (),
    ) -> None:
        self.binary, self._env, self._gpus = binary, _texts(env), gpus
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
        for mistake in _mistakes(self._env, slots, gpu):
            raise LlmperfError(mistake)
        self._open()
        if self._gpus and gpu not in self._gpus:
            have = f"the test's mark keeps it to gpus={list(self._gpus)}, whose lanes it holds"
            raise LlmperfError(f"no instance can have gpu={gpu!r}: {have}; name one of them, or widen the mark")
        instance = self._new(self._named(name), {**self._env, **_texts(env or {})}, slots=slots, gpu=gpu)
        self.instances.append(instance)
        return instance

    def deploy(self, spec: Spec, side: str = "") -> list[Instance]:
        """Start the instances of a spec's topology; those of a comparison's `side` are called after it."""
        names = [agent.name for agent in spec.agents] if spec.topology == "dedicated" else ["shared"]
        gpus = [spec.gpus[n % len(spec.gpus)] if spec.gpus else None for n in range(len(names))]
        names = [f"{side}{n}" for n in range(1, len(names) + 1)] if side else names
        return [self.start(name, spec.env, slots=spec.slots, gpu=gpu) for name, gpu in zip(names, gpus, strict=True)]

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


def _mistakes(env: Mapping[str, str], slots: object, gpu: object) -> Iterator[str]:
    yield from WORDS["slots"].mistakes("slots", slots)
    if gpu is not None and not is_text(gpu):
        yield f"gpu must be an index or a UUID as a text, such as '0', not {shown(gpu)}"
    for name in env.keys() & ELSEWHERE.keys():
        yield f"ollama_env has {name!r}; {ELSEWHERE[name]}"


def _texts(env: Mapping[str, object]) -> Mapping[str, str]:
    for variable, value in env.items():
        if not isinstance(value, str):
            raise LlmperfError(f"env[{variable!r}] must be a text, not {value!r}")
    return {variable: str(value) for variable, value in env.items()}
