"""What a rebaseline did: one file per passed test, old -> new per metric, and which tests were not recorded and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llmperf import baseline
from pytest_llmperf.metrics import HEADLINES, METRICS, summaries
from pytest_llmperf.model import Baseline, Entry, LlmperfError
from pytest_llmperf.report.words import number, quantity
from pytest_llmperf.settings import Settings


def write(entries: Sequence[Entry], settings: Settings) -> tuple[list[str], bool]:
    """Write the baseline of every test that passed; the lines to print, and whether every file could be written."""
    lines, complete = list[str](), True
    for entry in entries:
        if entry.record is None or not entry.passed:
            lines.append(f"not recorded: {entry.test}: it failed ({entry.verdict or 'another assertion'})")
            continue
        try:
            lines += _write(entry.record, Path(entry.path), settings.invoked_from)
        except LlmperfError as error:
            lines.append(f"not recorded: {entry.test}: {error}")
            complete = False
    return lines, complete


def _write(record: Baseline, path: Path, invoked_from: Path) -> list[str]:
    try:
        old = baseline.load(path)
        was = "changed" if old else "new"
    except LlmperfError:
        old, was = None, "replaced what could not be read"
    changed = baseline.replace(path, baseline.text(record))
    head = f"{_relative(path, invoked_from)}: {was if changed else 'unchanged'}, {_sessions(record)}"
    before = _medians(old) if old else {}
    return [head, *_changes(before, _medians(record))]


def _medians(record: Baseline) -> dict[str, float]:
    return summaries([sample for session in record.sessions for sample in session.samples])


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    lines = []
    for name in (name for name in HEADLINES if name in after):
        old, new = before.get(name), after[name]
        start = f"{number(old)} -> " if old is not None else ""
        lines.append(f"  {name}: {start}{quantity(name, new)}{_verdict(name, old, new)}")
    return lines


def _verdict(name: str, old: float | None, new: float) -> str:
    if not old:
        return ""
    percent = 100 * (new / old - 1)
    better = (percent > 0) == (METRICS[name].better == "higher")
    return f" ({percent:+.1f} % {'better' if better else 'worse'})" if abs(percent) >= 0.05 else " (as before)"


def _sessions(record: Baseline) -> str:
    kept = [sum(sample.kept for sample in session.samples) for session in record.sessions]
    return f"{len(kept)} session{'s' * (len(kept) != 1)} of {'/'.join(map(str, sorted(set(kept))))} runs"


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return str(path)
