"""The words of a mark against each other: what a scenario needs, which words contradict, what the defaults come to.

Standard library only. Every rule gets words that are free of mistakes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pytest_llmperf import policies, team
from pytest_llmperf.legal import FLOOR_RUNS, WORDS
from pytest_llmperf.metrics import METRICS, default_gated, gateable
from pytest_llmperf.model import Contention, Spec
from pytest_llmperf.plan import PAIRED_RUNS
from pytest_llmperf.team import Words
from pytest_llmperf.values import is_number, shown, unknown

MOST_GAIN = 10
"""by=15 is meant as 15 %: nothing gets 15 times as fast."""

BLIND = frozenset({"overlap_efficiency", "speedup"})
"""They measure how evenly the agents end, not how soon."""

OF_SEVERAL = frozenset({"overlap_efficiency", "parallel_efficiency", "speedup"})


def _deployed(words: Words) -> Spec:
    """The agents on their instances and the policies they are held to, everything else left out."""
    return Spec(
        scenario=words["scenario"],
        agents=team.workloads(words),
        topology=words.get("topology", Spec.topology),
        slots=words.get("slots", Spec.slots),
        env=dict(words.get("env", {})),
        gpus=tuple(words.get("gpus", ())),
        policies=tuple(dict.fromkeys(words.get("policies", ()))),
    )


def _gated(words: Words) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words["metrics"])) if "metrics" in words else default_gated(len(team.agents(words)))


def _solo_runs(words: Words) -> int:
    default = 0 if len(team.agents(words)) == 1 else 3 if "parallel_efficiency" in _gated(words) else 1
    return int(words.get("solo_runs", default))


def _measurable(words: Words) -> Iterator[str]:
    wanted = dict.fromkeys([*_gated(words), *words.get("floors", ())])
    if len(team.agents(words)) == 1:
        for name in wanted:
            if name in OF_SEVERAL:
                yield f"{name} needs several agents and can't be gated or have a floor here; the test has 1"
    elif "parallel_efficiency" in wanted and not _solo_runs(words):
        yield "parallel_efficiency compares with solo runs: solo_runs must be at least 1 (3 by default), not 0"


def _gates_the_pace(words: Words) -> Iterator[str]:
    gated = _gated(words)
    if gated and BLIND.issuperset(gated):
        yield (
            f"metrics: {' and '.join(gated)} alone can't see a slowdown that hits all agents alike; "
            "list total_throughput or ttft too"
        )


def _gates_something(words: Words) -> Iterator[str]:
    limited = words.get("floors") or words.get("policies") or "contention" in words
    if "metrics" in words and not words["metrics"] and not limited:
        yield (
            "metrics=[] gates nothing; leave it out for the default metrics, "
            "or hold floors={...}, policies=[...] or contention={...} alone"
        )


def _runs_of_floors(words: Words) -> Iterator[str]:
    for word in ("floors", "policies"):
        if words.get(word) and words.get("max_runs", Spec.max_runs) < FLOOR_RUNS:
            yield f"{word} need max_runs of at least {FLOOR_RUNS}, not {words['max_runs']}"


def _stated_for_others(words: Words) -> Iterator[str]:
    here = _deployed(words)
    for name in here.policies:
        if not policies.levels(name, here):
            stated, deployed = policies.stated_for(name), policies.deployment(here)
            yield f"policies: {name!r} is stated for {stated}; this test has {deployed}"


def _contention(words: Words) -> Contention | None:
    return Contention(**words["contention"]) if "contention" in words else None


def _target_below_limit(words: Words) -> Iterator[str]:
    allowed = _contention(words)
    if allowed and allowed.target > allowed.limit:
        yield f"contention: target must be at most limit, not {allowed.target:g} with a limit of {allowed.limit:g}"


def _tells_contention(words: Words) -> Iterator[str]:
    allowed = _contention(words)
    if allowed is None:
        return
    if allowed.contended == "speedup < 1.5":
        if len(team.agents(words)) == 1:
            yield f"contention: {allowed.contended!r} needs several agents; the test has 1"
    elif not _gated(words):
        yield (
            f"contention: {allowed.contended!r} compares with a baseline, and metrics=[] reads none; list metrics, "
            "or take contended='speedup < 1.5'"
        )


RULES: Sequence[tuple[str, Callable[[Words], Iterator[str]]]] = (
    ("scenario model agents", team.models),
    ("scenario agents", team.head_count),
    ("scenario agents", team.names),
    ("scenario agents model options", team.contrast),
    ("scenario agents model options topology", team.reloads),
    ("scenario agents topology gpus", team.pins),
    ("scenario agents metrics floors solo_runs", _measurable),
    ("metrics floors policies contention", _gates_something),
    ("scenario agents metrics", _gates_the_pace),
    ("max_runs", _runs_of_floors),
    ("scenario agents topology policies", _stated_for_others),
    ("contention", _target_below_limit),
    ("scenario agents metrics contention", _tells_contention),
)
"""Checks of words against each other, each with the words that must be free of mistakes of their own."""


def contradictions(words: Words, bad: set[str]) -> Iterator[str]:
    """One sentence per contradiction between words; `bad` are the words that have mistakes of their own."""
    if "scenario" not in words and "scenario" not in bad:
        yield f"needs scenario=, which must be {WORDS['scenario'].phrase}"
    wrong = bad if "scenario" in words else {*bad, "scenario"}
    for needs, rule in RULES:
        if wrong.isdisjoint(needs.split()):
            yield from rule(words)


def spec(words: Words) -> Spec:
    """What the words come to, complete."""
    as_given = ("max_runs", "warmup_requests", "margins", "session_sd", "floors", "id")
    found = replace(
        _deployed(words),
        gated=_gated(words),
        solo_runs=_solo_runs(words),
        **{word: words[word] for word in as_given if word in words},
    )
    return replace(found, contention=_contention(words) or policies.contention(found))


def limits_of(spec: Spec) -> list[str]:
    """The limits that a mark declares, by the names under which they are noted as judged."""
    floors = [f"floor for {metric}" for metric in spec.floors]
    return floors + ["policies"] * bool(spec.policies) + ["contention"] * (spec.contention is not None)


def uncomparable(spec: Spec) -> Iterator[str]:
    """Why a test with this mark can't compare two sides."""
    if spec.max_runs < PAIRED_RUNS:
        yield f"a comparison needs max_runs of at least {PAIRED_RUNS}, not {spec.max_runs}"
    if declared := limits_of(spec):
        yield f"a comparison is not held to limits: take the {', '.join(declared)} off this test's mark"


def unclaimable(metric: object, by: object) -> Iterator[str]:
    """What is wrong with the words of a claim that one side is faster."""
    if not isinstance(metric, str) or metric not in gateable():
        yield f"assert_faster: metric has no {unknown(metric, gateable(), 'metrics that can be compared are')}"
        return
    entry = METRICS[metric]
    most = math.inf if entry.scale == "diff" else 1 if entry.better == "lower" else MOST_GAIN
    if not (is_number(by) and 0 <= float(by) < most):  # type: ignore[arg-type]
        legal = f"a fraction from 0 to below {most:g} (0.15 for 15 %)" if most < math.inf else "a number from 0 up"
        yield f"assert_faster: by must be {legal}, not {shown(by)}"
