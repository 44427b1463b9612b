"""What a comparison's mark and claims may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf.model import Contention, Spec
from pytest_llmperf.rules import limits_of, unclaimable, uncomparable
from tests.builders import spec


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"max_runs": 2}, "a comparison needs max_runs of at least 3, not 2"),
        (
            {"floors": {"ttft": 5}, "policies": ("whitepaper",), "contention": Contention()},
            "a comparison is not held to limits: take the floor for ttft, policies, contention off this test's mark",
        ),
    ],
)
def test_a_mark_that_no_comparison_can_hold_is_named(words: dict[str, object], said: str) -> None:
    marked: Spec = replace(spec(), **words)  # type: ignore[arg-type]
    assert list(uncomparable(marked)) == [said]


def test_a_mark_without_limits_can_be_compared_from_three_runs_on() -> None:
    assert limits_of(spec()) == []
    assert list(uncomparable(replace(spec(), max_runs=3))) == []


@pytest.mark.parametrize(("metric", "by"), [("total_throughput", 0), ("total_throughput", 3), ("ttft", 0.99)])
def test_a_sane_claim(metric: str, by: float) -> None:
    assert list(unclaimable(metric, by)) == []


@pytest.mark.parametrize(
    ("metric", "by", "said"),
    [
        (
            "trhoughput",
            0.1,
            "metric has no 'trhoughput' (did you mean total_throughput?); metrics that can be compared",
        ),
        (5, 0.1, "metric has no 5; metrics that can be compared are total_throughput, "),
        ("contention_rate", 0.1, "metric has no 'contention_rate'"),
        ("ttft", 1.0, "by must be a fraction from 0 to below 1 (0.15 for 15 %), not 1.0"),
        ("total_throughput", -0.1, "by must be a fraction from 0 to below 10 (0.15 for 15 %), not -0.1"),
        ("total_throughput", 15, "by must be a fraction from 0 to below 10 (0.15 for 15 %), not 15"),
        ("total_throughput", True, "by must be a fraction from 0 to below 10 (0.15 for 15 %), not True"),
        ("overlap_efficiency", "5", "by must be a number from 0 up, not '5'"),
        ("total_throughput", float("nan"), "by must be a fraction from 0 to below 10 (0.15 for 15 %), not nan"),
    ],
)
def test_what_is_wrong_with_a_claim_is_said(metric: object, by: object, said: str) -> None:
    (sentence,) = unclaimable(metric, by)
    assert sentence.startswith(f"assert_faster: {said}")
