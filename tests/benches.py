"""Benches on real emulator processes, and an eye on every run that they try."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest

from pytest_llmperf import protocol, runs
from pytest_llmperf.instances import Fleet
from pytest_llmperf.model import OptionValue, Spec, Topology, Workload
from pytest_llmperf.runs import Attempt, Work
from pytest_llmperf.traffic import Run

GEMMA = "gemma3:4b-it-q4_K_M"
LLAMA = "llama3.1:8b-instruct-q4_0"
BUSY = "the server answered 503 with an error: server busy, please try again.  maximum pending requests exceeded"


def workload(
    name: str, model: str = GEMMA, tokens: int = 16, prompts: tuple[str, ...] = ("Why?",), **options: OptionValue
) -> Workload:
    return Workload(name=name, model=model, options={"num_ctx": 512, **options}, prompts=prompts, tokens=tokens)


def spec(*agents: Workload, topology: Topology = "dedicated", solo_runs: int = 0) -> Spec:
    return Spec(scenario="chimera_homo", agents=agents, topology=topology, solo_runs=solo_runs)


@contextmanager
def fleets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fleet]]:
    """Starts fleets that share one emulated device in `folder`; all their processes are gone at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(folder))
    with ExitStack() as running:

        def fleet(binary: str | None = None) -> Fleet:
            return running.enter_context(closing(Fleet(binary, nullcontext(0.0))))

        yield fleet
    assert not psutil.Process().children(recursive=True), "a process is left"


class Watch:
    """Notes every run that a bench tries: warm-ups, solo runs and replaced runs included.

    `agents` has each run's agents, `runs` those runs that could be read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.agents, self.runs = list[str](), list[Run]()
        monkeypatch.setattr(protocol, "attempt", self._attempt)
        monkeypatch.setattr(protocol, "run", self._run)

    def _attempt(self, work: Work, nonces: Iterator[str]) -> Attempt:
        self._note(work)
        tried = runs.attempt(work, nonces)
        self.runs += [tried.run] if tried.run else []
        return tried

    def _run(self, work: Work, nonces: Iterator[str]) -> Run:
        self._note(work)
        self.runs.append(runs.run(work, nonces))
        return self.runs[-1]

    def _note(self, work: Work) -> None:
        self.agents.append("+".join(agent.name for agent, _ in work))
