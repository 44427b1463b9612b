"""The plan of the house, held by tests: one door per dependency, arrows point down, the emulator stands alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "pytest_llmperf"
DOORS = {
    "httpx": {"ollama"},
    "h11": {"stream"},
    "pydantic": {"baseline"},
    "pydantic_core": {"baseline"},
    "filelock": {"lane", "scratch"},
    "psutil": {"server", "identity", "scratch", "gpu", "quiet"},
    "pynvml": {"gpu"},
    "tabulate": {"report.words"},
}
PURE = {
    *(
        "accuracy",
        "advice",
        "budget",
        "chat",
        "gate",
        "judgement",
        "legal",
        "limits",
        "measured",
        "metrics",
        "model",
        "outcome",
        "plan",
        "policies",
    ),
    *(
        "readback",
        "remarks",
        "rules",
        "selfcheck",
        "stamps",
        "stats",
        "team",
        "traffic",
        "triggers",
        "values",
        "verdicts",
    ),
    "versions",
}
DOOR_MODULES = {
    "agents",
    "baseline",
    "gpu",
    "identity",
    "lane",
    "ollama",
    "quiet",
    "scratch",
    "server",
    "store",
    "stream",
} | {f"report.{path.stem}" for path in (HOUSE / "report").glob("*.py") if path.stem != "__init__"}
MODULES = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts): path
    for path in HOUSE.rglob("*.py")
    if path.name != "__init__.py"
}
EMULATOR = {name for name in MODULES if name.startswith("emulator.")}


def imports(module: str) -> Iterator[str]:
    """Everything a module imports, inside functions and for type checkers too, as absolute names."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    names = [name.removeprefix("pytest_llmperf.") for name in imports(module) if name.startswith("pytest_llmperf.")]
    return {known for name in names for known in (name, name.rpartition(".")[0]) if known in MODULES}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - EMULATOR))
def test_each_third_party_library_has_its_doors(module: str) -> None:
    foreign = {name.partition(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"pytest_llmperf"}
    if module in PURE:
        assert not foreign
    else:
        assert {name for name in foreign - {"pytest"} if module not in DOORS.get(name, set())} == set()
    if module in DOOR_MODULES:
        assert "pytest" not in foreign


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_pure_floor_knows_only_itself(module: str) -> None:
    assert ours(module) <= PURE


@pytest.mark.parametrize("module", sorted(DOOR_MODULES))
def test_doors_do_not_know_one_another(module: str) -> None:
    rooms = {name for name in DOOR_MODULES if name.startswith("report.")} if module.startswith("report.") else set()
    assert ours(module) <= PURE | rooms


def test_the_emulator_stands_alone() -> None:
    assert {name for module in EMULATOR for name in ours(module)} <= EMULATOR
    assert {module for module in MODULES.keys() - EMULATOR if ours(module) & EMULATOR} == set()
    foreign = {name.partition(".")[0] for module in EMULATOR for name in imports(module)}
    assert foreign - sys.stdlib_module_names <= {"pytest_llmperf"}
