"""The protocol of one measurement: load, warm up, discard a run, then solo runs and runs; read the metrics off them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any

from pytest_llmperf import identity, ollama, stream
from pytest_llmperf.agents import run_together
from pytest_llmperf.instances import Instance
from pytest_llmperf.metrics import Reference, sample
from pytest_llmperf.model import InvalidRunError, Session, Spec, Workload
from pytest_llmperf.traffic import Recording, Run, Track

WARMUP_TOKENS = 8
SHORT_RUNS_ALLOWED = 0.2


class Bench:
    """Instances with a workload on them, ready to be measured session by session."""

    def __init__(self, spec: Spec, instances: Sequence[Instance], usual_ttft: float | None = None) -> None:
        self.spec, self.instances, self._usual_ttft = spec, instances, usual_ttft
        token = secrets.token_hex(3)
        # a prompt cache matches from the first byte on: a prefix that no server has seen keeps it out
        self._nonces = (f"[{token}-{number}]" for number in count(1))

    def instance_of(self, agent: int) -> Instance:
        """The instance that serves an agent."""
        return self.instances[agent if self.spec.topology == "dedicated" else 0]

    def conditions(self) -> identity.Conditions:
        """What is in force now; raises LlmperfError for a model that isn't in the store."""
        models = {agent.model: self._entry(number, agent) for number, agent in enumerate(self.spec.agents)}
        first = self.instances[0]
        env = {f"env.{name}": value for instance in self.instances for name, value in instance.on_purpose.items()}
        return env | identity.conditions(
            self.spec,
            emulated=first.emulated,
            version=first.version,
            gpu=ollama.gpu(first.log.read_text("utf-8", "replace")),
            models=models,
        )

    def session(self) -> Session:
        """One session on the instances as they are now; raises InvalidRunError when the measurement is broken."""
        try:
            load_s = self._load()
            self._warm_up()
            discarded = self._together(self._all())
            solo, runs = self._runs()
        except InvalidRunError as error:
            dead = [words for instance in self.instances if (words := instance.why_dead())]
            raise InvalidRunError("; ".join([str(error), *dead])) from error
        reference = Reference(tuple(solo), self._usual_ttft)
        samples = [sample(discarded, reference, kept=False), *(sample(run, reference) for run in runs)]
        return Session(tuple(samples), load_s)

    def _entry(self, number: int, agent: Workload) -> Mapping[str, Any]:
        instance = self.instance_of(number)
        with instance.control() as control:
            return ollama.digest_of(agent.model, control.models(), instance.store)

    def _load(self) -> float:
        """Load one after the other (two at once would both see the whole GPU as free); the longest load in seconds."""
        longest = 0.0
        for number, agent in enumerate(self.spec.agents):
            with self.instance_of(number).control() as control:
                began = time.perf_counter()
                control.load(agent.model, agent.options)
                longest = max(longest, time.perf_counter() - began)
        return longest

    def _warm_up(self) -> None:
        for number, agent in enumerate(self.spec.agents):
            brief = replace(agent, prompts=agent.prompts[:1], tokens=WARMUP_TOKENS)
            for _ in range(self.spec.warmup_requests):
                self._together({number: brief})

    def _runs(self) -> tuple[list[Run], list[Run]]:
        solo, runs = list[Run](), list[Run]()
        rounds, total = self.spec.solo_runs, self.spec.max_runs
        before = [round_ * total // rounds for round_ in range(rounds)]
        for position in range(total):
            for _ in range(before.count(position)):
                solo += [self._full({number: agent}) for number, agent in enumerate(self.spec.agents)]
            runs.append(self._full(self._all()))
        _refuse_short([*solo, *runs])
        return solo, runs

    def _full(self, agents: Mapping[int, Workload]) -> Run:
        """A run; one in which a model stopped early is repeated once, with other nonces."""
        run = self._together(agents)
        return self._together(agents) if _short(run) else run

    def _all(self) -> Mapping[int, Workload]:
        return dict(enumerate(self.spec.agents))

    def _together(self, agents: Mapping[int, Workload]) -> Run:
        clients = [_PromptAgent(agent, self.instance_of(n).url, self._nonces) for n, agent in agents.items()]
        release, recordings = run_together(clients)
        tracks = [_track(agent, r, release) for agent, r in zip(agents.values(), recordings, strict=True)]
        return Run(tracks=tuple(tracks), skew=max(r[0].sent for r in recordings) - release)


class _PromptAgent:
    """An agent with built-in prompts: sends them one after the other over one connection."""

    def __init__(self, workload: Workload, url: str, nonces: Iterator[str]) -> None:
        self._connection = stream.Connection(url)
        self._requests = [ollama.request(workload, f"{next(nonces)} {prompt}", url) for prompt in workload.prompts]

    def prepare(self) -> None:
        self._connection.connect()

    def work(self, released: float) -> list[Recording]:
        due: float | None = released
        recordings = []
        with closing(self._connection):
            for request in self._requests:
                recordings.append(self._connection.exchange(request, due))
                due = None
        return recordings

    def close(self) -> None:
        self._connection.close()


def _track(agent: Workload, recordings: Sequence[Recording], release: float) -> Track:
    answers = [(recording, *stream.lines(recording)) for recording in recordings]
    return Track(
        agent=agent.name,
        exchanges=tuple(
            ollama.exchange(recording, status, lines, budget=agent.tokens, release=release)
            for recording, status, lines in answers
        ),
    )


def _short(run: Run) -> bool:
    return any(exchange.short for exchange in run.exchanges)


def _refuse_short(runs: Sequence[Run]) -> None:
    short = sum(_short(run) for run in runs)
    if short > SHORT_RUNS_ALLOWED * len(runs):
        raise InvalidRunError(
            f"the model stops early in {short} of {len(runs)} runs, each tried twice: lower tokens= or change prompts="
        )
