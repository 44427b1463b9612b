"""What a run spends of --llmperf-budget: all of its workers together, on measuring alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

import pytest

from pytest_llmperf import budget, keys, markers, plan, selfcheck
from pytest_llmperf.case import Case
from pytest_llmperf.model import Baseline, LlmperfError

Estimate = Callable[[], float | None]
"""About the seconds of what is to be measured, None where that is not known."""


class Purse:
    """`limit_s` seconds for all workers of a run: each appends what it takes out to the one file they share."""

    def __init__(self, limit_s: float = inf, path: Path = Path()) -> None:
        self._limit_s, self._path = limit_s, path

    @classmethod
    def of(cls, request: pytest.FixtureRequest) -> Purse:
        """That of this run; its file lies where the temporary folders of all of the run's workers are."""
        limit_s = request.config.stash[keys.SETTINGS].budget_s
        if limit_s is None or keys.AGAIN in request.node.stash:  # a second try has begun what has to be ended
            return cls()
        folder: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
        shared = folder.parent if hasattr(request.config, "workerinput") else folder
        return cls(limit_s, shared / "llmperf-spent")

    @property
    def left_s(self) -> float:
        """What nobody has taken out yet, in seconds; below zero once something took longer than estimated."""
        taken = self._path.read_text("utf-8").split() if self._path.is_file() else []
        return self._limit_s - sum(map(float, taken))

    @contextmanager
    def spending(self, estimate: Estimate | None, waited: Callable[[], float]) -> Iterator[None]:
        """Take out the seconds spent inside, less those that `waited()` has grown by meanwhile.

        What is estimated is taken out first, for the other workers to see, and the test skipped where it does not fit;
        where it is not known, if nothing is left. Without an `estimate` the test goes on with what it has begun.
        """
        if self._limit_s == inf:
            yield
            return
        booked = self._book(estimate() or 0.0) if estimate else 0.0
        began = time.perf_counter() - waited()
        try:
            yield
        finally:
            self._take(time.perf_counter() - waited() - began - booked)

    def _book(self, seconds: float) -> float:
        left, option = self.left_s, f"--llmperf-budget={budget.typed(self._limit_s)}"
        if left <= 0:
            pytest.skip(f"llmperf: not measured: nothing of {option} is left")
        if seconds > left:
            takes = f"it takes about {budget.spoken(seconds)}, and {budget.spoken(left)} of {option} are left"
            pytest.skip(f"llmperf: not measured: {takes}")
        self._take(seconds)
        return seconds

    def _take(self, seconds: float) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{seconds:.3f}\n")


UNLIMITED = Purse()


def expected(case: Case, baseline: Baseline | None = None) -> float | None:
    """About the seconds a test takes under these settings; None without a baseline that can be read."""
    with suppress(LlmperfError):
        return _in_all(case, baseline or case.load())
    return None


def forecast(items: Iterable[pytest.Item]) -> list[tuple[str, float | None]]:
    """About the seconds that each marked test among the collected ones takes, None where that isn't known."""
    cases = [
        Case(item.nodeid, markers.spec_of(item), item.config.stash[keys.SETTINGS], ())
        for item in items
        if markers.marked(item)
    ]
    return [(case.test, expected(case)) for case in cases]


def _in_all(case: Case, baseline: Baseline) -> float:
    settings, spec = case.settings, case.spec
    if settings.selfcheck:
        slower = selfcheck.factors(spec)
        times = 1.0 if slower == selfcheck.NO_SLOWER else 1.0 + max(slower)
        return settings.sessions * times * budget.estimate(spec, baseline, runs=spec.max_runs)
    if settings.rebaseline:
        runs = min(plan.SESSION_RUNS, spec.max_runs)
        return settings.sessions * budget.estimate(spec, baseline, runs=runs)
    return budget.estimate(spec, baseline)
