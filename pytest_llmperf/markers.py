"""The mark: its words, its checks, and the `Spec` it becomes.

Of several `llmperf` marks on one test the closest wins, keyword by keyword: that of a `pytest.param`, of the function,
of its class, of the module's `pytestmark`, which is how defaults of a module are written. A mistake is reported where
its mark stands; words that are missing or contradict each other, at the test.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from pytest_llmperf.legal import WORDS
from pytest_llmperf.model import LlmperfError, Spec
from pytest_llmperf.rules import contradictions, spec
from pytest_llmperf.team import Words
from pytest_llmperf.values import closest, shown, unknown

Holder = pytest.Item | pytest.Class | pytest.Module


HELP = (
    f"llmperf({', '.join(WORDS)}): measure this test's agents and judge them against the committed baseline. "
    "Keywords only; of several marks on a test the closest wins, keyword by keyword."
    + "".join(f"\n    {word}: {legal.phrase}" for word, legal in WORDS.items())
)


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
        found += [(item, "", text) for text in contradictions(_merged(layers), bad)]
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
    return spec(_merged(_layers(item)))


SIDE_WORDS = (
    *("scenario", "model", "options", "agents", "topology", "slots", "env", "gpus", "prompts", "tokens"),
    *("warmup_requests", "solo_runs"),
)
"""What the two sides of a comparison may differ in; how they are judged is the mark's alone."""


def side_of(item: pytest.Item, side: str, words: Mapping[str, object]) -> Spec:
    """The spec of one side of a comparison: the item's marks with these words over them.

    Raises LlmperfError with every mistake in them, one line each.
    """
    where = f"compare(): {side}"
    if not isinstance(words, Mapping):
        raise LlmperfError(f"{where} must be a dict of words of the mark, not {shown(words)}")
    mistakes = []
    for word, value in words.items():
        if word in SIDE_WORDS:
            mistakes += [f"{where}: {text}" for text in WORDS[word].mistakes(word, value)]
        else:
            mistakes.append(f"{where} has no {unknown(word, SIDE_WORDS, 'a side takes')}; the rest is on the mark")
    merged = {**_merged(_layers(item)), **words}
    if mistakes := mistakes or [f"{where}: {text}" for text in contradictions(merged, set())]:
        raise LlmperfError("\n".join(mistakes))
    return spec(merged)
