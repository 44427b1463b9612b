"""What a rebaseline recorded for a test: old -> new per metric."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmperf.metrics import HEADLINES, METRICS, summaries
from pytest_llmperf.model import Baseline
from pytest_llmperf.report.words import number, quantity, shift


def lines(head: str, old: Baseline | None, new: Baseline) -> list[str]:
    """What was written where (`head`), then old -> new of the metrics a reviewer reads first."""
    return [f"{head}, {_sessions(new)}", *_changes(_summary(old) if old else {}, _summary(new))]


def _summary(record: Baseline) -> dict[str, float]:
    return summaries(sample for session in record.sessions for sample in session.samples)


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    lines = []
    for name in (name for name in HEADLINES if name in after):
        old, new = before.get(name), after[name]
        start = f"{number(old)} -> " if old is not None else ""
        lines.append(f"  {name}: {start}{quantity(name, new)}{_change(name, old, new)}")
    return lines


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
