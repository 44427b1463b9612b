"""The text of a failed test: everything that was judged, why, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.measured import Measured
from pytest_llmperf.model import FAILING, Row, Spec, Verdict, worst
from pytest_llmperf.report.words import HEADERS, cells, interval, number, table, worst_first
from pytest_llmperf.stats import clopper_pearson

_AT = HEADERS.index("margin")
_NEXT = {
    "regressed": "to accept these numbers",
    "not comparable": "to record a baseline under today's conditions",
    "no baseline": "to record one",
}


def judged(rows: Sequence[Row], measured: Measured, spec: Spec, *, command: str, notes: Sequence[str]) -> str:
    """The failure text of a measured test."""
    verdict = worst([row.verdict for row in rows])
    return "\n".join(
        [
            f"llmperf: {verdict}: {measured.test}",
            f"  {conditions(measured, spec)}",
            f"  {spread(measured)}",
            "",
            *(f"  {line}" for line in _table(rows)),
            "",
            *(f"  {line}" for line in reasons(rows)),
            *(f"  {note}" for note in notes),
            *_next_steps(rows, command),
        ]
    )


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [(*cells(row)[:_AT], interval(row), *cells(row)[_AT:]) for row in worst_first(rows)]
    return table(lines, (*HEADERS[:_AT], "90 % interval", *HEADERS[_AT:]))


def broken(verdict: Verdict, test: str, message: str, *, command: str | None) -> str:
    """The failure text of a test that could not be judged at all."""
    step = [f"  {_NEXT[verdict]}: {command}"] if command and verdict in _NEXT else []
    return "\n".join([f"llmperf: {verdict}: {test}", *(f"  {line}" for line in message.splitlines()), *step])


def conditions(measured: Measured, spec: Spec) -> str:
    """Where and what in one line: machine, scenario, agents, topology."""
    label = f"{measured.machine} (emulated)" if measured.emulated else measured.machine
    agents = "1 agent" if len(spec.agents) == 1 else f"{len(spec.agents)} agents on {spec.topology} instances"
    return f"{label}, {spec.scenario}, {agents}"


def spread(measured: Measured) -> str:
    """How much the runs vary, and how many were contended, with the exact bounds of that share at .05 each."""
    said = f"total_throughput varies by {number(measured['cv'])} % between runs"
    flags = measured.series("contention_rate")
    if not flags:
        return said
    contended = sum(map(bool, flags))
    low, high = clopper_pearson(contended, len(flags))
    return f"{said}; contended: {contended} of {len(flags)} runs ({100 * low:.0f} .. {100 * high:.0f} %)"


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why each row is what it is, a sentence each; rows with the same reason share one."""
    shared: dict[tuple[str, str], list[str]] = {}
    for row in worst_first(rows):
        if row.reason:
            shared.setdefault((row.verdict, row.reason), []).append(row.metric)
    return [f"{verdict} ({', '.join(names)}): {reason}" for (verdict, reason), names in shared.items()]


def _next_steps(rows: Sequence[Row], command: str) -> list[str]:
    verdicts = {row.verdict for row in rows if row.verdict in FAILING and not row.floor}
    return [f"  {_NEXT[verdict]}: {command}" for verdict in sorted(verdicts) if verdict in _NEXT]
