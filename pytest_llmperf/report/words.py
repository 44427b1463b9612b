"""Numbers as people read them: with the metric's unit, its own sign, and the word worse or better."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import WORST_FIRST
from pytest_llmperf.outcome import Row


def table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a plain table."""
    text = tabulate(lines, headers=headers, tablefmt="simple", disable_numparse=True)
    return [line.rstrip() for line in text.splitlines()]


def cells(row: Row, columns: Sequence[str]) -> list[list[str]]:
    """The lines of one judged row under these columns, names of `COLUMNS`: a second session has its own."""
    lines = [[COLUMNS[column](row) for column in columns]]
    if row.again:
        lines.append([COLUMNS[column](replace(row.again, metric=row.metric)) for column in columns])
        lines[1][0] = "second session"
    return lines


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """The rows with the worst verdicts first, otherwise in the order they were judged."""
    return sorted(rows, key=lambda row: WORST_FIRST.index(row.verdict))


def number(value: float) -> str:
    """Four significant digits, four decimals at most, never an exponent."""
    return f"{value:.0f}" if abs(value) >= 1e3 else f"{round(value, 4):z.4g}"


def quantity(metric: str, value: float | None) -> str:
    """A value with its unit: `87.3 tok/s`; a dash where there is none."""
    return "-" if value is None else f"{number(value)} {METRICS[metric].unit}".strip()


def shift(metric: str, worsening: float) -> str:
    """A worsening, as in `Row.change`, with the metric's own sign: `-23.1 % worse`."""
    shown = _signed(metric, worsening)
    word = "" if not float(shown) else "worse" if worsening > 0 else "better"
    return f"{shown}{_unit_of_change(metric)} {word}".strip()


def size(metric: str, amount: float) -> str:
    """An amount of change without a direction, three digits: `5 %`, `1 point`."""
    digits = f"{100 * amount if METRICS[metric].scale == 'ratio' else amount:.3g}"
    shown = f"{float(digits):g}{_unit_of_change(metric)}"
    return "1 point" if shown == "1 points" else shown


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return str(path)


def _signed(metric: str, worsening: float) -> str:
    own = -worsening if METRICS[metric].better == "higher" else worsening
    return f"{100 * own:+z.1f}" if METRICS[metric].scale == "ratio" else f"{own:+z.2f}"


def _unit_of_change(metric: str) -> str:
    entry = METRICS[metric]
    if entry.scale == "ratio":
        return " %"
    return " points" if entry.unit == "%" else f" {entry.unit}"


def _baseline(row: Row) -> str:
    if row.against != "floor":
        return quantity(row.metric, row.baseline) + " (control)" * (row.against == "control")
    word = "at least" if METRICS[row.metric].better == "higher" else "at most"
    return f"{word} {quantity(row.metric, row.margin)}"


def _change(row: Row) -> str:
    return "-" if row.change is None else shift(row.metric, row.change)


def _interval(row: Row) -> str:
    """From one bound to the other, with the metric's own sign: one-sided at .05 each, so 90 % lie between them."""
    if row.low is None or row.high is None:
        return "-"
    if math.isinf(row.low) or math.isinf(row.high):  # too few runs for a bound
        return "can't tell"
    if row.against == "floor":
        return f"{number(row.low)} .. {quantity(row.metric, row.high)}"
    ends = (row.low, row.high) if METRICS[row.metric].better == "lower" else (row.high, row.low)
    return " .. ".join(_signed(row.metric, end) for end in ends) + _unit_of_change(row.metric)


def _margin(row: Row) -> str:
    if row.margin is None or row.against == "floor":
        return row.policy or "-"
    return f"{'by ' * (row.claim)}{size(row.metric, row.margin)}"


def _catches(row: Row) -> str:
    """About the smallest worsening that 4 of 5 such measurements would call regressed, and what would lower it."""
    if row.catches80 is None:
        return "-"
    floor = row.against == "floor"
    return f"{(quantity if floor else size)(row.metric, row.catches80)} ({row.sharper})"


def _runs(row: Row) -> str:
    return f"{row.baseline_runs} v {row.runs}" if row.baseline_runs else str(row.runs)


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "metric": lambda row: row.metric,
    "baseline": _baseline,
    "now": lambda row: quantity(row.metric, row.value),
    "change": _change,
    "90 % interval": _interval,
    "margin": _margin,
    "catches 4 in 5": _catches,
    "runs": _runs,
    "verdict": lambda row: row.verdict,
}
