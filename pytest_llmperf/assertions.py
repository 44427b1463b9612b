"""The `llmperf` fixture's object: measure once, judge by helpers, fail with one text that lists all that was judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import NoReturn

import pytest

from pytest_llmperf import legal, verdicts
from pytest_llmperf.case import Case, NoBaselineError
from pytest_llmperf.measured import Measured
from pytest_llmperf.measuring import Measurement
from pytest_llmperf.model import FAILING, Baseline, Entry, LlmperfError, Row, Verdict, worst
from pytest_llmperf.report import failure


class Gate:
    """The measurement of one test and its judgement.

    `measure()` and `check()` measure, once per test; the `assert_*` helpers judge what was measured. Each fails the
    test with one text that lists everything judged so far.
    """

    def __init__(self, case: Case, measurement: Measurement) -> None:
        self._case, self._measurement = case, measurement
        self._baseline: Baseline | None = None
        self._measured: Measured | None = None
        self._rows: list[Row] = []
        self._judged: set[tuple[str, bool]] = set()
        self._broken: Verdict | None = None
        self._notes: list[str] = []

    def measure(self) -> Measured:
        """Measure what the mark declares; fails before anything is spent when there is no usable baseline.

        Under `--llmperf-rebaseline` it measures that many sessions and looks at no baseline.
        """
        if self._measured is not None:
            self._fail("invalid", "measured twice; a test is one measurement: use @pytest.mark.parametrize for more")
        with self._plainly():
            self._measurement.find_server()
            if self._case.spec.gated and not self._recording:
                self._baseline = self._case.load()
            self._measured = self._measurement.take(self._baseline)
        return self._measured

    def check(self) -> Measured:
        """Measure, and judge everything the mark declares: each gated metric against the baseline, each floor."""
        measured, spec = self.measure(), self._case.spec
        self._judge(measured, spec.gated, spec.floors)
        return measured

    def assert_no_regression(self, measured: Measured) -> None:
        """Every gated metric against the baseline."""
        self._judge(measured, self._case.spec.gated)

    def assert_throughput(self, measured: Measured, *, at_least: float | None = None) -> None:
        """total_throughput against the baseline, or against a floor in tok/s."""
        self._one(measured, "total_throughput", at_least)

    def assert_ttft(self, measured: Measured, *, at_most: float | None = None) -> None:
        """Time to first token against the baseline, or against a limit in ms."""
        self._one(measured, "ttft", at_most)

    def assert_efficiency(
        self, measured: Measured, *, overlap: float | None = None, parallel: float | None = None
    ) -> None:
        """overlap_efficiency against the baseline, or floors in %: `overlap=` and `parallel=` name which one is meant.

        Two agents on one GPU typically score 90-99 in overlap and 40-60 in parallel efficiency.
        """
        asked = {"overlap_efficiency": overlap, "parallel_efficiency": parallel}
        floors = {metric: floor for metric, floor in asked.items() if floor is not None}
        self._judge(measured, () if floors else ["overlap_efficiency"], floors)

    def finish(self) -> None:
        """At the end of the test's call: what was measured must have been judged, and no failure been swallowed."""
        if self._broken:
            self._fail(self._broken, self._notes[0])
        if self._measured is None:
            return
        if not self._judged:
            self._fail(
                "invalid",
                "measured, never judged; end the test with llmperf.check() instead of measure(), "
                "or call assert_no_regression, assert_throughput, assert_ttft or assert_efficiency",
            )
        if missed := [metric for metric in self._case.spec.floors if (metric, True) not in self._judged]:
            self._fail("invalid", f"the mark's floors for {', '.join(missed)} were never judged; llmperf.check() does")
        self._refuse()

    def settle(self) -> None:
        """Keep the evidence of a test that did not hold, while its servers' logs exist; one that held keeps none."""
        with suppress(OSError, LlmperfError):  # a full disk must not hide the verdict
            logs = self._measurement.logs()
            if logs and self.verdict not in (None, "held", "improved"):
                self._case.keep_evidence(logs, self._measured)
            else:
                self._case.drop_evidence()

    @property
    def verdict(self) -> Verdict | None:
        """The test's verdict so far, None before there is one."""
        return self._broken or (worst([row.verdict for row in self._rows]) if self._rows else None)

    def entry(self, *, passed: bool) -> Entry | None:
        """What the controller has to know; None for a test that neither measured nor failed to."""
        if self._measured is None and self._broken is None:
            return None
        return Entry(
            test=self._case.test,
            verdict=self.verdict,
            machine=self._case.machine,
            emulated=self._case.settings.emulated,
            rows=tuple(self._rows),
            gated=self._case.spec.gated,
            notes=tuple(self._notes),
            record=self._case.record(self._measured) if self._recording and self._measured else None,
            path=str(self._case.path),
            command=self._case.command("--llmperf-rebaseline"),
            passed=passed,
        )

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Turn what the user can put right into a failure that is all text: no line of ours in a traceback."""
        try:
            yield
        except NoBaselineError as error:
            self._fail("no baseline", str(error))
        except LlmperfError as error:
            self._fail("invalid", str(error))
        except pytest.fail.Exception as error:  # from one of our fixtures
            self._fail("invalid", str(error).removeprefix("llmperf: "))

    @property
    def _recording(self) -> bool:
        return self._case.settings.rebaseline

    def _one(self, measured: Measured, metric: str, floor: float | None) -> None:
        if floor is None:
            self._judge(measured, [metric])
        else:
            self._judge(measured, (), {metric: floor})

    def _judge(
        self, measured: Measured, metrics: Sequence[str], floors: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Judge metrics against the baseline (not while recording one) and floors; fail with all that was judged."""
        if measured is not self._measured:
            self._fail("invalid", "the helpers judge what this test's own llmperf.measure() returned, nothing else")
        rows = [] if self._recording else self._against_baseline(measured, metrics)
        rows += [self._against_floor(measured, metric, floor) for metric, floor in floors.items()]
        self._judged |= {(metric, False) for metric in metrics} | {(metric, True) for metric in floors}
        self._rows += [row for row in rows if row not in self._rows]
        if note := verdicts.disagreement(self._rows):
            self._notes = [note]
        self._refuse()

    def _against_baseline(self, measured: Measured, metrics: Sequence[str]) -> list[Row]:
        if not metrics:
            return []
        with self._plainly():
            found = self._baseline or self._case.load()
        return [verdicts.against_baseline(metric, self._case.spec, measured, found) for metric in metrics]

    def _against_floor(self, measured: Measured, metric: str, floor: float) -> Row:
        for mistake in legal.WORDS["floors"].mistakes("floors", {metric: floor}):
            self._fail("invalid", mistake)
        if self._case.spec.max_runs < legal.FLOOR_RUNS:
            runs = f"max_runs of at least {legal.FLOOR_RUNS}, not {self._case.spec.max_runs}"
            self._fail("invalid", f"a floor for {metric} needs {runs}")
        return verdicts.against_floor(metric, measured, floor)

    def _refuse(self) -> None:
        if self._measured is None or not any(row.verdict in FAILING for row in self._rows):
            return
        text = failure.judged(
            self._rows,
            self._measured,
            self._case.spec,
            command=self._case.command("--llmperf-rebaseline"),
            notes=self._notes,
            evidence=self._case.shown(self._case.evidence),
        )
        raise pytest.fail.Exception(text, pytrace=False)

    def _fail(self, verdict: Verdict, message: str) -> NoReturn:
        self._broken = verdict
        self._notes = [message]
        command = self._case.command("--llmperf-rebaseline")
        text = failure.broken(verdict, self._case.test, message, command=command)
        raise pytest.fail.Exception(text, pytrace=False) from None
