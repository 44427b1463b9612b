"""What a rebaseline recorded for a test: old -> new per metric."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.metrics import HEADLINES, METRICS, summaries
from pytest_llmperf.model import Baseline
from pytest_llmperf.report.words import number, quantity, shift
from pytest_llmperf.triggers import fired


def lines(head: str, gated: Sequence[str], old: Baseline | None, new: Baseline) -> list[str]:
    """What was written where (`head`), old -> new of what it was measured under, of the gated and the usual metrics."""
    before, after = _summary(old) if old else {}, _summary(new)
    shown = [name for name in dict.fromkeys((*gated, *HEADLINES)) if name in after]
    changed = fired(old.conditions, new.conditions) if old else ()
    under = [f"  under other conditions: {str(each).removesuffix(f' ({each.whose})')}" for each in changed]
    return [f"{head}, {_sessions(new)}", *under, *(_line(name, before.get(name), after[name]) for name in shown)]


def _summary(record: Baseline) -> dict[str, float]:
    return summaries(sample for session in record.sessions for sample in session.samples)


def _line(name: str, old: float | None, new: float) -> str:
    start = f"{number(old)} -> " if old is not None else ""
    return f"  {name}: {start}{quantity(name, new)}{_change(name, old, new)}"


def _change(name: str, old: float | None, new: float) -> str:
    metric = METRICS[name]
    if old is None or (metric.scale == "ratio" and not old):
        return ""
    change = new / old - 1 if metric.scale == "ratio" else new - old
    shown = shift(name, -change if metric.better == "higher" else change)
    return f" ({shown})" if shown.endswith(("worse", "better")) else " (as before)"


def _sessions(record: Baseline) -> str:
    kept = [sum(sample.kept for sample in session.samples) for session in record.sessions]
    runs = "/".join(map(str, sorted(set(kept))))
    return f"{len(kept)} session{'s' * (len(kept) != 1)} of {runs} run{'s' * (runs != '1')}"
