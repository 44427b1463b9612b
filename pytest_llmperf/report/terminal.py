"""The end of a pytest run: one row per test and gated metric, worst first, then a line that counts verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_llmperf.model import WORST_FIRST, Entry, Verdict
from pytest_llmperf.report.words import HEADERS, cells, table, worst_first


def body(entries: Sequence[Entry]) -> list[str]:
    """The table and the remarks under it; nothing where nothing was judged."""
    judged = sorted((e for e in entries if e.verdict), key=lambda e: WORST_FIRST.index(e.verdict or "held"))
    return _machines(judged) + _table(judged) + _remarks(judged) if judged else []


def count(entries: Sequence[Entry], marked: int) -> str:
    """`llmperf: 12 gated: 9 held, 1 improved, 1 regressed, 1 not comparable; 2 marked tests not measured`.

    `marked` is how many marked tests were collected, measured or not.
    """
    found = Counter(entry.verdict for entry in entries if entry.verdict)
    parts = [f"{found[verdict]} {verdict}" for verdict in _REPORTED if found[verdict]]
    said = f"{found.total()} gated: {', '.join(parts)}" if parts else ""
    recorded = sum(1 for entry in entries if entry.record is not None and entry.passed)
    recording = f"{recorded} recorded" if recorded else ""
    idle = marked - len(entries)
    absent = f"{idle} marked test{'s' * (idle != 1)} not measured" if idle > 0 else ""
    return "llmperf: " + "; ".join(part for part in (said, recording, absent) if part)


_REPORTED: tuple[Verdict, ...] = (
    "held",
    "improved",
    "inconclusive",
    "regressed",
    "not comparable",
    "no baseline",
    "invalid",
)


def _machines(entries: Sequence[Entry]) -> list[str]:
    labels = {f"{e.machine} (emulated)" if e.emulated else e.machine for e in entries}
    return [f"measured on {', '.join(sorted(labels))}"]


def _table(entries: Sequence[Entry]) -> list[str]:
    lines = [(_once(entry.test, i), *line) for entry in entries for i, line in enumerate(_lines(entry))]
    return table(lines, ("test", *HEADERS))


def _once(test: str, line: int) -> str:
    return "" if line else test


def _lines(entry: Entry) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [cells(row) for row in worst_first(entry.rows)]
    return rows or [[""] * (len(HEADERS) - 1) + [entry.verdict or ""]]


def _remarks(entries: Sequence[Entry]) -> list[str]:
    said = [f"{entry.test}: {note.splitlines()[0]}" for entry in entries for note in entry.notes]
    better = [e for e in entries if e.verdict == "improved"]
    return said + [f"{e.test} improved; to tighten its baseline: {e.command}" for e in better]
