"""Which differences in conditions void a baseline, and whose difference each is. Standard library only.

The studies' re-validation checklist (Extended Appendices S.4) in its plainest form: any difference voids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = str | int | float | bool | None

_MACHINE = frozenset({"cpu", "cores", "memory", "os", "gpu", "server", "backend", "physics"})


@dataclass(frozen=True)
class Trigger:
    """One field that differs from the baseline's conditions."""

    field: str
    old: Value
    new: Value

    @property
    def whose(self) -> str:
        """Who has to answer for the difference: the machine, the model store, the tool, or the change under test."""
        if self.field in _MACHINE:
            return "the runner changed, not this change"
        if self.field.endswith((".digest", ".quantization")):
            return "the model in the store changed, not this change"
        if self.field == "harness":
            return "pytest-llmperf measures differently now, not this change"
        return "this change declares another workload"

    def __str__(self) -> str:
        """`num_thread: 1 -> 2` with its sentence."""
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)} ({self.whose})"


def _shown(value: Value) -> str:
    return "not set" if value is None else str(value)


def fired(old: Mapping[str, Value], new: Mapping[str, Value]) -> tuple[Trigger, ...]:
    """Every field that differs, in the order of the names; a field that is absent counts as None."""
    names = sorted(old.keys() | new.keys())
    return tuple(Trigger(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))
