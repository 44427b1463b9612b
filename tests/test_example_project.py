"""The example project, run as its reader runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The two folders that a reader of the README has."""
    for folder in ("example_project", "baselines"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    return tmp_path


def run(checkout: Path, *options: str, emulator: str = "") -> subprocess.CompletedProcess[str]:
    scratch = checkout / "tmp"
    scratch.mkdir(exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OLLAMA_"))}
    env |= {"LLMPERF_EMULATOR": emulator, "TMPDIR": str(scratch), "COLUMNS": "200"}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "example_project", *options]
    return subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_it_holds_against_the_committed_baselines_and_writes_nothing_there(checkout: Path) -> None:
    before = {path: path.read_bytes() for path in (checkout / "baselines").rglob("*.json")}
    result = run(checkout, "-k", "alone or different")  # the README's own command, which CI runs too, has all of them
    assert result.returncode == 0, result.stdout
    assert "llmperf: 2 gated: " in result.stdout
    assert result.stdout.count(" held\n") > 3, result.stdout  # of 6 rows; a busy machine can't always tell
    assert "measured on emulated-rtx4080 (emulated)" in result.stdout
    assert {path: path.read_bytes() for path in (checkout / "baselines").rglob("*.json")} == before


def test_a_slower_server_fails_a_gate_on_two_workers_too_and_no_comparison(checkout: Path) -> None:
    result = run(checkout, "-n2", "-k", "alone or sooner", emulator="slowdown=1.3")
    assert result.returncode == 1, result.stdout
    counted = "llmperf: 2 gated: 1 held, 1 regressed; 4 marked tests not measured"
    assert counted in result.stdout, "a comparison is slowed down on both sides"
