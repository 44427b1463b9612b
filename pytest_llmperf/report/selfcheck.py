"""What a self-check found: how often each gate cried wolf, and how often it noticed two margins."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.outcome import Check, Entry
from pytest_llmperf.report.words import size, table
from pytest_llmperf.stats import clopper_pearson

_HEADERS = ("test", "metric", "cried wolf", "noticed", "slowed by", "sessions differ by", "declared")


def lines(entries: Sequence[Entry]) -> list[str]:
    """A table with a row per test and gated metric, rates with their exact bounds at .05 each; nothing without one."""
    if not entries:
        return []
    rows = [line for entry in entries for line in _rows(entry)]
    declare = [f"{e.test}: declare {found}" for e in entries if (found := ", ".join(_to_declare(e.checks)))]
    return [*table(_HEADERS, rows), *declare]


def _rows(entry: Entry) -> list[list[str]]:
    """The test's name stands on the first row; the last is that of the whole test."""
    rows = [["", *_cells(check)] for check in entry.checks]
    rows[0][0] = entry.test
    return rows


def _cells(check: Check) -> list[str]:
    return [
        check.metric or "any of them",
        _rate(check.alarms, check.trials),
        "-" if check.noticed is None else _rate(check.noticed, check.trials),
        "-" if check.slowed is None else f"{100 * check.slowed:.1f} %",
        "-" if check.session_sd is None else size(check.metric, check.session_sd),
        "-" if check.declared is None else size(check.metric, check.declared),
    ]


def _rate(events: int, trials: int) -> str:
    low, high = clopper_pearson(events, trials)
    return f"{events} of {trials} ({100 * low:.0f} .. {100 * high:.0f} %)"


def _to_declare(checks: Sequence[Check]) -> list[str]:
    """`session_sd={...}` where sessions differ more than the mark declares."""
    found = {check.metric: float(f"{check.session_sd:.2g}") for check in checks if check.session_sd is not None}
    more = {
        check.metric: found[check.metric]
        for check in checks
        if check.declared is not None and found.get(check.metric, 0.0) > check.declared
    }
    return [f"session_sd={more}"] if more else []
