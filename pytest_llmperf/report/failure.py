"""The text of a failed test: everything that was judged, why, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.measured import Measured
from pytest_llmperf.model import FAILING, Row, Spec, Verdict, worst
from pytest_llmperf.report.words import COLUMNS, cells, number, table, worst_first
from pytest_llmperf.stats import clopper_pearson

_NEXT = {
    "regressed": "to accept these numbers",
    "not comparable": "to record a baseline under today's conditions",
    "no baseline": "to record one",
}


def judged(  # noqa: PLR0913  # one keyword per part of the text
    rows: Sequence[Row], measured: Measured, spec: Spec, *, command: str, notes: Sequence[str], evidence: str = ""
) -> str:
    """The failure text of a measured test; `evidence` is the folder that keeps its server logs and runs."""
    lines = [
        conditions(measured, spec),
        spread(measured),
        "",
        *table([*COLUMNS], [cells(row, [*COLUMNS]) for row in worst_first(rows)]),
        "",
        *reasons(rows),
        *notes,
        *_next_steps(rows, command),
        *([f"server logs and runs: {evidence}"] if evidence else []),
    ]
    return _text(worst([row.verdict for row in rows]), measured.test, lines)


def broken(verdict: Verdict, test: str, message: str, *, command: str) -> str:
    """The failure text of a test that could not be judged at all."""
    steps = [f"{_NEXT[verdict]}: {command}"] if verdict in _NEXT else []
    return _text(verdict, test, [*message.splitlines(), *steps])


def conditions(measured: Measured, spec: Spec) -> str:
    """Where and what in one line: machine, scenario, agents, topology."""
    label = f"{measured.machine} (emulated)" if measured.emulated else measured.machine
    agents = "1 agent" if len(spec.agents) == 1 else f"{len(spec.agents)} agents on {spec.topology} instances"
    return f"{label}, {spec.scenario}, {agents}"


def spread(measured: Measured) -> str:
    """How much the runs vary, and how many were contended, with the exact bounds of that share at .05 each."""
    found = measured.summary()
    said = [f"total_throughput varies by {number(found['cv'])} % between runs"] if "cv" in found else []
    if flags := measured.series("contention_rate"):
        contended = sum(map(bool, flags))
        low, high = clopper_pearson(contended, len(flags))
        said.append(f"contended: {contended} of {len(flags)} runs ({100 * low:.0f} .. {100 * high:.0f} %)")
    return "; ".join(said) or "a single run: its spread is unknown"


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why each row is what it is; rows with the same reason share one, several reasons of a row have a line each."""
    shared: dict[tuple[str, str], list[str]] = {}
    for row in worst_first(rows):
        if row.reason:
            shared.setdefault((row.verdict, row.reason), []).append(row.metric)
    return [line for (verdict, reason), names in shared.items() for line in _because(verdict, names, reason)]


def _because(verdict: str, names: Sequence[str], reason: str) -> list[str]:
    head, each = f"{verdict} ({', '.join(names)}):", reason.splitlines()
    return [f"{head} {reason}"] if len(each) == 1 else [head, *(f"  {line}" for line in each)]


def _next_steps(rows: Sequence[Row], command: str) -> list[str]:
    verdicts = {row.verdict for row in rows if row.verdict in FAILING and not row.floor}
    return [f"{_NEXT[verdict]}: {command}" for verdict in sorted(verdicts) if verdict in _NEXT]


def _text(verdict: Verdict, test: str, lines: Sequence[str]) -> str:
    return "\n".join([f"llmperf: {verdict}: {test}", *(f"  {line}".rstrip() for line in lines)])
