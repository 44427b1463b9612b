"""One marked test as the gate sees it: its file, its command, what it says where nothing is recorded, its evidence."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llmperf import baseline as files
from pytest_llmperf.case import Case, NoBaselineError
from pytest_llmperf.model import Sample, Session
from tests.builders import CONDITIONS, MACHINE, TEST, baseline, measured, session, settings, spec

posix_shell = pytest.mark.skipif(os.name == "nt", reason="quotes of a POSIX shell")
RUNS = session(ttft=[400.0, 410.0])


def case(rootdir: Path, test: str = TEST, *collected: str) -> Case:
    return Case(test, spec(), settings(rootdir), collected or (test,))


def record(of: Case) -> Path:
    """Its baseline file, written."""
    files.replace(of.path, files.text(of.record(measured(RUNS))))
    return of.path


def sessions(file: Path) -> tuple[Session, ...]:
    found = files.load(file)
    assert found is not None
    return found.sessions


def absence(of: Case) -> list[str]:
    with pytest.raises(NoBaselineError) as caught:
        of.load()
    return str(caught.value).splitlines()


def source(rootdir: Path, module: str, text: str) -> None:
    path = rootdir / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_what_was_recorded_is_loaded(tmp_path: Path) -> None:
    one = case(tmp_path)
    record(one)
    assert one.load() == replace(baseline(RUNS), content=one.record(measured(RUNS)).content)
    assert one.path.is_relative_to(tmp_path / "baselines" / MACHINE / "tests/test_chat")


def test_a_record_is_what_was_measured_under_the_tests_name(tmp_path: Path) -> None:
    found = case(tmp_path).record(measured(RUNS))
    assert (found.test, found.emulated, found.sessions) == (TEST, True, (RUNS,))
    assert found.conditions == CONDITIONS


@pytest.mark.parametrize(
    ("test", "name", "key"),
    [
        (TEST, None, TEST),
        (f"{TEST}[a-1]", None, f"{TEST}[a-1]"),
        (TEST, "pair", "pair"),
        (f"{TEST}[a-1]", "pair", "pair[a-1]"),
        (f"{TEST}[x[0]::y]", "pair", "pair[x[0]::y]"),
        ("old[1]/test_chat.py::test_two_agents", "pair", "pair"),
        ("old[1]/test_chat.py::TestChat::test_two_agents[2]", "pair", "pair[2]"),
    ],
)
def test_a_key_is_the_id_with_the_parameters_else_the_node_id(
    tmp_path: Path, test: str, name: str | None, key: str
) -> None:
    assert replace(case(tmp_path, test), spec=replace(spec(), id=name)).key == key


@posix_shell
@pytest.mark.parametrize(
    ("test", "command"),
    [
        (TEST, "pytest tests/test_chat.py::test_two_agents"),
        (f"{TEST}[gemma3:4b-80]", "pytest 'tests/test_chat.py::test_two_agents[gemma3:4b-80]'"),
        (f"{TEST}[it's]", """pytest 'tests/test_chat.py::test_two_agents[it'"'"'s]'"""),
        ("my tests/test_chat.py::test_a", "pytest 'my tests/test_chat.py::test_a'"),
    ],
)
def test_a_command_survives_the_shell(tmp_path: Path, test: str, command: str) -> None:
    assert case(tmp_path, test).command() == command
    echoed = subprocess.run(f"printf %s {command[7:]}", shell=True, capture_output=True, text=True, check=True)
    assert echoed.stdout == test


@posix_shell
def test_a_command_repeats_what_was_typed_and_starts_where_pytest_was_called(tmp_path: Path) -> None:
    here = replace(settings(tmp_path), typed=("--llmperf-backend=emulator",), invoked_from=tmp_path / "docs/how to")
    one = replace(case(tmp_path), settings=here)
    assert one.command("--llmperf-rebaseline") == (
        "pytest ../../tests/test_chat.py::test_two_agents --llmperf-backend=emulator --llmperf-rebaseline"
    )
    inside = replace(one, settings=replace(here, invoked_from=tmp_path / "tests", typed=()))
    assert inside.command() == "pytest test_chat.py::test_two_agents"
    assert inside.shown(tmp_path / "baselines") == "../baselines"


def test_nothing_recorded_is_said_with_the_machine_and_the_file(tmp_path: Path) -> None:
    one = case(tmp_path)
    file = one.path.relative_to(tmp_path).as_posix()
    assert absence(one) == [f"nothing is recorded for this test on {MACHINE} ({file})"]


def test_other_machines_with_a_baseline_are_named(tmp_path: Path) -> None:
    one = case(tmp_path)
    for machine in ("intel-8c-linux", "amd-32c-linux"):
        path = files.path_for(tmp_path / "baselines", machine, one.key)
        files.replace(path, files.text(baseline(RUNS)))
    assert absence(one)[1:] == ["other machines have a baseline for it: amd-32c-linux, intel-8c-linux"]


OLD, NEW = "tests/test_chat.py::test_old", "tests/test_chat.py::test_new"


@posix_shell
def test_a_renamed_test_is_told_its_file_and_how_to_move_it(tmp_path: Path) -> None:
    source(tmp_path, "tests/test_chat.py", "def test_new(llmperf): ...\n")
    old, one = record(case(tmp_path, OLD)), case(tmp_path, NEW)
    orphan, new = (path.relative_to(tmp_path).as_posix() for path in (old, one.path))
    _, words, move = absence(one)
    assert words == f"{orphan} was recorded for {OLD}, which is gone and declared the same; renamed?"
    assert move == f"  git mv {orphan} {new}"


@posix_shell
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_move_to_another_module_makes_its_folder_and_works_as_printed(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    source(tmp_path, "tests/test_moved.py", "def test_old(llmperf): ...\n")
    old, one = record(case(tmp_path, OLD)), case(tmp_path, "tests/test_moved.py::test_old")
    git("init", "-q")
    git("add", "baselines")
    move = absence(one)[-1]
    folder = shlex.quote(one.path.parent.relative_to(tmp_path).as_posix())
    assert move.startswith(f"  mkdir -p {folder} && git mv ")
    subprocess.run(move, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert not old.exists()
    assert one.load().test == OLD


@pytest.mark.parametrize(
    ("recorded", "now", "text"),
    [
        ("test_old", "test_new", "def test_new(): ...\ndef test_older(): ...\n"),
        ("test_old[a::b]", "test_new[a::b]", "def test_new(): ...\n"),
        ("TestA::test_it", "TestB::test_it", "class TestB:\n    def test_it(self): ...\n"),
    ],
)
def test_a_recorded_test_is_gone_when_its_file_no_longer_has_it(
    tmp_path: Path, recorded: str, now: str, text: str
) -> None:
    source(tmp_path, "tests/test_chat.py", text)
    record(case(tmp_path, f"tests/test_chat.py::{recorded}"))
    assert "which is gone" in absence(case(tmp_path, f"tests/test_chat.py::{now}"))[1]


@pytest.mark.parametrize(
    ("recorded", "text"),
    [
        ("test_old", "def test_new(): ...\ndef test_old(): ...\n"),
        ("test_old[a::b]", "async def test_old(name): ...\n"),
        ("TestA::test_it", "class TestA(Base):\n    def test_it(self): ...\n"),
    ],
)
def test_a_copied_test_that_still_stands_is_no_orphan(tmp_path: Path, recorded: str, text: str) -> None:
    source(tmp_path, "tests/test_chat.py", text)
    record(case(tmp_path, f"tests/test_chat.py::{recorded}"))
    assert len(absence(case(tmp_path, NEW))) == 1


def test_a_collected_test_is_no_orphan_wherever_its_source_is(tmp_path: Path) -> None:
    record(case(tmp_path, OLD))
    assert len(absence(case(tmp_path, NEW, NEW, OLD))) == 1


def test_a_test_that_declared_something_else_is_no_orphan_of_this_one(tmp_path: Path) -> None:
    record(replace(case(tmp_path, OLD), spec=spec(agents=3)))
    assert len(absence(case(tmp_path, NEW))) == 1


def test_an_unreadable_baseline_is_no_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = case(tmp_path)
    path = record(one)
    path.write_text("{", "utf-8")
    file = path.relative_to(tmp_path).as_posix()
    (words,) = absence(one)
    assert words.startswith(f"{file}: is truncated (")
    assert words.endswith(f"; restore it with git checkout -- {file}, or record it anew with --llmperf-rebaseline")


def test_evidence_is_kept_until_the_test_runs_again(tmp_path: Path) -> None:
    log = tmp_path / "agent1.log"
    log.write_text("last words", "utf-8")
    one = case(tmp_path)
    one.keep_evidence([log], {"measured": measured(RUNS)})
    kept = tmp_path / ".llmperf/last" / one.path.stem
    assert one.evidence == kept
    assert {path.name for path in kept.iterdir()} == {"agent1.log", "measured.json"}
    assert (kept / "agent1.log").read_text("utf-8") == "last words"
    assert sessions(kept / "measured.json") == (RUNS,)
    assert (tmp_path / ".llmperf/.gitignore").read_text("utf-8") == "*\n"

    one.keep_evidence([], {})
    assert [*kept.iterdir()] == []
    one.drop_evidence()
    one.drop_evidence()
    assert not kept.exists()


def test_both_sides_of_a_comparison_are_evidence(tmp_path: Path) -> None:
    one, other = case(tmp_path), session(ttft=[300.0, 310.0])
    one.keep_evidence([], {"control": measured(RUNS), "treatment": measured(other)})
    assert {path.name for path in one.evidence.iterdir()} == {"control.json", "treatment.json"}
    assert sessions(one.evidence / "control.json") == (RUNS,)
    assert sessions(one.evidence / "treatment.json") == (other,)


def test_discarded_and_replaced_runs_are_evidence_too(tmp_path: Path) -> None:
    samples = (
        Sample({"ttft": 900.0}, kept=False),
        Sample({"ttft": 950.0}, kept=False, cause="the server loaded the model during the run (3.1 s)"),
        Sample({"ttft": 400.0}),
    )
    one, warm = case(tmp_path), Session(samples, 0.5)
    one.keep_evidence([], {"measured": measured(warm)})
    assert sessions(one.evidence / "measured.json") == (warm,)
