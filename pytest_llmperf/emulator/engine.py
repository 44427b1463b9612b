"""Ollama's scheduler and runner: load, queue, prefill, decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

from pytest_llmperf.emulator import draw, log
from pytest_llmperf.emulator.config import Config
from pytest_llmperf.emulator.device import Demand, Device
from pytest_llmperf.emulator.draw import Job
from pytest_llmperf.emulator.models import Model
from pytest_llmperf.emulator.options import LoadOptions
from pytest_llmperf.emulator.runner import Fifo, Pace, Runner

PREFILL_STEPS = 8  # two agents that start a moment apart differ by one step at most


class RunnerError(RuntimeError):
    """The model's process failed in the middle of an answer; the text is Ollama's."""


@dataclass(frozen=True)
class Finished:
    """The end of an answer. `metrics` are Ollama's counts and nanoseconds, zero ones left out."""

    reason: str
    metrics: dict[str, int]


class Engine:
    """The models an instance has loaded, and the requests they work on."""

    def __init__(self, config: Config, device: Device) -> None:
        self.config = config
        self._device = device
        self._runners: dict[str, Runner] = {}
        self._changed = threading.Condition()
        self._loading = Fifo(1)

    def loaded(self) -> list[Runner]:
        """What is loaded now, as /api/ps shows it: the longest to live first."""
        with self._changed:
            self._sweep()
            return sorted(self._runners.values(), key=lambda runner: -runner.expires)

    def unload(self, model: Model) -> None:
        """Drop the model as soon as its requests in flight have ended; does not wait."""
        with self._changed:
            if runner := self._runners.get(model.digest):
                runner.retiring = True

    @contextmanager
    def runner(self, job: Job) -> Iterator[Runner]:
        """The job's model, loaded with its options: waits for a load, or for a reload that others are in the way of."""
        runner = self._ready(job)
        if runner is None:
            with self._loading:
                runner = self._ready(job) or self._load(job)
        try:
            yield runner
        finally:
            with self._changed:
                runner.users -= 1
                runner.expires = time.time() + job.keep_alive
                self._changed.notify_all()

    def generate(self, job: Job, started: int) -> Generator[str | Finished, None, None]:
        """One answer: its tokens, each at its time, then how it ended; `started` is the request's perf_counter_ns.

        RunnerError, or no Finished, where the fault in force wants that.
        """
        plan = draw.plan(job, self.config)
        with self.runner(job) as runner:
            ready = perf_counter_ns()
            with runner.slots, self._device.turn(), runner.claim.stream():
                begun, first, last = yield from self._decode(job, runner, plan.tokens)
        if plan.ending == "error":
            raise RunnerError("an error was encountered while running the model: unexpected EOF")
        if plan.ending == "done":
            metrics = {
                "total_duration": perf_counter_ns() - started,
                "load_duration": ready - started,
                "prompt_eval_count": prompt_tokens(job),
                "prompt_eval_duration": first - begun,
                "eval_count": plan.tokens,
                "eval_duration": last - first,
            }
            yield Finished(plan.reason, {name: value for name, value in metrics.items() if value})

    def _decode(self, job: Job, runner: Runner, tokens: int) -> Generator[str, None, tuple[int, int, int]]:
        speed = draw.speed(job, self.config)
        pace = Pace(runner.claim.share)
        begun = perf_counter_ns()
        for _ in range(PREFILL_STEPS):
            pace.step(speed.prefill / PREFILL_STEPS)
        first = perf_counter_ns()
        for index, word in enumerate(draw.words(job, self.config, tokens)):
            if index:
                pace.step(1 / speed.rate)
            yield word
        return begun, first, perf_counter_ns()

    def _ready(self, job: Job) -> Runner | None:
        with self._changed:
            self._sweep()
            runner = self._runners.get(job.model.digest)
            if runner is None or not runner.accepts(job.load):
                return None
            runner.users += 1
            runner.expires = time.time() + job.keep_alive
            return runner

    def _load(self, job: Job) -> Runner:
        self._make_way(job.model)
        layers, load = job.model.layers + 1, job.load
        log.info("sched.go:1", "starting llama-server", cmd=_command(job.name, load, self.config.parallel))
        time.sleep(self.config.physics.load_s)
        log.plain(f"load_tensors: offloaded {job.model.offloaded(load.num_gpu)}/{layers} layers to GPU")
        log.info("sched.go:1", f"llama-server started in {self.config.physics.load_s:.2f} seconds")
        runner = Runner(
            model=job.model,
            name=job.name,
            load=load,
            claim=self._device.claim(Demand.of(load)),
            slots=Fifo(self.config.parallel),
            users=1,
            expires=time.time() + job.keep_alive,
        )
        with self._changed:
            self._runners[job.model.digest] = runner
        return runner

    def _make_way(self, model: Model) -> None:
        with self._changed:
            if runner := self._runners.get(model.digest):
                runner.retiring = True
                self._changed.wait_for(lambda: not runner.users)
                self._sweep()

    def _sweep(self) -> None:
        for digest, runner in list(self._runners.items()):
            if runner.over():
                del self._runners[digest]
                runner.claim.release()


def prompt_tokens(job: Job) -> int:
    """The prompt's length: about four characters a token and ten tokens of template, at most a full context."""
    return min(10 + len(job.prompt) // 4, job.load.num_ctx)


def _command(name: str, load: LoadOptions, slots: int) -> str:
    layers = "" if load.num_gpu < 0 else f" -ngl {load.num_gpu}"
    threads = f" -t {load.num_thread}" if load.num_thread else ""
    return f"llama-server --model {name} -c {load.num_ctx * slots} -np {slots} -b {load.num_batch}{layers}{threads}"
