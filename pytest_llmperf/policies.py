"""The studies' alert levels as named policies, each level for the deployment it was stated for. Standard library only.

What they call efficiency is overlap_efficiency here: they never measured parallel_efficiency, nor three agents or one
shared server at these levels. Their levels of VRAM, temperature, error rate and cost have no metric here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from pytest_llmperf.model import Contention, Spec

Deployment = Literal["any number of agents", "a single agent", "2 agents on dedicated instances"]
DUAL: Final = "2 agents on dedicated instances"


@dataclass(frozen=True, kw_only=True)
class Level:
    """The worst value that is good enough (`critical`) and one worth a warning, in the metric's unit."""

    metric: str
    warning: float | None = None
    critical: float
    stated_for: Deployment = DUAL


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Levels that were published together in `source`, and how many runs may be contended, stated for `DUAL`."""

    source: str
    levels: tuple[Level, ...]
    contention: Contention


def _contention(target: float, limit: float) -> Contention:
    # what the studies' harness flagged (TR116 Appendix A: one run, of speedup 1.44); takes no baseline, like the levels
    return Contention(target=target, limit=limit, contended="speedup < 1.5")


POLICIES: Mapping[str, Policy] = {
    "appendix-h2": Policy(
        source="Extended Appendices H.2",
        levels=(
            Level(metric="overlap_efficiency", warning=95, critical=90),
            Level(metric="ttft", warning=1000, critical=2000, stated_for="any number of agents"),
            # a solo value: two agents on one GPU had 38 to 42 tok/s each (TR116 section 8.2)
            Level(metric="total_throughput", warning=90, critical=80, stated_for="a single agent"),
        ),
        contention=_contention(2, 5),
    ),
    "report-11.2": Policy(
        source="TR116 section 11.2",
        levels=(
            Level(metric="speedup", warning=1.95, critical=1.90),
            Level(metric="overlap_efficiency", warning=97, critical=95),
            Level(metric="ttft_p95", warning=2000, critical=3000),
        ),
        contention=_contention(1, 5),
    ),
    "whitepaper": Policy(
        source="whitepaper, days 8-14 and its contention policy",
        levels=(Level(metric="overlap_efficiency", critical=95),),
        contention=_contention(1, 1),
    ),
}


def levels(name: str, spec: Spec) -> list[Level]:
    """The levels of a policy that were stated for a test's deployment."""
    here = ("any number of agents", deployment(spec))
    return [level for level in POLICIES[name].levels if level.stated_for in here]


def contention(spec: Spec) -> Contention | None:
    """The strictest of what a test's policies say of contended runs; None for a deployment they weren't stated for."""
    stated = [POLICIES[name].contention for name in spec.policies if deployment(spec) == DUAL]
    if not stated:
        return None
    return replace(stated[0], target=min(one.target for one in stated), limit=min(one.limit for one in stated))


def deployment(spec: Spec) -> str:
    """How many agents on which instances, in words."""
    agents = len(spec.agents)
    if agents == 1:
        return "a single agent"
    return f"{agents} agents on {'dedicated instances' if spec.topology == 'dedicated' else 'a shared instance'}"


def stated_for(name: str) -> str:
    """The deployments that a policy has levels for, in words."""
    return " or ".join(dict.fromkeys(level.stated_for for level in POLICIES[name].levels))
