"""Which differences in conditions void a baseline, and whose difference each is. Standard library only.

The studies' re-validation checklist (Extended Appendices S.4) in its plainest form: any difference voids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Value = str | int | float | bool | None
Conditions = Mapping[str, Value]

_RUNNER = frozenset({"cpu", "cores", "memory", "os", "gpu", "server", "backend"})
_TOOL = frozenset({"harness", "physics"})
_PLACED = frozenset({"context", "layers", "batch", "threads"})
_NUMBERED = re.compile(r"agent\d+\.")


@dataclass(frozen=True)
class Trigger:
    """One field that differs from the baseline's conditions, and who has to answer for it."""

    field: str
    old: Value
    new: Value
    whose: str

    def __str__(self) -> str:
        """`num_thread: 1 -> 2 (this change declares another workload)`."""
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)} ({self.whose})"


def fired(old: Conditions, new: Conditions) -> tuple[Trigger, ...]:
    """Every field that differs, in the order of the names; a field that is absent counts as None.

    Where the agents of one side are alike and those of the other are not, each agent is compared on its own.
    """
    if any(_NUMBERED.match(name) for name in (*old, *new)):
        old, new = _per_agent(old), _per_agent(new)
    names = sorted(old.keys() | new.keys())
    return tuple(
        Trigger(name, old.get(name), new.get(name), _whose(name, old, new))
        for name in names
        if old.get(name) != new.get(name) and not _untold(name, old, new)
    )


def _untold(name: str, old: Conditions, new: Conditions) -> bool:
    """Whether one side says nothing of how the server placed a model: that is unknown, not different."""
    return name.rpartition(".")[2] in _PLACED and None in (old.get(name), new.get(name))


def _per_agent(conditions: Conditions) -> Conditions:
    agents = conditions.get("agents")
    numbers = range(1, 1 + (agents if isinstance(agents, int) else 1))
    alike = {name.removeprefix("agent."): value for name, value in conditions.items() if name.startswith("agent.")}
    rest = {name: value for name, value in conditions.items() if not name.startswith("agent.")}
    return {f"agent{n}.{name}": value for n in numbers for name, value in alike.items()} | rest


def _whose(name: str, old: Conditions, new: Conditions) -> str:
    agent, _, fact = name.rpartition(".")
    if name in _RUNNER:
        return "the runner changed, not this change"
    if name in _TOOL:
        return "pytest-llmperf measures differently now, not this change"
    # a model of another name has another digest: that is declared, nobody exchanged what is in the store
    if fact in {"digest", "quantization"} and old.get(f"{agent}.model") == new.get(f"{agent}.model"):
        return "the model in the store changed, not this change"
    if fact in _PLACED and _declared(agent, old) == _declared(agent, new):
        return "the server placed the model otherwise, not this change"
    return "this change declares another workload"


def _declared(agent: str, conditions: Conditions) -> Conditions:
    return {
        name: conditions.get(name) for name in conditions if name.startswith((f"{agent}.options.", f"{agent}.model"))
    }


def _shown(value: Value) -> str:
    return "not set" if value is None else str(value)
