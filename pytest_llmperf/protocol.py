"""The protocol of one measurement: load, warm up, discard a run, then solo runs and runs; read the metrics off them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from pytest_llmperf import accuracy, identity, ollama, readback, versions
from pytest_llmperf.accuracy import Accuracy
from pytest_llmperf.instance import Instance
from pytest_llmperf.metrics import Reference, sample
from pytest_llmperf.model import Contention, DisturbedError, InvalidRunError, Sample, Session, Spec, Workload
from pytest_llmperf.plan import SESSION_RUNS
from pytest_llmperf.readback import InForce
from pytest_llmperf.runs import Attempt, Work, attempt, run
from pytest_llmperf.surroundings import Surroundings
from pytest_llmperf.traffic import Run

WARMUP_TOKENS = 8
REPLACED_ALLOWED = 0.2


class Bench:
    """Instances with a workload on them, to be loaded, then measured, session by session.

    `usual_ttft` is the baseline's in ms, by which a run is called contended; None without one. `addresses` are where
    the agents send their requests, if not straight to the instances; `around` watches what else runs there.
    """

    def __init__(
        self,
        spec: Spec,
        instances: Sequence[Instance],
        usual_ttft: float | None = None,
        addresses: Sequence[str] = (),
        around: Surroundings | None = None,
    ) -> None:
        self.spec, self.instances, self.usual_ttft, self._addresses = spec, instances, usual_ttft, addresses
        self._around = around or Surroundings(instances, None, print)
        token = secrets.token_hex(3)
        # a prompt cache matches from the first byte on: a prefix that no server has seen keeps it out
        self._nonces = (f"[{token}-{number}]" for number in count(1))
        self._load_s = 0.0
        self._models, self._in_force = list[Mapping[str, Any]](), list[InForce]()
        self._discarded = list[Run]()
        self._solo, self._taken = list[Run](), list[Attempt]()
        self._absent = frozenset[str]().union(*(versions.absent(each.version) for each in instances))

    def instance_of(self, agent: int) -> Instance:
        """The instance that serves an agent."""
        return self.instances[self._place(agent)]

    def conditions(self) -> identity.Conditions:
        """What was loaded and is in force."""
        env = {f"env.{name}": value for instance in self.instances for name, value in instance.on_purpose.items()}
        gpus = [seen for each in self.instances if (seen := ollama.gpu(each.log_since(0)))]
        return env | identity.conditions(
            self.spec,
            backend=identity.joined([each.backend for each in self.instances]),
            version=identity.joined([each.version for each in self.instances]),
            gpu=identity.joined(gpus) or None,
            models=self._models,
            in_force=[readback.facts(found) for found in self._in_force],
        )

    def unverified(self) -> list[str]:
        """What the mark declares and these servers don't tell whether it is in force."""
        of_agents = zip(self.spec.agents, self._in_force, strict=True)
        names = {name for each in of_agents for name in readback.unverified(each[0], self.spec.slots, each[1])}
        silent = any(each.gpu is not None and ollama.gpu(each.log_since(0)) is None for each in self.instances)
        return sorted(names | ({"gpus"} if silent else set()))

    def load(self) -> None:
        """Load one after the other (two at once would both see the whole GPU as free), and read back what is in force.

        Raises InvalidRunError where that is not what the mark declares, LlmperfError where a model is not in the store
        or the GPU has no room for it.
        """
        with self._blamed():
            self._models = [self._entry(number, agent) for number, agent in enumerate(self.spec.agents)]
            loaded = dict[tuple[str, str], tuple[float, InForce]]()
            for number, agent in enumerate(self.spec.agents):
                key = self.instance_of(number).name, agent.model
                loaded[key] = loaded.get(key) or self._loading(number, agent)
        self._load_s = max(seconds for seconds, _ in loaded.values())
        self._in_force = [loaded[self.instance_of(n).name, agent.model][1] for n, agent in enumerate(self.spec.agents)]
        self._refuse_mislabelled()

    def session(self, looks: Sequence[int], enough: Callable[[Session], bool] = lambda _: False) -> Session:
        """One session on what is loaded now: after each number of runs in `looks` it may be `enough`.

        Raises InvalidRunError when the measurement is broken.
        """
        self.warm_up()
        self.discard()
        for runs in looks:
            while self.kept < runs:
                self.step(looks[0])
            if enough(self.so_far()):
                break
        return self.so_far()

    def warm_up(self) -> None:
        """The warm-up requests, once the machine is quiet; a new session's runs begin after them."""
        self._solo, self._taken = [], []
        self._around.on_processor = any(found.on_processor for found in self._in_force)
        self._around.settle()
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

    @property
    def accuracy(self) -> Accuracy | None:
        """How exact this session's times are."""
        return accuracy.of([taken.run for taken in self._taken if taken.run and not taken.cause])

    def so_far(self) -> Session:
        """The session up to now."""
        contention = self.spec.contention or Contention()
        reference = Reference(tuple(self._solo), self.usual_ttft, contention.contended)
        samples = [sample(run, reference, kept=False) for run in self._discarded]
        for taken in self._taken:
            found = sample(taken.run, reference, kept=not taken.cause) if taken.run else Sample({}, kept=False)
            samples.append(replace(found, cause=taken.cause))
        return Session(tuple(map(self._reported, samples)), self._load_s)

    def _place(self, agent: int) -> int:
        return agent if self.spec.topology == "dedicated" else 0

    def _reported(self, sample: Sample) -> Sample:
        """Without the metrics that a server of this version can't give."""
        return replace(sample, values={name: at for name, at in sample.values.items() if name not in self._absent})

    def _entry(self, number: int, agent: Workload) -> Mapping[str, Any]:
        instance = self.instance_of(number)
        with instance.control() as control:
            return ollama.digest_of(
                agent.model, control.models(), instance.store, "" if instance.ours else instance.url
            )

    def _loading(self, number: int, agent: Workload) -> tuple[float, InForce]:
        """Seconds it takes to load an agent's model, and what the server says of it then."""
        instance, layers = self.instance_of(number), agent.options.get("num_gpu", -1)
        with instance.control() as control:
            known = ollama.entry_of(agent.model, control.loaded() or ())
            if not known and layers == -1 and ollama.gpu(instance.log_since(0)) != "cpu":
                self._around.refuse_crowded(instance, int(self._models[number].get("size", 0)))
            position, began = instance.log_size(), time.perf_counter()
            with self._around.announced(f"{instance.name} to load {agent.model}, up to {ollama.LOAD_LIMIT_S:g} s"):
                instance.load(control, agent.model, agent.options)
            seconds = time.perf_counter() - began
            said = instance.log_since(position)
            return seconds, readback.read(ollama.entry_of(agent.model, control.loaded() or ()), said)

    def _refuse_mislabelled(self) -> None:
        """A label that is not in force is no measurement of what it says."""
        wrong = [sentence for instance in self.instances if (sentence := instance.mispinned())]
        for agent, model, found in zip(self.spec.agents, self._models, self._in_force, strict=True):
            wrong += readback.differences(agent, self.spec.slots, found, str(model.get("digest", "")) or None)
            if self.spec.gpus and found.size_vram == 0 and agent.options.get("num_gpu") != 0:
                wrong.append(f"{agent.name}: gpus= was declared, and nothing of {agent.model} is on a GPU; see its log")
        if wrong:
            raise InvalidRunError("\n".join(["what is declared is not in force", *dict.fromkeys(wrong)]))

    def _whole(self, agents: Mapping[int, Workload]) -> Run:
        """A run; one that can't count for a declared cause, whatever its value, is replaced once and stays on record.

        A replacement whose model stops early again counts, for ttft only.
        """
        work = self._work(agents)
        first = self._watched(work)
        if first.run and not first.cause:
            return first.run
        alone = f"{', '.join(agent.name for agent, _ in work)} alone: " if len(agents) < len(self.spec.agents) else ""
        self._taken.append(replace(first, cause=alone + first.cause))
        if first.run is None:  # whoever broke it may have taken the loaded model with him
            for number, agent in agents.items():
                with self.instance_of(number).control() as control:
                    self.instance_of(number).load(control, agent.model, agent.options)
        if first.disturbed:
            self._around.settle()
        second = self._watched(work)
        if second.run and (second.short or not second.cause):
            return second.run
        kind = DisturbedError if second.disturbed else InvalidRunError
        raise kind(f"{second.cause}; the run before it could not count either: {first.cause}")

    def _watched(self, work: Work) -> Attempt:
        self._around.begin()
        tried = attempt(work, self._nonces)
        disturbance = self._around.disturbance()
        counts = not tried.cause or tried.short
        return replace(tried, cause=disturbance, disturbed=True) if disturbance and counts else tried

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
            kind = DisturbedError if any(one.disturbed for one in self._taken) else InvalidRunError
            raise kind(f"{len(broken)} of {len(self._taken)} runs had to be replaced: {'; '.join(broken)}")

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
            raise type(error)("; ".join([str(error), *dead])) from error
