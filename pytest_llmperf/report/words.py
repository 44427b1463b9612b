"""Numbers as people read them: with the metric's unit, its own sign, and the word worse or better."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.model import WORST_FIRST, Row

HEADERS = ("metric", "baseline", "now", "change", "margin", "runs", "verdict")


def table(rows: Sequence[Sequence[str]], headers: Sequence[str] = HEADERS) -> list[str]:
    """The lines of a plain table."""
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True).splitlines()


def cells(row: Row) -> tuple[str, ...]:
    """One judged row under `HEADERS`."""
    runs = f"{row.baseline_runs} v {row.runs}" if row.baseline_runs else str(row.runs)
    baseline = _limit(row) if row.floor else quantity(row.metric, row.baseline)
    margin = "" if row.floor else _margin(row)
    now = quantity(row.metric, row.value)
    return row.metric, baseline, now, change(row), margin, runs, row.verdict


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """The rows with the worst verdicts first, otherwise in the order they were judged."""
    return sorted(rows, key=lambda row: WORST_FIRST.index(row.verdict))


def quantity(metric: str, value: float | None) -> str:
    """A value with its unit: `87.3 tok/s`; a dash where there is none."""
    return "-" if value is None else f"{number(value)} {METRICS[metric].unit}".strip()


def number(value: float) -> str:
    """Four significant digits, never in exponent form for everyday sizes."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def change(row: Row) -> str:
    """The change with the metric's own sign: `-23.1 % worse`; a dash for floors."""
    if row.change is None:
        return "-"
    shown = _signed(row.metric, row.change)
    word = "" if not float(shown) else "worse" if row.change > 0 else "better"
    return f"{shown}{_change_unit(row.metric)} {word}".strip()


def _signed(metric: str, worsening: float) -> str:
    own = -worsening if METRICS[metric].better == "higher" else worsening
    return f"{100 * own:+.1f}" if METRICS[metric].scale == "ratio" else f"{own:+.2f}"


def _change_unit(metric: str) -> str:
    entry = METRICS[metric]
    if entry.scale == "ratio":
        return " %"
    return " points" if entry.unit == "%" else f" {entry.unit}"


def interval(row: Row) -> str:
    """From one bound to the other, with the metric's own sign: one-sided at .05 each, so 90 % lie between them."""
    if row.low is None or row.high is None:
        return "-"
    if row.floor:
        return f"{number(row.low)} .. {number(row.high)} {METRICS[row.metric].unit}".strip()
    ends = (row.low, row.high) if METRICS[row.metric].better == "lower" else (row.high, row.low)
    return " .. ".join(_signed(row.metric, end) for end in ends) + _change_unit(row.metric)


def _margin(row: Row) -> str:
    if row.margin is None:
        return "-"
    shown = 100 * row.margin if METRICS[row.metric].scale == "ratio" else row.margin
    return f"{shown:g}{_change_unit(row.metric)}"


def _limit(row: Row) -> str:
    word = "at least" if METRICS[row.metric].better == "higher" else "at most"
    return f"{word} {quantity(row.metric, row.margin)}"
