"""Read the conditions of a measurement: hardware, operating system, server, models, and what the mark declares."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from pytest_llmperf.model import OptionValue, Spec, Workload

Conditions = dict[str, str | int | float | bool | None]

HARNESS = 1
"""The measurement boundary: where the clocks start and stop. Raised when a change makes old numbers incomparable."""

EMULATED_MACHINE = "emulated-rtx4080"
EMULATOR_PHYSICS = 1
"""Raised by hand when the emulated device behaves differently."""

LOCAL = frozenset({"ollama", "ollama that ran already"})
"""The backends that are on this host."""


def machine_name(*, emulated: bool, servers: Sequence[str] = ()) -> str:
    """The folder of this machine's baselines: processor, cores and system, e.g. `amd-ryzen-9-7945hx-32c-linux`.

    What servers that ran already gave is kept apart; of those on another machine nothing is known but where they are.
    """
    if emulated:
        return EMULATED_MACHINE
    if not all(map(is_local, servers)):
        return f"remote-{text_hash(servers)[:8]}"
    return f"{_own_name()}-attached" if servers else _own_name()


def is_local(url: str) -> bool:
    """Whether a server's URL leads to this machine."""
    return urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}


def _own_name() -> str:
    name = re.sub(r"\((r|tm|c)\)|\b(cpu|processor|with|graphics)\b|@.*", " ", processor().lower())
    words = re.sub(r"[^a-z0-9]+", "-", name).strip("-")[:40].rstrip("-") or platform.machine().lower()
    return f"{words}-{psutil.cpu_count() or 1}c-{platform.system().lower()}"


def processor() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware() -> Conditions:
    """Processor, cores, memory (to the nearest power of two, so that a kernel update changes nothing) and OS."""
    gib = psutil.virtual_memory().total / 2**30
    return {
        "cpu": processor(),
        "cores": psutil.cpu_count() or 1,
        "memory": f"{2.0 ** round(math.log2(gib)):g} GiB",
        "os": f"{platform.system()} {platform.release().split('.')[0]}",
    }


def declared(spec: Spec) -> Conditions:
    """What the mark declares, one field per fact: scenario, topology, and each agent's model, options and work."""
    facts: Conditions = {"scenario": spec.scenario, "topology": spec.topology, "slots": spec.slots}
    facts |= {"agents": len(spec.agents)}
    facts |= {"gpus": _pattern(spec)} if spec.gpus else {}
    return facts | _of_agents([_work(agent) for agent in spec.agents])


def _pattern(spec: Spec) -> str:
    """Which instances share a GPU: `0,1` for two on one each, `0,0` for two on one; which one it is changes nothing."""
    names = [spec.gpus[n % len(spec.gpus)] for n in range(spec.instances)]
    return ",".join(str([*dict.fromkeys(names)].index(name)) for name in names)


def _of_agents(each: Sequence[Conditions]) -> Conditions:
    """One field per agent, or one for all agents where all are alike."""
    if all(facts == each[0] for facts in each):
        return {f"agent.{name}": value for name, value in each[0].items()}
    return {f"agent{n}.{name}": value for n, facts in enumerate(each, start=1) for name, value in facts.items()}


def _work(agent: Workload) -> Conditions:
    options = {f"options.{name}": _plain(value) for name, value in agent.options.items()}
    return {"model": agent.model, **options, "prompts": text_hash(agent.prompts), "tokens": agent.tokens}


def _plain(value: OptionValue) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(list(value))


def content_key(spec: Spec) -> str:
    """A hash of what the mark declares: equal for a test before and after it was renamed."""
    return text_hash(declared(spec))


def text_hash(value: str | Sequence[str] | Mapping[str, Any]) -> str:
    """Twelve hex digits for what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def conditions(  # noqa: PLR0913  # one keyword per source
    spec: Spec,
    *,
    backend: str,
    version: str,
    gpu: str | None,
    models: Sequence[Mapping[str, Any]],
    in_force: Sequence[Mapping[str, str | int]],
) -> Conditions:
    """All conditions of a measurement; of an emulated or a remote one nothing of this host is among them.

    `models` are the servers' own entries (`digest`, `details`) by agent, `in_force` what they loaded it with.
    """
    facts: Conditions = {"harness": HARNESS, "server": f"ollama {version}", "gpu": gpu, "backend": backend}
    facts |= {"physics": EMULATOR_PHYSICS} if backend == "emulator" else {}
    facts |= hardware() if backend in LOCAL else {}
    return facts | declared(spec) | _of_agents([{**_weights(m), **f} for m, f in zip(models, in_force, strict=True)])


def joined(words: Sequence[str]) -> str:
    """What several servers have in common, else what each has."""
    return " + ".join(dict.fromkeys(words))


def _weights(entry: Mapping[str, Any]) -> Conditions:
    details = entry.get("details") or {}
    return {"digest": str(entry.get("digest", ""))[:16], "quantization": details.get("quantization_level")}
