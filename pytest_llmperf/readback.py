"""What a server says is in force for a loaded model, held against what was declared. Standard library only.

The log is the first witness: what /api/ps calls `context_length` is, up to Ollama 0.15.4, what was asked for
(https://github.com/ollama/ollama/commit/d11fbd2c6). There it is the context of one slot in every version, while the
log's `--ctx-size`, `-c` and `KvSize` are that of all slots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.model import Workload

_COMMAND = re.compile(r'msg="starting (?:llama[ -]server|runner)" cmd=(.*)')
_FLAGS = {
    "context": re.compile(r" (?:--ctx-size|-c) (\d+)"),
    "slots": re.compile(r" (?:--parallel|-np) (\d+)"),
    "batch": re.compile(r" (?:--batch-size|-b) (\d+)"),
    "threads": re.compile(r" (?:--threads|-t) (\d+)"),
}
_REQUEST = re.compile(r'msg=load request="\{Operation:commit(.*)')
_FIELDS = {
    "context": re.compile(r" KvSize:(\d+)"),
    "slots": re.compile(r" Parallel:(\d+)"),
    "batch": re.compile(r" BatchSize:(\d+)"),
    "threads": re.compile(r" NumThreads:([1-9]\d*)"),
}
_CONTEXT = re.compile(r"llama_new_context_with_model: n_ctx += (\d+)")
_OFFLOADED = re.compile(r"offloaded +(\d+)/(\d+) layers to GPU")


@dataclass(frozen=True, kw_only=True)
class InForce:
    """A loaded model as its server reports it; None is what it does not report.

    `context` is the tokens of one slot, `slots` how many requests are worked on at once, `layers` how many are on the
    GPU, the output layer included. `size` is bytes, of which `size_vram` are on the GPU.
    """

    context: int | None = None
    slots: int | None = None
    layers: int | None = None
    layers_total: int | None = None
    batch: int | None = None
    threads: int | None = None
    size: int | None = None
    size_vram: int | None = None
    digest: str | None = None

    @property
    def on_processor(self) -> bool:
        """Whether any layer is computed by the processor, as far as the server tells."""
        if self.size is not None and self.size_vram is not None:
            return self.size_vram < self.size
        return self.layers is None or self.layers < (self.layers_total or 0)


def read(entry: Mapping[str, Any] | None, log: str) -> InForce:
    """What is in force, from the model's entry of /api/ps and what the server logged while it loaded the model.

    `entry` is None for a server without /api/ps; `log` may be empty, for a model that was loaded already.
    """
    shown = entry or {}
    logged = _command(log) or _request(log) or _context(log)
    layers, total = _offloaded(log)
    return InForce(
        context=logged.get("context") or shown.get("context_length") or None,
        slots=logged.get("slots"),
        # a build without GPU support logs no layers
        layers=0 if layers is None and shown.get("size_vram") == 0 else layers,
        layers_total=total,
        batch=logged.get("batch"),
        threads=logged.get("threads"),
        size=shown.get("size"),
        size_vram=shown.get("size_vram"),
        digest=shown.get("digest"),
    )


def _command(log: str) -> dict[str, int]:
    """The flags of the last runner; those of 0.11.5 to 0.24 have none, nor have the ones that only look for GPUs."""
    return _last([_numbers(_FLAGS, line) for line in _COMMAND.findall(log)])


def _request(log: str) -> dict[str, int]:
    """What 0.11.5 to 0.24 sent to their runner; a load tries several layouts and commits one."""
    return _last([_numbers(_FIELDS, line) for line in _REQUEST.findall(log)])


def _context(log: str) -> dict[str, int]:
    """What llama.cpp says of itself: all there is before 0.1.32, when there was one slot."""
    return _last([{"context": int(tokens)} for tokens in _CONTEXT.findall(log)])


def _numbers(patterns: Mapping[str, re.Pattern[str]], line: str) -> dict[str, int]:
    return {name: int(found[1]) for name, pattern in patterns.items() if (found := pattern.search(line))}


def _last(loads: list[dict[str, int]]) -> dict[str, int]:
    known = [numbers for numbers in loads if "context" in numbers]
    if not known:
        return {}
    return known[-1] | {"context": known[-1]["context"] // known[-1].get("slots", 1)}


def _offloaded(log: str) -> tuple[int | None, int | None]:
    """The last line of the model itself: a draft model, loaded after it, has fewer layers."""
    lines = [(int(layers), int(total)) for layers, total in _OFFLOADED.findall(log)]
    return max(reversed(lines), key=lambda line: line[1]) if lines else (None, None)


def differences(agent: Workload, slots: int, found: InForce, digest: str | None = None) -> list[str]:
    """One sentence for each label that is not in force: what was declared, what is, and what to type.

    `digest` is that of the model's name in the store.
    """
    in_force = _in_force(found)
    sentences = [
        _difference(name, value, actual, found)
        for name, value in _declared(agent, slots).items()
        if (actual := in_force[name]) is not None and actual not in (value, _at_most(name, value, found))
    ]
    if digest and found.digest and found.digest != digest:
        sentences.append(
            f"the loaded {agent.model} has digest {found.digest[:12]}, the one in the store {digest[:12]}: "
            "it was pulled or created anew since it was loaded; restart the server"
        )
    return [f"{agent.name}: {sentence}" for sentence in sentences]


def unverified(agent: Workload, slots: int, found: InForce) -> list[str]:
    """The names of what was declared and this server does not report."""
    in_force = _in_force(found)
    return [name for name in _declared(agent, slots) if in_force[name] is None]


def facts(found: InForce) -> dict[str, str | int]:
    """What a measurement was made under, as conditions: a context, a batch, threads, layers like `20/35`."""
    layers = found.layers if found.layers_total is None else f"{found.layers}/{found.layers_total}"
    reported = {"context": found.context, "layers": layers, "batch": found.batch, "threads": found.threads}
    return {name: value for name, value in reported.items() if value is not None}


def _in_force(found: InForce) -> dict[str, int | None]:
    return {
        "slots": found.slots,
        "num_ctx": found.context,
        "num_gpu": found.layers,
        "num_batch": found.batch,
        "num_thread": found.threads,
    }


def _declared(agent: Workload, slots: int) -> dict[str, int]:
    """Zero threads or a negative number of layers leave it to the server: then nothing is declared."""
    least = {"num_ctx": 1, "num_gpu": 0, "num_batch": 1, "num_thread": 1}
    options = {name: value for name in least if isinstance(value := agent.options.get(name), int | float)}
    return {"slots": slots} | {name: int(value) for name, value in options.items() if value >= least[name]}


def _at_most(name: str, declared: int, found: InForce) -> int:
    """What a declared value comes to: more layers than there are is all, no batch is longer than the context.

    Ollama cuts the batch from 0.11.11 (https://github.com/ollama/ollama/commit/e119783e6), llama.cpp always did.
    """
    limits = {"num_gpu": found.layers_total, "num_batch": found.context}
    limit = limits.get(name)
    return declared if limit is None else min(declared, limit)


def _difference(name: str, declared: int, actual: int, found: InForce) -> str:
    if name == "num_gpu":
        return _layers_differ(declared, actual, found.layers_total)
    why = _why(name, declared, actual)
    return f"{name}={declared} was declared, {actual} is in force{why}; declare {name}={actual}"


def _why(name: str, declared: int, actual: int) -> str:
    if name == "slots":
        return f": this server takes {_requests(actual)} at a time for this model"
    if name == "num_ctx" and actual < declared:
        return ": the server lowers it to what the model was trained for"
    if name == "num_ctx" and actual == 2048:
        return ": the server raises it to what a vision model needs at least"
    return ""


def _requests(number: int) -> str:
    return "one request" if number == 1 else f"{number} requests"


def _layers_differ(declared: int, actual: int, total: int | None) -> str:
    every = f", which is all {total} layers" if total and declared >= total else ""
    start = f"num_gpu={declared} was declared{every}; {actual or 'none'} {_be(actual)} on the GPU"
    if not actual:
        return f"{start}: the server sees no GPU it could use; look into its log, or declare num_gpu=0"
    if actual > declared:
        return f"{start}: the server decided otherwise; declare num_gpu={actual}"
    return f"{start}: that is what its free memory held; free some, or declare num_gpu={actual}"


def _be(number: int) -> str:
    return "are" if number > 1 else "is"
