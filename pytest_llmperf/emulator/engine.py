"""Ollama's scheduler and runner: load, queue, prefill, decode."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import NamedTuple

from pytest_llmperf.emulator import draw, log, placement
from pytest_llmperf.emulator.config import Config
from pytest_llmperf.emulator.device import Claim, Demand, Device
from pytest_llmperf.emulator.draw import Job
from pytest_llmperf.emulator.faults import Plan
from pytest_llmperf.emulator.models import Model
from pytest_llmperf.emulator.options import LoadOptions
from pytest_llmperf.emulator.placement import Placement
from pytest_llmperf.emulator.process import RunnerError
from pytest_llmperf.emulator.runner import Fifo, Pace, Runner

PREFILL_STEPS = 8  # two agents that start a moment apart differ by one step at most

# Ollama 0.33's: llama-server leaves a number of layers that the user has set as it is, and ends when they don't fit
_OUT_OF_MEMORY = (
    "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory\n"
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size {}\n"
    "error loading model: unable to allocate CUDA0 buffer"
)


class Token(NamedTuple):
    """One token of an answer, `thought` or said; the line that carries a `garbled` one is no JSON."""

    text: str
    thought: bool = False
    garbled: bool = False


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
        threading.Thread(target=self._expire, daemon=True).start()

    def loaded(self) -> list[Runner]:
        """What is loaded now, as /api/ps shows it: the longest to live first."""
        with self._changed:
            self._sweep()
            return sorted(self._runners.values(), key=lambda runner: -runner.expires)

    def unload(self, model: Model) -> None:
        """Drop the model once its requests in flight have ended, unless a later one keeps it; does not wait."""
        with self._changed:
            if runner := self._runners.get(model.digest):
                runner.keep_alive = 0.0
                runner.renew()
                self._sweep()

    @contextmanager
    def runner(self, job: Job) -> Iterator[Runner]:
        """The job's model, loaded with its options: waits for a load, or for a reload that others are in the way of.

        RunnerError where the layers that `num_gpu` asks for don't fit.
        """
        runner = self._ready(job)
        if runner is None:
            with self._loading:
                runner = self._ready(job) or self._load(job)
        try:
            yield runner
        finally:
            with self._changed:
                runner.users -= 1
                runner.renew()
                self._changed.notify_all()

    def generate(self, job: Job, started: int) -> Generator[Token | Finished, None, None]:
        """One answer: its tokens, each at its time, then how it ended; `started` is the request's perf_counter_ns.

        RunnerError where the model's process is gone; that, no Finished or no end where the fault in force wants it.
        """
        plan = draw.plan(job, self.config)
        with self.runner(job) as runner:
            ready = perf_counter_ns()
            with runner.slots, self._device.turn(), runner.claim.stream():
                begun, first, last = yield from self._decode(job, runner, plan)
        if plan.ending():
            metrics = {
                "total_duration": perf_counter_ns() - started,
                "load_duration": ready - started,
                "prompt_eval_count": prompt_tokens(job),
                "prompt_eval_duration": first - begun,
                "eval_count": plan.tokens,
                "eval_duration": last - first,
            }
            found = {name: value for name, value in metrics.items() if value}
            yield Finished(plan.reason, self.config.physics.fault.metrics(found))

    def _decode(self, job: Job, runner: Runner, plan: Plan) -> Generator[Token, None, tuple[int, int, int]]:
        speed = draw.speed(job, self.config)
        pace = Pace(runner.share)
        begun = perf_counter_ns()
        for _ in range(PREFILL_STEPS):
            pace.step(speed.prefill / PREFILL_STEPS)
            runner.check()
        first = perf_counter_ns()
        for index, word in enumerate(draw.words(job, self.config, plan.tokens)):
            if index:
                pace.step(1 / speed.rate)
                runner.check()
            yield Token(word, thought=index < plan.thoughts, garbled=index == plan.garbled)
        return begun, first, perf_counter_ns()

    def _ready(self, job: Job) -> Runner | None:
        with self._changed:
            self._sweep()
            runner = self._runners.get(job.model.digest)
            if runner is None or not runner.accepts(job.load):
                return None
            runner.use(job.keep_alive)
            return runner

    def _load(self, job: Job) -> Runner:
        asked = placement.asked(job.model, job.load, self.config.parallel)
        self._make_way(job.model, asked.size_vram)
        log.info("sched.go:1", "starting llama-server", cmd=_command(job.name, job.load, self.config.parallel))
        placed, claim = self._place(job, asked)
        process = self.config.physics.fault.process()
        time.sleep(self.config.physics.load_s)
        log.plain(f"load_tensors: offloaded {placed.layers}/{placed.total} layers to GPU")
        log.info("sched.go:1", f"llama-server started in {self.config.physics.load_s:.2f} seconds")
        runner = Runner(
            model=job.model,
            name=job.name,
            load=job.load,
            placement=placed,
            claim=claim,
            slots=Fifo(self.config.parallel),
            process=process,
            keep_alive=self.config.keep_alive,
        )
        runner.use(job.keep_alive)
        with self._changed:
            self._runners[job.model.digest] = runner
        return runner

    def _place(self, job: Job, asked: Placement) -> tuple[Placement, Claim]:
        with self._device.allocation() as free:
            placed = asked.within(free)
            if placed.spilled and job.load.num_gpu >= 0:
                message = _OUT_OF_MEMORY.format(asked.size_vram)
                log.info("sched.go:1", "Load failed", model=job.name, error=message)
                raise RunnerError(message)
            placed = self.config.physics.fault.place(placed)
            return placed, self._device.claim(Demand.of(job.load), placed.size_vram)

    def _make_way(self, model: Model, memory: int) -> None:
        with self._changed:
            if runner := self._runners.get(model.digest):
                self._retire(runner)
            while self._runners and self._device.free() < memory:
                self._retire(min(self._runners.values(), key=lambda other: (other.users > 0, other.expires)))

    def _retire(self, runner: Runner) -> None:
        runner.retiring = True
        self._changed.wait_for(lambda: not runner.users)
        self._sweep()

    def _expire(self) -> None:
        with self._changed:
            while True:
                self._sweep()
                idle = (runner.expires for runner in self._runners.values() if not runner.users)
                self._changed.wait(min(min(idle, default=math.inf) - time.time(), threading.TIMEOUT_MAX))

    def _sweep(self) -> None:
        for digest, runner in list(self._runners.items()):
            if runner.over():
                del self._runners[digest]
                runner.process.end()
                runner.claim.release()


def prompt_tokens(job: Job) -> int:
    """The prompt's length: about four characters a token and ten tokens of template, at most a full context."""
    return min(10 + len(job.prompt) // 4, job.load.num_ctx)


def _command(name: str, load: LoadOptions, slots: int) -> str:
    layers = "" if load.num_gpu < 0 else f" -ngl {load.num_gpu}"
    threads = f" -t {load.num_thread}" if load.num_thread else ""
    return f"llama-server --model {name} -c {load.num_ctx * slots} -np {slots} -b {load.num_batch}{layers}{threads}"
