"""The agents of a mark: who they are with the defaults filled in, and which agents a scenario takes.

Standard library only. Every rule gets words that are free of mistakes of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_llmperf.model import Agent, Workload
from pytest_llmperf.values import LOAD_TIME

Words = Mapping[str, Any]
PROMPT = "Explain in detail how a bicycle stays upright while it is ridden and why it falls over when it stands still."


def agents(words: Words) -> Sequence[Agent]:
    """The agents as the mark gives them."""
    given: int | Sequence[Agent] = words.get("agents", 1 if words["scenario"] == "single_agent" else 2)
    return [Agent()] * given if isinstance(given, int) else given


def is_list(words: Words) -> bool:
    """Whether the mark lists its agents."""
    return isinstance(words.get("agents"), list | tuple)


def workloads(words: Words) -> tuple[Workload, ...]:
    """The agents with nothing left to look up."""
    return tuple(_workload(words, n, agent) for n, agent in enumerate(agents(words), 1))


def _workload(words: Words, n: int, agent: Agent) -> Workload:
    on_defaults = n == 1 and words["scenario"] == "baseline_vs_chimera"
    return Workload(
        name=agent.name or f"agent{n}",
        model=agent.model or words.get("model", ""),
        options={} if on_defaults else {**words.get("options", {}), **(agent.options or {})},
        prompts=tuple(agent.prompts or words.get("prompts", [PROMPT])),
        tokens=words.get("tokens", 128),
    )


def models(words: Words) -> Iterator[str]:
    """Every agent has a model."""
    bare = [f"agents[{n}]" for n, agent in enumerate(workloads(words)) if not agent.model]
    if bare and is_list(words):
        yield f"needs model= on the mark or on every Agent; {', '.join(bare)} has none"
    elif bare:
        yield "needs model=, such as model='gemma3:4b-it-q4_K_M'"


def head_count(words: Words) -> Iterator[str]:
    """As many agents as the scenario is about."""
    scenario, count = words["scenario"], len(agents(words))
    if scenario == "single_agent" and count != 1:
        yield f"agents must be exactly 1 for scenario='single_agent', not {count}"
    elif scenario == "chimera_hetero" and not is_list(words):
        yield "scenario='chimera_hetero' needs agents=[Agent(...), Agent(...)] that differ in model or options"
    elif scenario != "single_agent" and count < 2:
        yield f"agents must be 2 or more for scenario={scenario!r}, not {count}"


def names(words: Words) -> Iterator[str]:
    """No two agents of one name."""
    taken: dict[str, int] = {}
    for n, agent in enumerate(workloads(words)):
        if (first := taken.setdefault(agent.name, n)) != n:
            yield f"agents[{n}] and agents[{first}] are both named {agent.name!r}; every agent needs a name of its own"


def contrast(words: Words) -> Iterator[str]:
    """Agents that are alike, or differ, as the scenario has it."""
    scenario, team = words["scenario"], workloads(words)
    kinds = [(agent.model, agent.options) for agent in team]
    odd = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), None)
    if scenario == "chimera_homo" and odd:
        yield f"agents must be alike for scenario='chimera_homo', but agents[{odd}] has another model or other options"
    elif scenario == "chimera_hetero" and odd is None and is_list(words) and len(team) > 1:
        yield "agents must differ in model or options for scenario='chimera_hetero', but they are all alike"
    elif scenario == "baseline_vs_chimera" and agents(words)[0].options:
        yield "agents[0].options must be left out for scenario='baseline_vs_chimera': agent 1 has the server's defaults"
    elif scenario == "baseline_vs_chimera" and len(team) > 1 and not any(agent.options for agent in team):
        yield "scenario='baseline_vs_chimera' compares options with the server's defaults: it needs options={...}"


def reloads(words: Words) -> Iterator[str]:
    """No two agents on one server each of whose requests throws out what the other's has loaded."""
    team = workloads(words) if words.get("topology") == "shared" else ()
    for n, agent in enumerate(team):
        first = next(m for m, other in enumerate(team) if other.model == agent.model)
        if differ := [name for name in LOAD_TIME if _clash(name, team[first].options, agent.options)]:
            yield (
                f"agents[{first}] and agents[{n}] share a server and its model but differ in {', '.join(differ)}: each "
                "request would load the model anew; make them equal, or take topology='dedicated'"
            )


def _clash(name: str, one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether a request with one's load-time option makes a server reload what the other's has loaded."""
    if name == "num_gpu" and not (name in one and name in other):
        return False  # left out it is -1, which any loaded model satisfies
    return one.get(name) != other.get(name)


def pins(words: Words) -> Iterator[str]:
    """No more GPUs than instances."""
    instances, gpus = 1 if words.get("topology") == "shared" else len(agents(words)), len(words.get("gpus", ()))
    if gpus > instances:
        yield f"gpus names {gpus} GPUs for {instances} instance{'s' * (instances != 1)}; each has one at most"
