"""The scratch folder and its keeper, whose owner dies in every way there is; on real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from pytest_llmperf.model import LlmperfError
from pytest_llmperf.scratch import _PROOF, MARK, Scratch, clear_orphans
from pytest_llmperf.server import Server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners, servers and keepers die of signals")

OWNER = """
import os, signal, subprocess, sys, time
from pytest_llmperf.scratch import MARK, Scratch, _PROOF

scratch = Scratch()
(scratch.path / "session").mkdir()
code = "import signal, time; {deaf}; print('up', flush=True); time.sleep(60)"
server = subprocess.Popen(
    [sys.executable, "-c", code], env={{**os.environ, MARK: str(scratch.path)}}, stdout=subprocess.PIPE
)
server.stdout.readline()
fork = os.fork() if {fork} else -1
if fork:  # not in the fork itself
    print(scratch.path, scratch._keeper.pid, server.pid, fork, flush=True)
time.sleep(60)
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)", "pytest_llmperf.emulator", "serve"]


class Owner:
    """A process with a scratch folder and a server in it: the folder, the keeper's, the server's and a fork's pid."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        self.folder, (self.keeper, self.server, self.fork) = Path(folder), map(int, pids)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


Own = Callable[..., Owner]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's scratch folders are."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return temporary


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Iterator[Own]:
    """Starts owners in `tmp_path`; they are gone after the test, and all theirs with them."""
    script, owners = tmp_path / "scripts/owner.py", list[Owner]()
    script.parent.mkdir()
    with ExitStack() as running:

        def start(deaf: bool = False, fork: bool = False) -> Owner:
            script.write_text(OWNER.format(deaf=DEAF if deaf else "pass", fork=fork))
            process = subprocess.Popen([sys.executable, script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            running.enter_context(process)
            running.callback(process.kill)
            owners.append(Owner(process))
            return owners[-1]

        yield start
    for owner in owners:
        for pid in (owner.keeper, owner.server, owner.fork):
            with suppress(psutil.Error, ValueError):  # the fork that there is none of
                psutil.Process(pid).kill()


@pytest.fixture
def bystander() -> Iterator[Callable[..., psutil.Process]]:
    """Starts a process that looks like a server of ours, with variables that are not ours unless the test says so."""
    started = list[subprocess.Popen[bytes]]()

    def start(**env: str) -> psutil.Process:
        started.append(subprocess.Popen(SLEEPER, env={**os.environ, **env}))
        return psutil.Process(started[-1].pid)

    yield start
    for process in started:
        process.kill()
        process.wait()


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def assert_cleared(owner: Owner, folder: Path) -> None:
    eventually(lambda: not runs(owner.server))
    eventually(lambda: not runs(owner.keeper))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("deaf", [False, True])
def test_the_keeper_clears_up_after_a_killed_owner(own: Own, folder: Path, deaf: bool) -> None:
    owner = own(deaf=deaf)
    assert owner.folder.is_dir()
    assert runs(owner.server)
    owner.kill()
    assert_cleared(owner, folder)


def test_the_keeper_is_not_fooled_by_a_fork_of_the_owner_that_lives_on(own: Own, folder: Path) -> None:
    owner = own(fork=True)
    eventually(lambda: psutil.Process(owner.keeper).num_threads() > 1)  # it has seen who its parent is
    owner.kill()
    assert_cleared(owner, folder)
    assert runs(owner.fork)


def test_the_keeper_imports_nothing_from_the_project_it_is_started_in(own: Own, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('not this one')")
    owner = own()
    owner.kill()
    assert_cleared(owner, folder)


def test_the_next_owner_clears_up_where_the_keeper_was_killed_too(own: Own, folder: Path) -> None:
    owner = own()
    psutil.Process(owner.keeper).kill()
    owner.kill()
    assert runs(owner.server), "nothing was left behind: this test shows nothing"
    assert len(list(folder.iterdir())) == 2
    with closing(Scratch()) as mine:
        assert not runs(owner.server)
        assert {path.stem for path in folder.iterdir()} == {mine.path.stem}
    assert list(folder.iterdir()) == []


def test_an_owner_that_was_killed_while_it_cleared_up_is_cleared_up_after(own: Own, folder: Path) -> None:
    owner = own()
    psutil.Process(owner.keeper).kill()
    owner.kill()
    psutil.Process(owner.server).kill()
    shutil.rmtree(owner.folder)
    clear_orphans()
    assert list(folder.iterdir()) == []


def test_nothing_of_a_living_owner_is_touched(own: Own, folder: Path) -> None:
    owner = own()
    psutil.Process(owner.keeper).kill()
    with closing(Scratch()):
        pass
    assert (owner.folder / "session").is_dir()
    assert runs(owner.server)


def test_a_name_or_a_place_like_ours_proves_nothing(
    own: Own, folder: Path, bystander: Callable[..., psutil.Process]
) -> None:
    owner = own()
    foreign, unproven = folder / "llmperf-foreign", folder / "llmperf-0123456789abcdef"
    for path in (foreign, unproven):
        path.mkdir()
        (path / "data").touch()
        path.with_suffix(".lock").touch()
    before = {*folder.iterdir()} - {owner.folder, owner.folder.with_suffix(".lock")}
    others = [
        bystander(),
        bystander(HOME=str(owner.folder / "session/agent1"), TMPDIR=str(owner.folder)),
        bystander(**{MARK: str(foreign)}),
        bystander(**{MARK: f"{owner.folder}0"}),
    ]
    ours = bystander(**{MARK: str(owner.folder)})
    psutil.Process(owner.keeper).kill()
    owner.kill()
    clear_orphans()
    assert not runs(ours.pid)
    assert [runs(each.pid) for each in others] == [True] * 4
    assert {*folder.iterdir()} == before
    assert all((path / "data").is_file() for path in (foreign, unproven))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_owner_needs_no_keeper_to_clear_up_itself(folder: Path, number: signal.Signals) -> None:
    scratch = Scratch()
    (keeper,) = psutil.Process().children()
    keeper.send_signal(number)
    try:
        scratch.close()
        assert not runs(keeper.pid)
    finally:
        with suppress(psutil.NoSuchProcess):
            keeper.kill()
    assert list(folder.iterdir()) == []


def test_where_there_can_be_no_folder_the_error_says_where_and_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "file"))
    with pytest.raises(LlmperfError) as caught:
        Scratch()
    problem = f"there can be no scratch folder in {folder / 'file'} (File exists)"
    assert str(caught.value) == f"{problem}; make room there, or set TMPDIR to another folder"
    assert not psutil.Process().children()


FLOOD = "import time\nprint('first', flush=True)\nwhile True: print('x' * 99_999, flush=True); time.sleep(0.01)"
CURBING = """
import sys
from pathlib import Path
from pytest_llmperf import keeper

keeper.LOG_LIMIT, keeper.LOG_KEPT, keeper._LOOK_S = 2_000_000, 100_000, 0.1
keeper.main(Path(sys.argv[1]))
"""


def test_a_flooded_log_stays_small_and_keeps_its_beginning(tmp_path: Path) -> None:
    home = tmp_path / "llmperf-flooded/session"
    home.mkdir(parents=True)
    (home.parent / _PROOF).touch()
    log = home / "agent.log"
    server = Server([sys.executable, "-c", FLOOD], env=os.environ, cwd=home, log_path=log)
    keeper = subprocess.Popen([sys.executable, "-c", CURBING, str(home.parent)], stdin=subprocess.PIPE)
    try:
        sizes = [log.stat().st_size]
        deadline = time.monotonic() + 20
        while sum(after < before for before, after in pairwise(sizes)) < 2:
            assert time.monotonic() < deadline, f"never cut twice: {max(sizes)} bytes"
            time.sleep(0.01)
            sizes.append(log.stat().st_size)
        assert max(sizes) < 20_000_000
        assert server.log_text().startswith("first\nx")
        assert server.last_words(1).endswith("x")
    finally:
        server.stop()
        keeper.communicate(timeout=20)
    assert not home.parent.exists(), "the end of its stdin is the end of its owner"
