"""What a test reads off its own measurement."""

from __future__ import annotations

import pytest

from pytest_llmperf.model import Sample, Session
from tests.builders import measured, session

TWO = measured(
    session(total_throughput=[90.0, 94.0], ttft=[400.0, 500.0], contention_rate=[0.0, 100.0]),
    Session((Sample({"total_throughput": 1.0, "ttft": 9e4}, kept=False), Sample({"total_throughput": 92.0}))),
)


def test_a_metric_is_its_summary_over_all_kept_runs_of_all_sessions() -> None:
    assert TWO["total_throughput"] == 92
    assert TWO["ttft"] == 450
    assert TWO["contention_rate"] == 50
    assert TWO["cv"] == pytest.approx(100 * 2 / 92)
    assert TWO.summary().keys() == {"total_throughput", "ttft", "contention_rate", "cv"}


def test_a_series_is_in_run_order_and_leaves_out_runs_without_the_metric() -> None:
    assert TWO.series("total_throughput") == [90, 94, 92]
    assert TWO.series("ttft") == [400, 500]
    assert TWO.series("decode_rate") == []


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (
            "decode_rate",
            "'decode_rate' was not measured; measured were total_throughput, ttft, contention_rate, cv",
        ),
        ("throughput", "'throughput' is no metric; measured were total_throughput, ttft, contention_rate, cv"),
    ],
)
def test_what_was_not_measured_is_named_with_what_was(metric: str, words: str) -> None:
    with pytest.raises(KeyError) as caught:
        TWO[metric]
    assert caught.value.args == (words,)
