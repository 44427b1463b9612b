"""What has been judged of one test so far, and how it fails: with one text that lists everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from pytest_llmperf import remarks, verdicts
from pytest_llmperf.case import Case, NoBaselineError
from pytest_llmperf.comparison import Comparison
from pytest_llmperf.measured import Measured
from pytest_llmperf.model import FAILING, DisturbedError, LlmperfError, Verdict
from pytest_llmperf.outcome import Check, Entry, Row, verdict_of, weighing
from pytest_llmperf.report import failure


class Docket:
    """What one test measured, the rows it was judged by and the names they were judged under, and what broke it.

    `logs` gives the logs of the servers that were started. `disturbed` says what else used the machine, "" if nothing.
    """

    def __init__(self, case: Case, logs: Callable[[], Sequence[Path]] = tuple) -> None:
        self._case, self._logs = case, logs
        self.measured: Measured | None = None
        self.comparison: Comparison | None = None
        self.checks: Sequence[Check] = ()
        self.rows: list[Row] = []
        self.judged: set[str] = set()
        self.disturbed = ""
        self._notes: list[str] = []
        self._broken: Verdict | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The test's verdict so far, None before there is one."""
        return self._broken or verdict_of(self.rows)

    def note(self, *names: str) -> None:
        """Note what was asked for and needs no judgement now."""
        self.judged |= set(names)

    def add(self, rows: Iterable[Row], *names: str) -> None:
        """Note what was judged, under its names; fails with all of it."""
        self.note(*names)
        self.rows += [row for row in rows if row not in self.rows]
        if sentence := verdicts.disagreement(self.rows):
            self._notes = [sentence]
        self.refuse()

    def refuse(self) -> None:
        """Fail the test if anything that was judged fails one."""
        if not any(_fails(row, self._case.settings.inconclusive) for row in weighing(self.rows)):
            return
        text = failure.judged(
            self._case.test,
            self.rows,
            head=self._head(),
            notes=[*self._notes, *self._remarks(), *_because_of(self.rows, self._case.settings.inconclusive)],
            command=self._case.command("--llmperf-rebaseline"),
            evidence=self._case.shown(self._case.evidence),
        )
        raise pytest.fail.Exception(text, pytrace=False)

    def fail(self, verdict: Verdict, message: str) -> NoReturn:
        """Fail the test without a judgement."""
        self._broken = verdict
        self._notes = [message]
        command = self._case.command("--llmperf-rebaseline")
        kept = self._case.shown(self._case.evidence) if verdict == "invalid" and self._logs() else ""
        text = failure.broken(verdict, self._case.test, message, command=command, evidence=kept)
        raise pytest.fail.Exception(text, pytrace=False) from None

    def fail_again(self) -> None:
        """Fail with what broke the test, if something did: the test may have swallowed it."""
        if self._broken:
            self.fail(self._broken, self._notes[0])

    def settle(self, logs: Sequence[Path]) -> None:
        """Keep the logs and numbers of a test that did not hold; one that held keeps none."""
        if not logs or self.verdict in (None, "held", "improved"):
            self._case.drop_evidence()
        elif self.comparison:
            numbers = {"control": self.comparison.control, "treatment": self.comparison.treatment}
            self._case.keep_evidence(logs, numbers)
        else:
            self._case.keep_evidence(logs, {"measured": self.measured} if self.measured else {})

    def entry(self, *, passed: bool) -> Entry | None:
        """What the controller has to know; None for a test that neither measured nor failed to."""
        if not (self.measured or self.comparison or self._broken):
            return None
        case = self._case
        measured = self.comparison.treatment if self.comparison else self.measured
        started = case.spec.instances if self.measured else len(case.settings.servers)
        return Entry(
            test=case.test,
            verdict=self.verdict,
            machine=case.machine,
            emulated=measured.emulated if measured else case.settings.emulated,
            servers=case.settings.servers[:started],
            rows=tuple(self.rows),
            gated=case.spec.gated,
            notes=tuple(self._notes),
            remarks=tuple(self._remarks()),
            checks=tuple(self.checks),
            record=case.record(self.measured) if case.settings.rebaseline and self.measured else None,
            path=str(case.path),
            command=case.command("--llmperf-rebaseline"),
            passed=passed,
        )

    def _head(self) -> list[str]:
        if self.comparison:
            return failure.compared(self.comparison.control, self.comparison.treatment)
        return failure.measured(self.measured, self._case.spec) if self.measured else []

    def _remarks(self) -> list[str]:
        spec = self._case.spec
        if self.comparison:
            return remarks.on_runs(spec, dict(zip(("control", "treatment"), self.comparison.sides, strict=True)))
        if self.measured is None:
            return []
        sessions = {f"session {number}": session for number, session in enumerate(self.measured.sessions, 1)}
        said = remarks.on_runs(spec, sessions)
        if self.measured.unverified:
            said.append(f"not verified, for its servers do not report it: {', '.join(self.measured.unverified)}")
        if self._case.settings.rebaseline:
            said += remarks.on_baseline(spec, self._case.record(self.measured))
        return said

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Turn what the user can put right into a failure that is all text: no line of ours in a traceback."""
        try:
            yield
        except NoBaselineError as error:
            self.fail("no baseline", str(error))
        except (LlmperfError, pytest.fail.Exception) as error:  # the latter from one of our fixtures
            said = str(error).removeprefix("llmperf: ")
            if any(isinstance(each, DisturbedError) for each in (error, error.__context__)):
                self.disturbed = said
            self.fail("invalid", said)


def _fails(row: Row, policy: str) -> bool:
    """Whether a row fails its test; an inconclusive one by ini llmperf_inconclusive, a claim not shown always."""
    if row.verdict != "inconclusive":
        return row.verdict in FAILING
    if row.claim:
        return True
    return policy == "fail" or (policy == "fail-if-worse" and row.worse_twice)


def _because_of(rows: Sequence[Row], policy: str) -> Iterator[str]:
    """Why an inconclusive test fails, where nothing worse does it."""
    if any(row.verdict in FAILING for row in rows):
        return
    if undecided := [row.metric for row in weighing(rows) if not row.claim and _fails(row, policy)]:
        why = " (estimated beyond the margin in two sessions)" if policy == "fail-if-worse" else ""
        yield f"llmperf_inconclusive = {policy} makes {', '.join(undecided)} fail the test{why}"
