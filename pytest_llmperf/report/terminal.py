"""The end of a pytest run: one row per test and gated metric, worst first, then a line that counts verdicts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pytest_llmperf.budget import spoken
from pytest_llmperf.model import WORST_FIRST, Verdict
from pytest_llmperf.outcome import Entry, weighing
from pytest_llmperf.report import selfcheck
from pytest_llmperf.report.failure import reasons
from pytest_llmperf.report.words import COLUMNS, cells, table, worst_first

_COLUMNS = [column for column in COLUMNS if column != "90 % interval"]
NOT_OURS = "not restarted between sessions; their environment, slots and other clients are not ours to see"
_COUNTED: tuple[Verdict, ...] = (
    "held",
    "improved",
    "inconclusive",
    "regressed",
    "not comparable",
    "no baseline",
    "invalid",
)


def body(entries: Sequence[Entry]) -> list[str]:
    """The table of what was judged and the remarks under it; nothing where nothing was."""
    sorted_ = sorted((e for e in entries if e.verdict), key=lambda e: WORST_FIRST.index(e.verdict or "held"))
    judged = [entry for entry in sorted_ if entry.rows]
    checked = [entry for entry in entries if entry.checks]
    lines = _machines(judged) + _table(judged) if judged else []
    return lines + selfcheck.lines(checked) + _remarks([*sorted_, *(e for e in entries if not e.verdict)])


def count(entries: Sequence[Entry], marked: int) -> str:
    """`llmperf: 12 gated: 9 held, 1 improved, 1 regressed, 1 not comparable; 2 marked tests not measured`.

    `marked` is how many marked tests were collected, measured or not.
    """
    verdicts = Counter(entry.verdict for entry in entries if entry.verdict)
    gated = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in _COUNTED if verdicts[verdict])
    records = [entry.passed for entry in entries if entry.record]
    checked = sum(bool(entry.checks) for entry in entries)
    unjudged = sum(not (entry.verdict or entry.record or entry.checks) for entry in entries)
    never = sum(row.never for entry in entries for row in entry.rows)
    idle = marked - len(entries)
    parts = [
        f"{verdicts.total()} gated: {gated}" if gated else "",
        f"{sum(records)} recorded" if any(records) else "",
        f"{len(records) - sum(records)} not recorded" if not all(records) else "",
        f"{never} metric{'s' * (never != 1)} can never decide" if never else "",
        f"{checked} checked against {'itself' if checked == 1 else 'themselves'}" if checked else "",
        f"{unjudged} measured, not judged" if unjudged else "",
        f"{idle} marked test{'s' * (idle != 1)} not measured" if idle > 0 else "",
    ]
    return "llmperf: " + "; ".join(part for part in parts if part)


def disturbed(postponed: Mapping[str, str], measured: Collection[str]) -> list[str]:
    """A line for each test that something else disturbed, and by what, by node id; `measured` are those that were."""
    again = {test: "tried again" if test in measured else "not tried again" for test in postponed}
    return [f"{test} was disturbed and {again[test]}: {_first(why)}" for test, why in sorted(postponed.items())]


def forecast(estimates: Sequence[tuple[str, float | None]]) -> list[str]:
    """About how long each marked test takes, then all of them; seconds by node id, None without a baseline."""
    cells = [("no baseline" if seconds is None else f"about {spoken(seconds)}", test) for test, seconds in estimates]
    width = max((len(cell) for cell, _ in cells), default=0)
    return [*(f"{cell:<{width}}  {test}" for cell, test in cells), *_in_all([seconds for _, seconds in estimates])]


def _in_all(estimates: Sequence[float | None]) -> list[str]:
    known = [seconds for seconds in estimates if seconds is not None]
    unknown = len(estimates) - len(known)
    tests = "1 marked test takes" if len(estimates) == 1 else f"{len(estimates)} marked tests take"
    left_out = f" ({unknown} without a baseline not counted)" if unknown else ""
    if known:
        return [f"llmperf: {tests} about {spoken(sum(known))}{left_out}"]
    return [f"llmperf: no telling how long {tests}: nothing is recorded"] if unknown else []


def _machines(entries: Sequence[Entry]) -> list[str]:
    labels = {f"{e.machine} (emulated)" if e.emulated else e.machine for e in entries}
    bent = os.environ.get("LLMPERF_EMULATOR")
    said = [f"LLMPERF_EMULATOR={bent} was in force"] if bent and any(e.emulated for e in entries) else []
    attached = ", ".join(dict.fromkeys(url for entry in entries for url in entry.servers))
    said += [f"{attached} ran already: {NOT_OURS}"] if attached else []
    return [f"measured on {', '.join(sorted(labels))}", *said]


def _table(entries: Sequence[Entry]) -> list[str]:
    return table(["test", *_COLUMNS], [line for entry in entries for line in _lines(entry)])


def _lines(entry: Entry) -> list[list[str]]:
    """The entry's rows, the test's name on the first."""
    first, *others = [line for row in worst_first(entry.rows) for line in cells(row, _COLUMNS)]
    return [[entry.test, *first], *(["", *other] for other in others)]


def _remarks(entries: Sequence[Entry]) -> list[str]:
    said = [f"{entry.verdict}: {entry.test}: {_first(note)}" for entry in entries for note in entry.notes]
    said += [f"{e.test}: {line}" for e in entries if e.passed for line in (*reasons(weighing(e.rows)), *e.remarks)]
    better = [e for e in entries if e.verdict == "improved" and any(row.against == "baseline" for row in e.rows)]
    return said + [f"{e.test} improved; to tighten its baseline: {e.command}" for e in better]


def _first(note: str) -> str:
    return note.splitlines()[0].removesuffix("; the last lines of its log:")
