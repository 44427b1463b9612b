"""What chance decides about a request, keyed so that the same request always draws the same."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pytest_llmperf.emulator.config import Config
from pytest_llmperf.emulator.faults import Plan
from pytest_llmperf.emulator.models import Model
from pytest_llmperf.emulator.options import LoadOptions

_VOCABULARY = """
    the a one agent model token answer question server request stream device memory kernel layer context
    reads writes waits shares starts ends holds sends takes gives quickly slowly often again first last
    and or but with without before after under over between small large new old same other
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request for text. `budget` is `num_predict` (0 or less: the model decides), `seed` the request's own.

    `keep_alive` is in seconds, None where the request names none. With `thinks` half of the answer is thinking.
    """

    model: Model
    name: str
    prompt: str
    load: LoadOptions
    keep_alive: float | None
    budget: int
    seed: int
    thinks: bool


@dataclass(frozen=True)
class Speed:
    """A request's pace alone on the device: decode rate in tok/s and seconds until the first token, in wall time."""

    rate: float
    prefill: float


def speed(job: Job, config: Config) -> Speed:
    """The model's solo rate and the prefill time, with the noise of this request and of its session."""
    physics = config.physics
    request = _random("noise", physics.seed, config.instance, job.prompt)
    session = _random("session", physics.seed, config.session)
    offset = physics.session_noise * session.gauss(0, 1)
    decode, prefill = (math.exp(offset + physics.noise * request.gauss(0, 1)) for _ in range(2))
    pace = physics.speed / physics.slowdown
    return Speed(job.model.rate * decode * pace, physics.ttft_ms / 1000 / (prefill * pace))


def plan(job: Job, config: Config) -> Plan:
    """How many tokens the request gets: its budget (at most 10 contexts, as in Ollama), else about 120."""
    if job.budget > 0:
        ideal = Plan(min(job.budget, 10 * job.load.num_ctx), "length")
    else:
        ideal = Plan(max(1, round(_text(job, config).gauss(120, 20))), "stop")
    return config.physics.fault.bend(replace(ideal, thoughts=ideal.tokens // 2) if job.thinks else ideal)


def words(job: Job, config: Config, count: int) -> Iterator[str]:
    """The text, one token at a time."""
    source, vocabulary = _text(job, config), _VOCABULARY.split()
    for index in range(count):
        yield (" " if index else "") + source.choice(vocabulary)


def _text(job: Job, config: Config) -> random.Random:
    return _random("text", config.physics.seed, job.seed, job.prompt)


def _random(*key: object) -> random.Random:
    return random.Random("|".join(map(str, key)))  # noqa: S311
