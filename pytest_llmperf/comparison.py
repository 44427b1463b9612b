"""Two configurations that take turns on servers that all stay loaded, which cancels a session's offset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llmperf import ollama
from pytest_llmperf.identity import Conditions
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import InvalidRunError, LlmperfError, Session
from pytest_llmperf.protocol import Bench


@dataclass(frozen=True)
class Held:
    """A model that an instance holds in memory, in bytes; `forced` is whether an agent says how many layers."""

    instance: str
    model: str
    size: int
    on_gpu: int
    forced: bool

    def __str__(self) -> str:
        return f"{self.instance} {self.model} {_gb(self.size)}"


class Comparison:
    """What `llmperf.compare()` returns, with the runs of a first look; assertions take more as they need them.

    `control` and `treatment` are what was measured so far, as `llmperf.measure()` returns it.
    """

    def __init__(self, test: str, machine: str, control: Bench, treatment: Bench) -> None:
        self._test, self._machine = test, machine
        self._benches = control, treatment
        self._load()
        self._conditions: tuple[Conditions, Conditions] = control.conditions(), treatment.conditions()
        for bench in self._benches:
            bench.warm_up()
        for bench in self._benches:  # in turns, like the runs
            bench.discard()

    @property
    def control(self) -> Measured:
        """The control's runs so far."""
        return self._side(0)

    @property
    def treatment(self) -> Measured:
        """The treatment's runs so far."""
        return self._side(1)

    @property
    def sides(self) -> tuple[Session, Session]:
        """Both sides' runs so far."""
        return self._benches[0].so_far(), self._benches[1].so_far()

    @property
    def runs(self) -> int:
        """How many runs that count each side has."""
        return self._benches[1].kept

    def take(self, runs: int) -> None:
        """Go on until each side has so many runs, in ABBA order: a drift then hits both sides alike."""
        while self.runs < runs:
            first, second = self._benches if self.runs % 2 == 0 else self._benches[::-1]
            first.step()
            second.step()

    def _side(self, number: int) -> Measured:
        bench = self._benches[number]
        return Measured(
            test=self._test,
            machine=self._machine,
            emulated=bench.instances[0].emulated,
            conditions=self._conditions[number],
            sessions=(bench.so_far(),),
            unverified=tuple(bench.unverified()),
            accuracy=bench.accuracy,
        )

    def _load(self) -> None:
        control, treatment = self._benches
        control.load()
        try:
            treatment.load()
        except InvalidRunError as error:
            there = [*_held(control)]
            if not there or not _OUT_OF_MEMORY.search(str(error)):
                raise
            held = sum(one.size for one in there)
            need = f"together they need at least {_gb(held + sum(_weights(treatment)))}"
            loaded = f"the control holds {_gb(held)} ({', '.join(map(str, there))})"
            said = f"{_CROWDED}: {need}, {loaded}, and loading the treatment failed; {_REMEDY}\n{error}"
            raise LlmperfError(said) from error
        _refuse_crowded([*_held(control), *_held(treatment)])


_OUT_OF_MEMORY = re.compile("memory|allocate", re.IGNORECASE)
_CROWDED = "control and treatment can't both stay loaded"
_REMEDY = "compare smaller models or contexts, or record a baseline for each"


def _held(bench: Bench) -> Iterator[Held]:
    """What is loaded on a bench's instances; nothing where a server can't tell."""
    for instance in bench.instances:
        forced = {
            agent.model
            for number, agent in enumerate(bench.spec.agents)
            if bench.instance_of(number) is instance and "num_gpu" in agent.options
        }
        with instance.control() as control:
            loaded = control.loaded() or ()
        for entry in loaded:
            name, size, on_gpu = str(entry["name"]), int(entry.get("size", 0)), int(entry.get("size_vram", 0))
            yield Held(instance.name, name, size, on_gpu, forced=bool(forced & {name, name.removesuffix(":latest")}))


def _weights(bench: Bench) -> Iterator[int]:
    """Bytes of the weights of each model on each instance: what a load takes at least."""
    pairs = {(bench.instance_of(number), agent.model) for number, agent in enumerate(bench.spec.agents)}
    for instance, model in pairs:
        with instance.control() as control:
            yield int(ollama.digest_of(model, control.models(), instance.store).get("size", 0))


def _refuse_crowded(held: list[Held]) -> None:
    """A server that finds the GPU full keeps layers on the CPU, without a word: then one side would be handicapped."""
    if not any(one.on_gpu for one in held):
        return
    for one in held:
        if one.on_gpu < one.size and not one.forced:
            total, list_ = _gb(sum(each.size for each in held)), ", ".join(map(str, held))
            found = f"{one.instance} has only {_gb(one.on_gpu)} of {_gb(one.size)} on the GPU"
            raise LlmperfError(f"{_CROWDED}: together they need {total} ({list_}), and {found}; {_REMEDY}")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
