"""The words of a mark against each other: what a scenario needs, which words contradict, what the defaults come to.

Standard library only. Every rule gets words that are free of mistakes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_llmperf import policies
from pytest_llmperf.legal import FLOOR_RUNS, WORDS, is_number, shown, unknown
from pytest_llmperf.metrics import METRICS, default_gated, gateable
from pytest_llmperf.model import Agent, Contention, Spec, Workload
from pytest_llmperf.plan import PAIRED_RUNS

PROMPT = "Explain in detail how a bicycle stays upright while it is ridden and why it falls over when it stands still."
MOST_GAIN = 10
"""by=15 is meant as 15 %: nothing gets 15 times as fast."""

BLIND = frozenset({"overlap_efficiency", "speedup"})
"""They measure how evenly the agents end, not how soon."""

OF_SEVERAL = frozenset({"overlap_efficiency", "parallel_efficiency", "speedup"})

Words = Mapping[str, Any]


def _team(words: Words) -> Sequence[Agent]:
    agents: int | Sequence[Agent] = words.get("agents", 1 if words["scenario"] == "single_agent" else 2)
    return [Agent()] * agents if isinstance(agents, int) else agents


def _is_list(words: Words) -> bool:
    return isinstance(words.get("agents"), list | tuple)


def _workloads(words: Words) -> tuple[Workload, ...]:
    return tuple(_workload(words, n, agent) for n, agent in enumerate(_team(words), 1))


def _workload(words: Words, n: int, agent: Agent) -> Workload:
    on_defaults = n == 1 and words["scenario"] == "baseline_vs_chimera"
    return Workload(
        name=agent.name or f"agent{n}",
        model=agent.model or words.get("model", ""),
        options={} if on_defaults else {**words.get("options", {}), **(agent.options or {})},
        prompts=tuple(agent.prompts or words.get("prompts", [PROMPT])),
        tokens=words.get("tokens", 128),
    )


def _deployed(words: Words) -> Spec:
    """The agents on their instances and the policies they are held to, everything else left out."""
    return Spec(
        scenario=words["scenario"],
        agents=_workloads(words),
        topology=words.get("topology", Spec.topology),
        policies=tuple(dict.fromkeys(words.get("policies", ()))),
    )


def _gated(words: Words) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words["metrics"])) if "metrics" in words else default_gated(len(_team(words)))


def _solo_runs(words: Words) -> int:
    default = 0 if len(_team(words)) == 1 else 3 if "parallel_efficiency" in _gated(words) else 1
    return int(words.get("solo_runs", default))


def _models(words: Words) -> Iterator[str]:
    bare = [f"agents[{n}]" for n, agent in enumerate(_workloads(words)) if not agent.model]
    if bare and _is_list(words):
        yield f"needs model= on the mark or on every Agent; {', '.join(bare)} has none"
    elif bare:
        yield "needs model=, such as model='gemma3:4b-it-q4_K_M'"


def _head_count(words: Words) -> Iterator[str]:
    scenario, count = words["scenario"], len(_team(words))
    if scenario == "single_agent" and count != 1:
        yield f"agents must be exactly 1 for scenario='single_agent', not {count}"
    elif scenario == "chimera_hetero" and not _is_list(words):
        yield "scenario='chimera_hetero' needs agents=[Agent(...), Agent(...)] that differ in model or options"
    elif scenario != "single_agent" and count < 2:
        yield f"agents must be 2 or more for scenario={scenario!r}, not {count}"


def _names(words: Words) -> Iterator[str]:
    taken: dict[str, int] = {}
    for n, agent in enumerate(_workloads(words)):
        if (first := taken.setdefault(agent.name, n)) != n:
            yield f"agents[{n}] and agents[{first}] are both named {agent.name!r}; every agent needs a name of its own"


def _contrast(words: Words) -> Iterator[str]:
    scenario, agents = words["scenario"], _workloads(words)
    kinds = [(agent.model, agent.options) for agent in agents]
    odd = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), None)
    if scenario == "chimera_homo" and odd:
        yield f"agents must be alike for scenario='chimera_homo', but agents[{odd}] has another model or other options"
    elif scenario == "chimera_hetero" and odd is None and _is_list(words) and len(agents) > 1:
        yield "agents must differ in model or options for scenario='chimera_hetero', but they are all alike"
    elif scenario == "baseline_vs_chimera" and _team(words)[0].options:
        yield "agents[0].options must be left out for scenario='baseline_vs_chimera': agent 1 has the server's defaults"
    elif scenario == "baseline_vs_chimera" and len(agents) > 1 and not any(agent.options for agent in agents):
        yield "scenario='baseline_vs_chimera' compares options with the server's defaults: it needs options={...}"


def _measurable(words: Words) -> Iterator[str]:
    wanted = dict.fromkeys([*_gated(words), *words.get("floors", ())])
    if len(_team(words)) == 1:
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
        if len(_team(words)) == 1:
            yield f"contention: {allowed.contended!r} needs several agents; the test has 1"
    elif not _gated(words):
        yield (
            f"contention: {allowed.contended!r} compares with a baseline, and metrics=[] reads none; list metrics, "
            "or take contended='speedup < 1.5'"
        )


RULES: Sequence[tuple[str, Callable[[Words], Iterator[str]]]] = (
    ("scenario model agents", _models),
    ("scenario agents", _head_count),
    ("scenario agents", _names),
    ("scenario agents model options", _contrast),
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
