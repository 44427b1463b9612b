"""The protocol of one measurement: load, warm up, discard a run, then solo runs and runs; read the metrics off them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from pytest_llmperf import identity, ollama
from pytest_llmperf.instances import Instance
from pytest_llmperf.metrics import Reference, sample
from pytest_llmperf.model import Contention, InvalidRunError, Sample, Session, Spec, Workload
from pytest_llmperf.plan import SESSION_RUNS
from pytest_llmperf.runs import Attempt, Work, attempt, run
from pytest_llmperf.traffic import Run

WARMUP_TOKENS = 8
REPLACED_ALLOWED = 0.2


class Bench:
    """Instances with a workload on them, ready to be measured session by session.

    `usual_ttft` is the baseline's in ms, by which a run is called contended; None without one. `addresses` are where
    the agents send their requests, if not straight to the instances.
    """

    def __init__(
        self,
        spec: Spec,
        instances: Sequence[Instance],
        usual_ttft: float | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        self.spec, self.instances, self.usual_ttft, self._addresses = spec, instances, usual_ttft, addresses
        token = secrets.token_hex(3)
        # a prompt cache matches from the first byte on: a prefix that no server has seen keeps it out
        self._nonces = (f"[{token}-{number}]" for number in count(1))
        self._load_s = 0.0
        self._discarded = list[Run]()
        self._solo, self._taken = list[Run](), list[Attempt]()

    def instance_of(self, agent: int) -> Instance:
        """The instance that serves an agent."""
        return self.instances[self._place(agent)]

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

    def session(self, looks: Sequence[int], enough: Callable[[Session], bool] = lambda _: False) -> Session:
        """One session on the instances as they are now: after each number of runs in `looks` it may be `enough`.

        Raises InvalidRunError when the measurement is broken.
        """
        self.load()
        self.warm_up()
        self.discard()
        for runs in looks:
            while self.kept < runs:
                self.step(looks[0])
            if enough(self.so_far()):
                break
        return self.so_far()

    def load(self) -> None:
        """Load one after the other: two at once would both see the whole GPU as free."""
        with self._blamed():
            self._load_s = max(self._loading(number, agent) for number, agent in enumerate(self.spec.agents))

    def warm_up(self) -> None:
        """The warm-up requests; a new session's runs begin after them."""
        self._solo, self._taken = [], []
        with self._blamed():
            for number, agent in enumerate(self.spec.agents):
                brief = replace(agent, prompts=agent.prompts[:1], tokens=WARMUP_TOKENS)
                for _ in range(self.spec.warmup_requests):
                    run(self._work({number: brief}), self._nonces)

    def discard(self) -> None:
        """One whole run that is recorded and counts for nothing: TR116's first runs are out of line in every group."""
        with self._blamed():
            self._discarded = [run(self._work(self._all()), self._nonces)]

    def step(self, over: int = SESSION_RUNS) -> None:
        """One more run, before it the solo runs that are due: their rounds are spread `over` the first runs."""
        rounds = self.spec.solo_runs
        before = [round_ * over // rounds for round_ in range(rounds)]
        with self._blamed():
            for _ in range(before.count(self.kept)):
                self._solo += [self._whole({number: agent}) for number, agent in enumerate(self.spec.agents)]
            self._taken.append(Attempt(self._whole(self._all())))
        self._refuse_broken()

    @property
    def kept(self) -> int:
        """The runs of this session that count."""
        return sum(not taken.cause for taken in self._taken)

    def so_far(self) -> Session:
        """The session up to now."""
        contention = self.spec.contention or Contention()
        reference = Reference(tuple(self._solo), self.usual_ttft, contention.contended)
        samples = [sample(run, reference, kept=False) for run in self._discarded]
        for taken in self._taken:
            found = sample(taken.run, reference, kept=not taken.cause) if taken.run else Sample({}, kept=False)
            samples.append(replace(found, cause=taken.cause))
        return Session(tuple(samples), self._load_s)

    def _place(self, agent: int) -> int:
        return agent if self.spec.topology == "dedicated" else 0

    def _entry(self, number: int, agent: Workload) -> Mapping[str, Any]:
        instance = self.instance_of(number)
        with instance.control() as control:
            return ollama.digest_of(agent.model, control.models(), instance.store)

    def _loading(self, number: int, agent: Workload) -> float:
        """Seconds it takes to load an agent's model."""
        with self.instance_of(number).control() as control:
            began = time.perf_counter()
            control.load(agent.model, agent.options)
            return time.perf_counter() - began

    def _whole(self, agents: Mapping[int, Workload]) -> Run:
        """A run; one that can't count for a declared cause, whatever its value, is replaced once and stays on record.

        A replacement whose model stops early again counts, for ttft only.
        """
        work = self._work(agents)
        first = attempt(work, self._nonces)
        if first.run and not first.cause:
            return first.run
        alone = f"{', '.join(agent.name for agent, _ in work)} alone: " if len(agents) < len(self.spec.agents) else ""
        self._taken.append(replace(first, cause=alone + first.cause))
        second = attempt(work, self._nonces)
        if second.run and (second.short or not second.cause):
            return second.run
        raise InvalidRunError(f"{second.cause}; the run before it could not count either: {first.cause}")

    def _refuse_broken(self) -> None:
        runs = [*self._solo, *(one.run for one in self._taken if not one.cause)]
        short, planned = sum(Attempt(run).short for run in runs), max(len(runs), SESSION_RUNS)
        if short > REPLACED_ALLOWED * planned:
            raise InvalidRunError(
                f"the model stops early in {short} of {len(runs)} runs, each tried twice: lower tokens= or change "
                "prompts="
            )
        broken = [one.cause for one in self._taken if one.cause and not one.short]
        if len(broken) > REPLACED_ALLOWED * planned:
            raise InvalidRunError(f"{len(broken)} of {len(self._taken)} runs had to be replaced: {'; '.join(broken)}")

    def _all(self) -> Mapping[int, Workload]:
        return dict(enumerate(self.spec.agents))

    def _work(self, agents: Mapping[int, Workload]) -> Work:
        urls = self._addresses or [instance.url for instance in self.instances]
        return [(agent, urls[self._place(number)]) for number, agent in agents.items()]

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Say of a broken measurement which servers are dead."""
        try:
            yield
        except InvalidRunError as error:
            dead = [words for instance in self.instances if (words := instance.why_dead())]
            raise InvalidRunError("; ".join([str(error), *dead])) from error
