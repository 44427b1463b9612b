"""The mark: its words, its checks, and the `Spec` it becomes.

Of several `llmperf` marks on one test the closest wins, keyword by keyword: that of a `pytest.param`, of the function,
of its class, of the module's `pytestmark`, which is how defaults of a module are written. A mistake is reported where
its mark stands; words that are missing or contradict each other, at the test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llmperf.legal import WORDS, closest, shown, unknown
from pytest_llmperf.metrics import default_gated, gateable
from pytest_llmperf.model import Agent, LlmperfError, Spec, Workload

PROMPT = "Explain in detail how a bicycle stays upright while it is ridden and why it falls over when it stands still."
OF_SEVERAL = frozenset({"overlap_efficiency", "parallel_efficiency", "speedup"})
FLOOR_RUNS = 5
"""Runs that the bound of an absolute floor needs."""

Words = Mapping[str, Any]
Holder = pytest.Item | pytest.Class | pytest.Module


HELP = (
    f"llmperf({', '.join(WORDS)}): measure this test's agents and judge them against the committed baseline. "
    "Keywords only; of several marks on a test the closest wins, keyword by keyword."
    + "".join(f"\n    {word}: {legal.phrase}" for word, legal in WORDS.items())
)


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


def _gates_something(words: Words) -> Iterator[str]:
    if "metrics" in words and not words["metrics"] and not words.get("floors"):
        yield "metrics=[] gates nothing; leave it out for the default metrics, or hold floors={...} alone"


def _of_gated(words: Words) -> Iterator[str]:
    gated = _gated(words)
    for word in ("margins", "session_sd"):
        for name in words.get(word, ()):
            if name in gateable() and name not in gated:
                yield f"{word} names {name}, which this test does not gate; it gates {', '.join(gated)}"


def _runs_of_floors(words: Words) -> Iterator[str]:
    if words.get("floors") and words.get("max_runs", FLOOR_RUNS) < FLOOR_RUNS:
        yield f"floors need max_runs of at least {FLOOR_RUNS}, not {words['max_runs']}"


RULES: Sequence[tuple[str, Callable[[Words], Iterator[str]]]] = (
    ("scenario model agents", _models),
    ("scenario agents", _head_count),
    ("scenario agents", _names),
    ("scenario agents model options", _contrast),
    ("scenario agents metrics floors solo_runs", _measurable),
    ("metrics floors", _gates_something),
    ("scenario agents metrics", _of_gated),
    ("max_runs", _runs_of_floors),
)
"""Checks of words against each other, each with the words that must be free of mistakes of their own."""


def _contradictions(words: Words, bad: set[str]) -> Iterator[str]:
    if "scenario" not in words and "scenario" not in bad:
        yield f"needs scenario=, which must be {WORDS['scenario'].phrase}"
    wrong = bad if "scenario" in words else {*bad, "scenario"}
    for needs, rule in RULES:
        if wrong.isdisjoint(needs.split()):
            yield from rule(words)


def _in_mark(mark: pytest.Mark) -> Iterator[tuple[str, str]]:
    """Each mistake of one mark alone, after the word it concerns: for an unknown word the one that was meant."""
    for value in mark.args:
        yield "", f"takes keywords only, not {shown(value)}; it takes {', '.join(WORDS)}"
    for word, value in mark.kwargs.items():
        if word in WORDS:
            yield from ((word, text) for text in WORDS[word].mistakes(word, value))
        else:
            yield closest(word, WORDS) or "", f"has no argument {unknown(word, WORDS, 'it takes')}"


def _layers(item: pytest.Item) -> list[tuple[Holder, pytest.Mark]]:
    """The item's llmperf marks, each with the node it stands on, the closest last."""
    of_param = getattr(getattr(item, "callspec", None), "marks", ())
    closest_first = item.iter_markers_with_node("llmperf")
    layers = [(node if isinstance(node, Holder) else item, mark) for node, mark in closest_first][::-1]
    return sorted(layers, key=lambda layer: layer[1] in of_param)


def _merged(layers: Sequence[tuple[Holder, pytest.Mark]]) -> Words:
    given = ((word, value) for _, mark in layers for word, value in mark.kwargs.items())
    return {word: value for word, value in given if word in WORDS and WORDS[word].fits(value)}


def _place(node: Holder) -> str:
    """`path:line` from rootdir: of the first decorator, or of a module's `pytestmark`."""
    path, line, _ = node.reportinfo()
    if isinstance(node, pytest.Module):
        source = inspect.getsourcelines(node.obj)[0]
        line = next((n for n, text in enumerate(source) if text.startswith("pytestmark")), 0)
    here, root = Path(path), node.config.rootpath
    return f"{(here.relative_to(root) if here.is_relative_to(root) else here).as_posix()}:{(line or 0) + 1}"


def marked(item: pytest.Item) -> bool:
    """Whether the test is to be measured."""
    return item.get_closest_marker("llmperf") is not None


def problems(item: pytest.Item) -> list[str]:
    """Every mistake in the item's marks, one line each: `path:line: llmperf() ...`, what is wrong, what is legal."""
    layers = _layers(item)
    found = [(node, word, text) for node, mark in layers for word, text in _in_mark(mark)]
    if layers:
        bad = {word for _, word, _ in found}
        found += [(item, "", text) for text in _contradictions(_merged(layers), bad)]
    return [f"{_place(node)}: llmperf() {text}" for node, _, text in found]


def problems_in(nodes: Iterable[pytest.Item | pytest.Collector]) -> list[str]:
    """The mistakes of what a file or class collected, each once; with any, those in its classes as well.

    pytest doesn't go on to the classes of a file whose collection failed, so they would come to light a run later.
    """
    nodes = list(nodes)
    if not any(problems(node) for node in nodes if isinstance(node, pytest.Item)):
        return []
    return list(dict.fromkeys(line for item in _items(nodes) for line in problems(item)))


def claimed_twice(nodes: Iterable[pytest.Item | pytest.Collector], claims: dict[str, str]) -> list[str]:
    """A line per test whose id= another test has claimed; `claims` remembers them, id to node id, over all files."""
    lines = []
    for item in (node for node in nodes if isinstance(node, pytest.Item) and marked(node)):
        name = _merged(_layers(item)).get("id")
        test = item.nodeid.partition("[")[0]
        if name is not None and (first := claims.setdefault(name, test)) != test:
            lines.append(f"{_place(item)}: llmperf() id={name!r} is already that of {first}; every test needs its own")
    return lines


def _items(nodes: Iterable[pytest.Item | pytest.Collector]) -> Iterator[pytest.Item]:
    for node in nodes:
        if isinstance(node, pytest.Item):
            yield node
        elif isinstance(node, pytest.Class):
            yield from _items(node.ihook.pytest_make_collect_report(collector=node).result or ())


def spec_of(item: pytest.Item) -> Spec:
    """What the item's marks declare, complete.

    Raises:
        LlmperfError: A mark that was added after collection has mistakes; the text is their lines.
    """
    if mistakes := problems(item):
        raise LlmperfError("\n".join(mistakes))
    words = _merged(_layers(item))
    as_given = ("topology", "max_runs", "warmup_requests", "margins", "session_sd", "floors", "id")
    return Spec(
        scenario=words["scenario"],
        agents=_workloads(words),
        gated=_gated(words),
        solo_runs=_solo_runs(words),
        **{word: words[word] for word in as_given if word in words},
    )
