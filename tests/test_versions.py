"""What Ollama's versions report: the code, and the page that tells of it, which must say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.versions import Version, absent, parse

PAGE = Path(__file__).parents[1] / "docs/ollama-versions.md"


def table(header: str) -> Iterator[list[str]]:
    """The cells of the rows of the page's table with that header, without backquotes."""
    _, found, below = PAGE.read_text("utf-8").partition(f"| {header} |\n")
    assert found, f"no table with the header {header}"
    for line in below.splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def version(text: str) -> Version:
    found = parse(text)
    assert found, text
    return found


RANGES = [
    (*re.split(r" - ?", versions), unverified, missing)
    for versions, unverified, missing, _ in table("versions | not verified | absent | bends")
]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("0.33.0", (0, 33, 0)),
        ("v0.1.17", (0, 1, 17)),
        ("0.30.0-rc3", (0, 30, 0)),
        ("0.5.4-ipexllm-20250407", (0, 5, 4)),
        ("0.12.3+gabc", (0, 12, 3)),
        ("1.0.0", (1, 0, 0)),
        ("0.0.0", None),
        ("0.0.0-dirty", None),
        ("0.5", None),
        ("0.5.4.1", None),
        ("dev", None),
        ("", None),
    ],
)
def test_a_version_is_three_numbers_whatever_follows(said: str, meant: Version | None) -> None:
    assert parse(said) == meant


def test_an_unknown_version_has_nothing_absent() -> None:
    assert [absent(one) for one in ("0.0.0", "dev", "")] == [frozenset()] * 3


@pytest.mark.parametrize(
    ("before", "without", "then", "again"),
    [
        ("0.1.17", {"queue_wait"}, "0.1.33", set()),
        ("0.1.32", {"queue_wait"}, "0.1.33", set()),
        ("0.2.1", set(), "0.2.2", {"queue_wait", "load_time"}),
        ("0.2.3", {"queue_wait", "load_time"}, "0.2.4", set()),
        ("0.12.4", set(), "0.12.5", {"queue_wait"}),
        ("0.24.0", {"queue_wait"}, "0.30.0", set()),
    ],
)
def test_what_is_absent_changes_with_these_versions(before: str, without: set[str], then: str, again: set[str]) -> None:
    assert absent(before) == without
    assert absent(then) == again


def test_only_metrics_that_exist_are_absent() -> None:
    assert {name for first, _, _, _ in RANGES for name in absent(first)} <= set(METRICS)


def test_the_pages_ranges_follow_one_another_from_0_1_17_to_today() -> None:
    bounds = [(version(first), version(last) if last else (99, 0, 0)) for first, last, _, _ in RANGES]
    assert (bounds[0][0], bounds[-1][1]) == ((0, 1, 17), (99, 0, 0))
    assert all(first <= last for first, last in bounds)
    assert all(last < after for (_, last), (after, _) in pairwise(bounds))


@pytest.mark.parametrize("minor", range(1, 41))
def test_the_page_names_what_is_absent_as_the_code_does(minor: int) -> None:
    for number in ((0, minor, patch) for patch in range(17 if minor == 1 else 0, 60)):
        *_, missing = next(row for row in reversed(RANGES) if version(row[0]) <= number)
        assert sorted(absent("{}.{}.{}".format(*number))) == [name for name in missing.split(", ") if name], number
