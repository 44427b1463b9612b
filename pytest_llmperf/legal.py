"""What may be written on the mark: a table of its keywords and what each value must be. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pytest_llmperf.metrics import METRICS, Metric, gateable
from pytest_llmperf.model import Agent, Contended, Topology
from pytest_llmperf.policies import POLICIES
from pytest_llmperf.values import (
    Inside,
    Legal,
    in_options,
    is_name,
    is_number,
    is_text,
    is_texts,
    is_whole,
    shown,
    unknown,
)

SCENARIOS = ("single_agent", "baseline_vs_chimera", "chimera_homo", "chimera_hetero")

MOST_AGENTS = 1000
"""A slip such as agents=10**9 would take all memory when it is checked."""

FLOOR_RUNS = 5
"""Runs that the bound of an absolute floor needs, a policy's level included."""

ELSEWHERE: Mapping[str, str] = {
    "OLLAMA_NUM_PARALLEL": "the mark declares it as slots=",
    "OLLAMA_HOST": "every instance picks a free port of its own",
    "CUDA_VISIBLE_DEVICES": "the mark declares it as gpus=",
    "ROCR_VISIBLE_DEVICES": "the mark declares it as gpus=",
}
"""Environment variables that have a word of their own."""

LEAST_PERCENT = 0.1
"""2995 clean runs show a contention under it; what is smaller was meant as a fraction."""


def _one_of(*names: str) -> Legal:
    return Legal(f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}", lambda value: value in names)


def _whole(least: int, meaning: str) -> Legal:
    return Legal(f"a whole number of at least {least} ({meaning})", lambda value: is_whole(value) and value >= least)


def _margin(metric: Metric) -> Legal:
    if metric.scale == "diff":
        return _above_zero(metric)
    phrase = f"a fraction between 0 and 1 ({metric.margin:g} means {100 * metric.margin:g} %)"
    return Legal(phrase, lambda value: is_number(value) and 0 < value < 1)


def _session_sd(metric: Metric) -> Legal:
    if metric.scale == "diff":
        phrase = f"a number of at least 0 in the metric's unit, {metric.unit}"
        return Legal(phrase, lambda value: is_number(value) and value >= 0)
    phrase = f"a fraction of at least 0 and below 1 ({metric.session_sd:g} means {100 * metric.session_sd:g} %)"
    return Legal(phrase, lambda value: is_number(value) and 0 <= value < 1)


def _above_zero(metric: Metric) -> Legal:
    phrase = f"a number above 0 in the metric's unit, {metric.unit}"
    return Legal(phrase, lambda value: is_number(value) and value > 0)


def _by_metric(meaning: str, legal: Callable[[Metric], Legal]) -> Legal:
    def inside(where: str, numbers: Mapping[str, Any]) -> Iterator[str]:
        yield from _in_metrics(where, list(numbers))
        for name in gateable():
            if name in numbers:
                yield from legal(METRICS[name]).mistakes(f"{where}[{name!r}]", numbers[name])

    return Legal(f"a dict from metric to number ({meaning})", lambda value: isinstance(value, Mapping), inside)


def _in_metrics(where: str, names: Sequence[object]) -> Iterator[str]:
    for name in names:
        if name not in gateable():
            yield f"{where} has no {unknown(name, gateable(), 'metrics that can be gated are')}"


def _in_policies(where: str, names: Sequence[object]) -> Iterator[str]:
    for name in names:
        if name not in POLICIES:
            yield f"{where} has no {unknown(name, POLICIES, 'policies are')}"


def _in_contention(where: str, terms: Mapping[str, Any]) -> Iterator[str]:
    for name, value in terms.items():
        if name in OF_CONTENTION:
            yield from OF_CONTENTION[name].mistakes(f"{where}[{name!r}]", value)
        else:
            yield f"{where} has no {unknown(name, OF_CONTENTION, 'it takes')}"


def _in_env(where: str, variables: Mapping[str, Any]) -> Iterator[str]:
    for name, value in variables.items():
        if not is_text(name):
            yield f"{where} has {shown(name)}; an environment variable has a name"
        elif name in ELSEWHERE:
            yield f"{where} has {name!r}; {ELSEWHERE[name]}"
        elif not isinstance(value, str):
            yield f"{where}[{name!r}] must be a text, not {shown(value)}"


def _in_agents(where: str, agents: int | Sequence[Agent]) -> Iterator[str]:
    for n, agent in enumerate(() if isinstance(agents, int) else agents):
        for word in agent.unknown:
            yield f"{where}[{n}] has no argument {unknown(word, OF_AGENT, 'Agent takes')}"
        for word, legal in OF_AGENT.items():
            if (value := getattr(agent, word)) is not None:
                yield from legal.mistakes(f"{where}[{n}].{word}", value)


def _are_agents(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(agent, Agent) for agent in value)
    return isinstance(value, int) and is_whole(value) and 1 <= value <= MOST_AGENTS


def _list_of(what: str, inside: Inside | None = None) -> Legal:
    return Legal(f"a list of one or more {what}", lambda value: is_texts(value) and bool(value), inside)


OF_AGENT: Mapping[str, Legal] = {
    "name": Legal("letters, digits, - and _ (it names a folder)", is_name),
    "model": Legal("the name of a model, such as 'gemma3:4b-it-q4_K_M'", is_text),
    "options": Legal("a dict of Ollama's options", lambda value: isinstance(value, Mapping), in_options),
    "prompts": _list_of("non-empty texts (the requests of an agent in one run)"),
}
_PERCENT = Legal(
    f"a percentage from {LEAST_PERCENT} to 100 (2 means 2 %)",
    lambda value: is_number(value) and LEAST_PERCENT <= value <= 100,
)
OF_CONTENTION: Mapping[str, Legal] = {
    "target": _PERCENT,
    "limit": _PERCENT,
    "contended": _one_of(*get_args(Contended)),
}
WORDS: Mapping[str, Legal] = {
    "scenario": _one_of(*SCENARIOS),
    "model": OF_AGENT["model"],
    "options": OF_AGENT["options"],
    "agents": Legal(f"a whole number from 1 to {MOST_AGENTS}, or a list of Agent(...)", _are_agents, _in_agents),
    "topology": _one_of(*get_args(Topology)),
    "slots": _whole(1, "requests that an instance works on at once, OLLAMA_NUM_PARALLEL"),
    "env": Legal(
        "a dict of environment variables of every instance", lambda value: isinstance(value, Mapping), _in_env
    ),
    "gpus": _list_of("indexes or UUIDs of GPUs as texts, one per instance by turns"),
    "prompts": OF_AGENT["prompts"],
    "tokens": _whole(2, "num_predict of every request"),
    "max_runs": _whole(2, "runs at most; one run decides nothing"),
    "warmup_requests": _whole(0, "per agent, before the first run"),
    "solo_runs": _whole(0, "of each agent alone"),
    "metrics": Legal(f"a list of {', '.join(gateable())}", is_texts, _in_metrics),
    "margins": _by_metric("the smallest worsening that matters", _margin),
    "session_sd": _by_metric("the standard deviation from session to session", _session_sd),
    "floors": _by_metric("the worst value that is good enough", _above_zero),
    "policies": Legal(f"a list of {', '.join(POLICIES)}", is_texts, _in_policies),
    "contention": Legal(
        f"a dict of {', '.join(OF_CONTENTION)}", lambda value: isinstance(value, Mapping), _in_contention
    ),
    "id": Legal("a non-empty text without '::'", lambda value: is_text(value) and "::" not in value),
}
"""Every keyword of the mark: its help, its check and its `Spec` come from here."""
