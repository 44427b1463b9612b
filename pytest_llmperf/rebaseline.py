"""Write the baselines that a run recorded: once, at its end, by the one process that may."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf import baseline
from pytest_llmperf.model import FAILING, Baseline, LlmperfError
from pytest_llmperf.outcome import Entry
from pytest_llmperf.report import recorded
from pytest_llmperf.report.words import relative


def write(entries: Sequence[Entry], invoked_from: Path) -> tuple[list[str], bool]:
    """Write the baseline of every test that passed; the lines to print, and whether every file could be written."""
    lines, complete = list[str](), True
    for entry in entries:
        if entry.record is None or not entry.passed:
            why = f"it failed ({entry.verdict})" if entry.verdict in FAILING else "it did not pass"
            lines.append(f"not recorded: {entry.test}: {why}")
            continue
        try:
            lines += _write(entry.record, entry.gated, Path(entry.path), invoked_from)
        except LlmperfError as error:
            lines.append(f"not recorded: {entry.test}: {error}")
            complete = False
    return lines, complete


def _write(record: Baseline, gated: Sequence[str], path: Path, invoked_from: Path) -> list[str]:
    try:
        old = baseline.load(path)
        was = "changed" if old else "new"
    except LlmperfError:
        old, was = None, "replaced what could not be read"
    changed = baseline.replace(path, baseline.text(record))
    return recorded.lines(f"{relative(path, invoked_from)}: {was if changed else 'unchanged'}", gated, old, record)
