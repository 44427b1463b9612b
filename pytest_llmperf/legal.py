"""What may be written on the mark: a table of its keywords, a table of Ollama's options, and what each value must be.

A server ignores an option it does not know and only notes it in its own log, so a misspelt name would measure another
workload than the mark declares. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from reprlib import Repr
from typing import Any, get_args

from pytest_llmperf.metrics import METRICS, Metric, gateable
from pytest_llmperf.model import Agent, Contended, Topology
from pytest_llmperf.policies import POLICIES

SCENARIOS = ("single_agent", "baseline_vs_chimera", "chimera_homo", "chimera_hetero")

MOST_AGENTS = 1000
"""A slip such as agents=10**9 would take all memory when it is checked."""

FLOOR_RUNS = 5
"""Runs that the bound of an absolute floor needs, a policy's level included."""

LEAST_PERCENT = 0.1
"""2995 clean runs show a contention under it; what is smaller was meant as a fraction."""

Inside = Callable[[str, Any], Iterator[str]]

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Legal:
    """What a value may be: `phrase` reads after "must be", `fits` takes the whole value, `inside` checks its parts."""

    phrase: str
    fits: Callable[[Any], bool]
    inside: Inside | None = None

    def mistakes(self, where: str, value: object) -> Iterator[str]:
        """One sentence per mistake in the value of the argument that `where` names."""
        if self.fits(value):
            yield from self.inside(where, value) if self.inside else ()
        else:
            hint = f"; write [{shown(value)}]" if isinstance(value, str) and self.phrase.startswith("a list") else ""
            yield f"{where} must be {self.phrase}, not {shown(value)}{hint}"


def shown(value: object) -> str:
    """The value's repr on one line, shortened, and alike in every process: sets sorted, without addresses."""
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", _REPR.repr(value)).split())


def closest(name: object, legal: Iterable[str]) -> str | None:
    """The legal name that was probably meant."""
    return next(iter(get_close_matches(str(name), legal, n=1)), None)


def unknown(name: object, legal: Iterable[str], takes: str) -> str:
    """The second half of a sentence on a name that isn't legal: the name, a guess, and what is legal."""
    names = list(legal)
    hint = f" (did you mean {guess}?)" if (guess := closest(name, names)) else ""
    return f"{shown(name)}{hint}; {takes} {', '.join(names)}"


def is_whole(value: object) -> bool:
    """An int that isn't a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """An int or a finite float; JSON has no word for the others."""
    return is_whole(value) or (isinstance(value, float) and isfinite(value))


def is_text(value: object) -> bool:
    """A str with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_name(value: object) -> bool:
    """A str that is a file name on every system."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", value) is not None


def is_texts(value: object) -> bool:
    """A list or tuple of such texts."""
    return isinstance(value, list | tuple) and all(is_text(text) for text in value)


_WHOLE = Legal("a whole number", is_whole)
_NUMBER = Legal("a number", is_number)
_FLAG = Legal("True or False", lambda value: isinstance(value, bool))
# White space is a usual stop sequence.
_STOP = Legal(
    "a list of texts",
    lambda value: isinstance(value, list | tuple) and all(isinstance(text, str) and text for text in value),
)

_BY_TYPE = {
    _WHOLE: "num_ctx num_batch num_gpu main_gpu num_thread draft_num_predict num_keep seed top_k "
    "repeat_last_n mirostat",
    _NUMBER: "temperature top_p min_p typical_p tfs_z repeat_penalty presence_penalty frequency_penalty "
    "mirostat_eta mirostat_tau",
    _FLAG: "use_mmap use_mlock numa low_vram vocab_only f16_kv logits_all penalize_newline",
    _STOP: "stop",
}

OPTIONS: Mapping[str, Legal] = {name: legal for legal, names in _BY_TYPE.items() for name in names.split()}
"""The fields of Ollama's `api.Options`, those that only servers from 0.1.17 to 0.5 take included; `tokens=` of the mark
stands for `num_predict`."""


def in_options(where: str, options: Mapping[str, Any]) -> Iterator[str]:
    """One sentence per option that Ollama would ignore or refuse."""
    for name, value in options.items():
        if name in OPTIONS:
            yield from OPTIONS[name].mistakes(f"{where}[{name!r}]", value)
        elif name == "num_predict":
            yield f"{where} has 'num_predict', which the mark declares once for all agents: use tokens={shown(value)}"
        else:
            yield f"{where} has no {unknown(name, sorted(OPTIONS), 'Ollama takes')}"


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
