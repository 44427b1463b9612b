"""What one test measured, for the helpers and for whoever reads more than they judge. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llmperf.accuracy import Accuracy
from pytest_llmperf.metrics import METRICS, summaries
from pytest_llmperf.model import Session


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `llmperf.measure()` returns: the sessions it measured and the conditions they were taken under.

    `measured["ttft"]` is a metric's summary over the kept runs in the metric's own unit: the median, for
    `contention_rate` the share of contended runs, for `cv` the variation of total_throughput. `unverified` names what
    the mark declares and the servers don't tell whether it is in force; `accuracy` is how exact the last session's
    times are.
    """

    test: str
    machine: str
    emulated: bool
    conditions: Mapping[str, str | int | float | bool | None]
    sessions: tuple[Session, ...]
    unverified: tuple[str, ...] = ()
    accuracy: Accuracy | None = None

    def series(self, metric: str) -> list[float]:
        """The metric's values over all kept runs, in run order."""
        if metric not in METRICS:
            raise KeyError(f"{metric!r} is no metric; metrics are {', '.join(METRICS)}")
        return [value for session in self.sessions for value in session.series(metric)]

    def summary(self) -> dict[str, float]:
        """Every metric that was measured."""
        return summaries(sample for session in self.sessions for sample in session.samples)

    def __getitem__(self, metric: str) -> float:
        __tracebackhide__ = True  # the line of the test is what its author needs to see
        found = self.summary()
        if metric in found:
            return found[metric]
        known = "was not measured" if metric in METRICS else "is no metric"
        raise KeyError(f"{metric!r} {known}; measured were {', '.join(found)}")
