"""The README says what the code does: its commands, its words, its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llmperf.legal import SCENARIOS, WORDS
from pytest_llmperf.metrics import METRICS, UNGATEABLE
from pytest_llmperf.model import WORST_FIRST
from pytest_llmperf.settings import BACKENDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def rows(heading: str) -> dict[str, list[str]]:
    """The table rows of a section by each name in their first cell."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [cells(line) for line in section.splitlines() if line.startswith("| ")]
    return {name.strip("` "): line for line in lines for name in line[0].split(",")}


def test_the_first_block_is_what_ci_runs() -> None:
    block = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    commands = [part.strip() for line in block[1].splitlines() for part in line.partition("#")[0].split("&&")]
    ci = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert len(commands) == 4
    assert [line for line in ci if line in commands] == commands


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_compile(code: str) -> None:
    compile(code, "README.md", "exec")


def test_every_keyword_of_the_mark_is_in_its_table_and_no_other() -> None:
    section = rows("The mark")
    assert set(section) - set(SCENARIOS) - {"keyword", "scenario"} == set(WORDS) - {"scenario"}
    assert set(SCENARIOS) <= set(section)


def percent(value: float) -> str:
    return f"{100 * value:g} %"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_in_the_table_with_its_defaults(name: str) -> None:
    metric, line = METRICS[name], rows("Metrics")[name]
    assert line[1] == metric.unit
    if name in UNGATEABLE:
        assert line[3] == "reported"
        return
    assert line[3] == {"always": "yes", "several agents": "with several agents", "listed": "when listed"}[metric.gate]
    if metric.scale == "ratio":
        assert percent(metric.margin) in line[4].split(", ")
        assert percent(metric.session_sd) in line[5].split(", ")
    else:
        assert line[4].startswith(f"{metric.margin:g} ")
        assert line[5].startswith(f"{metric.session_sd:g} ")


def test_every_verdict_is_in_the_table() -> None:
    assert set(rows("Verdicts")) - {"verdict"} == set(WORST_FIRST)


def test_every_option_and_ini_key_is_in_the_table_and_no_other(pytestconfig: pytest.Config) -> None:
    source = (ROOT / "pytest_llmperf/settings.py").read_text("utf-8")
    declared = set(re.findall(r'add\w+\(\s*"([^"]+)"', source))
    section = README.partition("\n## Options\n")[2].partition("\n## ")[0]
    table = [cell for line in section.splitlines() if line.startswith("| ") for cell in cells(line)[:2]]
    assert {cell.partition("=")[0] for cell in table if "llmperf" in cell} == declared
    assert len([name for name in declared if name.startswith("--")]) <= 10
    assert pytestconfig.getini("llmperf_backend") in BACKENDS
