"""The `llmperf` fixture's object: measure once, judge by helpers, fail with one text that lists all that was judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import pytest

from pytest_llmperf import legal, limits, plan, policies, rules, verdicts
from pytest_llmperf.case import Case
from pytest_llmperf.comparison import Comparison
from pytest_llmperf.docket import Docket
from pytest_llmperf.measured import Measured
from pytest_llmperf.measuring import Measurement
from pytest_llmperf.model import Baseline, Contention, LlmperfError, Spec
from pytest_llmperf.outcome import Entry, Row
from pytest_llmperf.spending import UNLIMITED, Estimate, Purse, expected

Sides = Callable[[str, Mapping[str, object]], Spec]


class Gate:
    """The measurement of one test and its judgement.

    `measure()`, `check()` and `compare()` measure, once per test; the `assert_*` helpers judge what was measured. Each
    fails the test with one text that lists everything judged so far. `sides` gives the spec of a comparison's side;
    what is measured is paid from the `purse`.
    """

    def __init__(self, case: Case, measurement: Measurement, sides: Sides, purse: Purse = UNLIMITED) -> None:
        self._case, self._measurement, self._sides, self._purse = case, measurement, sides, purse
        self._baseline: Baseline | None = None
        self._docket = Docket(case, measurement.logs)

    def measure(self) -> Measured:
        """Measure what the mark declares; fails before anything is spent when there is no usable baseline.

        Under `--llmperf-rebaseline` it measures that many sessions and looks at no baseline.
        """
        self._refuse_twice()
        if self._case.settings.selfcheck and not self._case.spec.gated:
            pytest.skip("llmperf: a test that gates no metric has nothing to check against itself")
        with self._docket.plainly():
            self._measurement.find_server()
            if self._case.spec.gated and self._judging:
                self._baseline = self._case.load()
        with self._spending(lambda: expected(self._case, self._baseline)):
            if self._case.settings.selfcheck:
                self._docket.measured, self._docket.checks = self._measurement.selfcheck()
            else:
                self._docket.measured = self._measurement.take(self._baseline)
        return self._docket.measured

    def compare(self, *, control: Mapping[str, object], treatment: Mapping[str, object]) -> Comparison:
        """Let two configurations take turns in one session; no baseline is needed.

        Each side is the mark with some words replaced: scenario, model, options, agents, topology, prompts, tokens.
        Both sides have the runs of the first look then; `assert_faster` and `assert_no_slower` take more as they need.
        """
        if not self._judging:
            pytest.skip("llmperf: a comparison has no baseline to record or to check")
        self._refuse_twice()
        for mistake in rules.uncomparable(self._case.spec):
            self._docket.fail("invalid", mistake)
        with self._spending(lambda: None):
            sides = self._sides("control", control), self._sides("treatment", treatment)
            comparison = self._measurement.compare(*sides)
            comparison.take(plan.looks(self._case.spec.max_runs)[0])
        self._docket.comparison = comparison
        return comparison

    def check(self) -> Measured:
        """Measure, and judge everything the mark declares: each gated metric, each floor, each policy, contention."""
        measured, spec = self.measure(), self._case.spec
        self._judge(measured, spec.gated, spec.floors, policies_too=True, contention=spec.contention)
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

    def assert_contention(self, measured: Measured) -> None:
        """The share of contended runs against the mark's contention= or policy; without either 2 % and 5 %."""
        self._judge(measured, contention=self._case.spec.contention or Contention())

    def assert_policies(self, measured: Measured) -> None:
        """Every level of the mark's policies that applies to how this test deploys its agents, contention included."""
        self._judge(measured, policies_too=True, contention=self._case.spec.contention)

    def assert_faster(self, comparison: Comparison, *, metric: str = "total_throughput", by: float = 0.0) -> None:
        """Held if the lower bound of the treatment's gain over the control reaches `by`; fails if it does not.

        `by` is a fraction for ratio metrics (0.15: 15 % more tok/s, 15 % less ttft), else in the metric's unit.
        """
        self._refuse_claim(comparison, metric, by)
        with self._spending():
            for runs in plan.looks(self._case.spec.max_runs):
                comparison.take(runs)
                row, found = verdicts.gain(metric, by, self._case.spec, comparison.sides)
                if not found or found.verdict != "inconclusive":
                    break
        self._docket.add([row])

    def assert_no_slower(self, comparison: Comparison) -> None:
        """Every gated metric of the treatment against the control, with the session term zero."""
        self._refuse_claim(comparison, "total_throughput", 0.0)
        spec = self._case.spec
        with self._spending():
            for runs in plan.looks(spec.max_runs):
                comparison.take(runs)
                judged = [verdicts.against_control(metric, spec, comparison.sides) for metric in spec.gated]
                if plan.enough([found for _, found in judged if found], spec.max_runs):
                    break
        self._docket.add([row for row, _ in judged])

    def finish(self) -> None:
        """At the end of the test's call: what was measured must have been judged, and no failure been swallowed."""
        self._docket.fail_again()
        if self._docket.comparison and not self._docket.rows:
            self._docket.fail(
                "invalid", "compared, never judged; call assert_faster or assert_no_slower with the comparison"
            )
        if self._docket.measured and not self._docket.judged:
            self._docket.fail(
                "invalid",
                "measured, never judged; end the test with llmperf.check() instead of measure(), "
                "or call assert_no_regression, assert_throughput, assert_ttft or assert_efficiency",
            )
        if self._docket.measured and (
            missed := [name for name in rules.limits_of(self._case.spec) if name not in self._docket.judged]
        ):
            self._docket.fail("invalid", f"never judged: the mark's {', '.join(missed)}; llmperf.check() judges all")
        self._docket.refuse()

    def settle(self) -> None:
        """Keep the evidence of a test that did not hold, while its servers' logs exist; one that held keeps none."""
        with suppress(OSError, LlmperfError):  # a full disk must not hide the verdict
            self._docket.settle(self._measurement.logs())

    @property
    def disturbed(self) -> str:
        """What else used the machine, in words; "" if nothing is known of it."""
        return self._docket.disturbed

    def entry(self, *, passed: bool) -> Entry | None:
        """What the controller has to know; None for a test that neither measured nor failed to."""
        return self._docket.entry(passed=passed)

    @property
    def _judging(self) -> bool:
        """Whether baselines are held against what is measured: not while they are recorded or the gate is checked."""
        return not (self._case.settings.rebaseline or self._case.settings.selfcheck)

    @contextmanager
    def _spending(self, estimate: Estimate | None = None) -> Iterator[None]:
        """Measure inside: it is paid for, waiting for the device apart, and what breaks is a failure of text only."""
        with self._docket.plainly():
            fleet = self._measurement.find_server()
            with self._purse.spending(estimate, lambda: fleet.waited_s):
                yield

    def _one(self, measured: Measured, metric: str, floor: float | None) -> None:
        if floor is None:
            self._judge(measured, [metric])
        else:
            self._judge(measured, (), {metric: floor})

    def _judge(
        self,
        measured: Measured,
        metrics: Sequence[str] = (),
        floors: Mapping[str, float] | None = None,
        *,
        policies_too: bool = False,
        contention: Contention | None = None,
    ) -> None:
        """Judge metrics against the baseline, and limits; fail with all that was judged."""
        if measured is not self._docket.measured:
            self._docket.fail(
                "invalid", "the helpers judge what this test's own llmperf.measure() returned, nothing else"
            )
        floors = floors or {}
        names = [*metrics, *(f"floor for {metric}" for metric in floors)]
        names += ["policies"] * policies_too + ["contention"] * (contention is not None)
        if self._case.settings.selfcheck:
            return self._docket.note(*names)
        rows = self._against_baseline(measured, metrics) if self._judging else []
        rows += [self._against_floor(measured, metric, floor) for metric, floor in floors.items()]
        if policies_too:
            rows += self._against_policies(measured)
        if contention and self._judging:
            rows.append(limits.against_contention(contention, measured, self._baseline))
        return self._docket.add(rows, *names)

    def _against_baseline(self, measured: Measured, metrics: Sequence[str]) -> list[Row]:
        if not metrics:
            return []
        with self._docket.plainly():
            found = self._baseline or self._case.load()
        return [verdicts.against_baseline(metric, self._case.spec, measured, found) for metric in metrics]

    def _against_floor(self, measured: Measured, metric: str, floor: float) -> Row:
        for mistake in legal.WORDS["floors"].mistakes("floors", {metric: floor}):
            self._docket.fail("invalid", mistake)
        if self._case.spec.max_runs < legal.FLOOR_RUNS:
            runs = f"max_runs of at least {legal.FLOOR_RUNS}, not {self._case.spec.max_runs}"
            self._docket.fail("invalid", f"a floor for {metric} needs {runs}")
        return limits.against_floor(metric, measured, floor)

    def _against_policies(self, measured: Measured) -> list[Row]:
        spec = self._case.spec
        return [
            limits.against_level(name, level, measured)
            for name in spec.policies
            for level in policies.levels(name, spec)
        ]

    def _refuse_twice(self) -> None:
        if self._docket.measured or self._docket.comparison:
            self._docket.fail(
                "invalid", "measured twice; a test is one measurement: use @pytest.mark.parametrize for more"
            )

    def _refuse_claim(self, comparison: Comparison, metric: str, by: float) -> None:
        if comparison is not self._docket.comparison:
            self._docket.fail(
                "invalid", "the helpers judge what this test's own llmperf.compare() returned, nothing else"
            )
        for mistake in rules.unclaimable(metric, by):
            self._docket.fail("invalid", mistake)
