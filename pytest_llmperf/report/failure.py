"""The text of a failed test: everything that was judged, why, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.accuracy import Accuracy, Spread
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import FAILING, Spec, Verdict
from pytest_llmperf.outcome import Row, verdict_of
from pytest_llmperf.report.words import COLUMNS, cells, number, table, worst_first
from pytest_llmperf.stats import clopper_pearson
from pytest_llmperf.triggers import fired

_NEXT = {
    "regressed": "to accept these numbers",
    "inconclusive": "to accept these numbers",
    "not comparable": "to record a baseline under today's conditions",
    "no baseline": "to record one",
}


def judged(  # noqa: PLR0913  # one keyword per part of the text
    test: str, rows: Sequence[Row], *, head: Sequence[str], notes: Sequence[str], command: str, evidence: str = ""
) -> str:
    """The failure text of a measured test; `evidence` is the folder that keeps its server logs and runs."""
    lines = [
        *head,
        "",
        *table([*COLUMNS], [line for row in worst_first(rows) for line in cells(row, [*COLUMNS])]),
        "",
        *reasons(rows),
        *notes,
        *_next_steps(rows, command),
        *_kept(evidence),
    ]
    return _text(verdict_of(rows) or "invalid", test, lines)


def broken(verdict: Verdict, test: str, message: str, *, command: str, evidence: str = "") -> str:
    """The failure text of a test that could not be judged at all."""
    steps = [f"{_NEXT[verdict]}: {command}"] if verdict in _NEXT else []
    return _text(verdict, test, [*message.splitlines(), *steps, *_kept(evidence)])


def _kept(evidence: str) -> list[str]:
    return [f"server logs and runs: {evidence}"] if evidence else []


def measured(found: Measured, spec: Spec) -> list[str]:
    """Where and what, and how much it varies: machine, scenario, agents, topology; spread and contention.

    Then how exact its times are.
    """
    agents = "1 agent" if len(spec.agents) == 1 else f"{len(spec.agents)} agents on {spec.topology} instances"
    said = [f"{_machine(found)}, {spec.scenario}, {agents}", spread(found)]
    return said + ([exactness(found.accuracy)] if found.accuracy else [])


def compared(control: Measured, treatment: Measured) -> list[str]:
    """Where, and what the treatment does otherwise than the control."""
    runs = len(control.series("ttft"))
    triggers = fired(control.conditions, treatment.conditions)
    differs = [str(trigger).removesuffix(f" ({trigger.whose})") for trigger in triggers]
    return [
        f"{_machine(control)}, control and treatment in turns, {runs} runs each",
        f"control -> treatment: {', '.join(differs) or 'no difference'}",
    ]


def _machine(found: Measured) -> str:
    return f"{found.machine} (emulated)" if found.emulated else found.machine


def exactness(found: Accuracy) -> str:
    """How exact the times are, in one line."""
    late = f"stamped by the kernel, read {_us(found.late)} later" if found.late else "stamped when read"
    behind = f"; {_us(found.behind)} behind the server's own stamps" if found.behind else ""
    merged = f"; {100 * found.merged:.1f} % of the chunks merged" if found.merged else ""
    return f"arrivals {late}{behind}{merged}; agents began within {1e3 * found.skew:.2f} ms"


def _us(found: Spread) -> str:
    return f"{1e6 * found.median:.0f} us (p99 {1e6 * found.p99:.0f})"


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
    failing = FAILING if any(row.verdict in FAILING for row in rows) else {"inconclusive"}
    verdicts = {row.verdict for row in rows if row.verdict in failing and row.against == "baseline"}
    return [f"{_NEXT[verdict]}: {command}" for verdict in sorted(verdicts) if verdict in _NEXT]


def _text(verdict: Verdict, test: str, lines: Sequence[str]) -> str:
    return "\n".join([f"llmperf: {verdict}: {test}", *(f"  {line}".rstrip() for line in lines)])
