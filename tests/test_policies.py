"""The published alert levels: their numbers, and which of them say something of a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf.metrics import METRICS, gateable
from pytest_llmperf.model import Contention, Spec, Topology
from pytest_llmperf.policies import POLICIES, Level, contention, deployment, levels, stated_for
from tests.builders import spec


def deployed(agents: int, topology: Topology = "dedicated", *names: str) -> Spec:
    return replace(spec(agents), topology=topology, policies=names)


ONE, PAIR = deployed(1), deployed(2)
ELSEWHERE = [deployed(2, "shared"), deployed(3), deployed(3, "shared")]

PUBLISHED = [
    (
        "appendix-h2",
        [("overlap_efficiency", 95, 90), ("ttft", 1000, 2000)],
        [("ttft", 1000, 2000), ("total_throughput", 90, 80)],
        [("ttft", 1000, 2000)],
        (2, 5),
    ),
    (
        "report-11.2",
        [("speedup", 1.95, 1.90), ("overlap_efficiency", 97, 95), ("ttft_p95", 2000, 3000)],
        [],
        [],
        (1, 5),
    ),
    ("whitepaper", [("overlap_efficiency", None, 95)], [], [], (1, 1)),
]
Values = list[tuple[str, float | None, float]]


def values(name: str, of: Spec) -> Values:
    return [(level.metric, level.warning, level.critical) for level in levels(name, of)]


@pytest.mark.parametrize(("name", "pair", "one", "others", "shares"), PUBLISHED)
def test_levels_apply_only_where_they_were_stated(
    name: str, pair: Values, one: Values, others: Values, shares: tuple[float, float]
) -> None:
    assert values(name, PAIR) == pair
    assert values(name, ONE) == one
    assert [values(name, of) for of in ELSEWHERE] == [others] * 3
    assert contention(replace(PAIR, policies=(name,))) == Contention(
        target=shares[0], limit=shares[1], contended="speedup < 1.5"
    )
    assert [contention(replace(of, policies=(name,))) for of in (ONE, *ELSEWHERE)] == [None] * 4


def test_every_policy_is_published_here() -> None:
    assert [name for name, *_ in PUBLISHED] == list(POLICIES)
    assert all(policy.source for policy in POLICIES.values())


def test_the_strictest_policy_says_what_contention_is_allowed() -> None:
    assert contention(PAIR) is None
    assert contention(deployed(2, "dedicated", "appendix-h2")) == POLICIES["appendix-h2"].contention
    for names in (("whitepaper", "appendix-h2"), ("appendix-h2", "whitepaper")):
        assert contention(deployed(2, "dedicated", *names)) == POLICIES["whitepaper"].contention


@pytest.mark.parametrize("level", [level for policy in POLICIES.values() for level in policy.levels])
def test_a_warning_comes_before_what_is_critical(level: Level) -> None:
    assert level.metric in gateable()
    if level.warning is not None:
        assert (level.warning > level.critical) == (METRICS[level.metric].better == "higher")


def test_deployments_in_words() -> None:
    assert [deployment(of) for of in (ONE, deployed(1, "shared"), PAIR, *ELSEWHERE)] == [
        "a single agent",
        "a single agent",
        "2 agents on dedicated instances",
        "2 agents on a shared instance",
        "3 agents on dedicated instances",
        "3 agents on a shared instance",
    ]
    assert stated_for("report-11.2") == "2 agents on dedicated instances"
    assert stated_for("appendix-h2") == "2 agents on dedicated instances or any number of agents or a single agent"
