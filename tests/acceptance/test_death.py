"""Death and disorder: whoever is killed, interrupted, frozen or out of room, soon nothing of the run is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
from filelock import FileLock

from pytest_llmperf import stream
from pytest_llmperf.model import InvalidRunError
from pytest_llmperf.protocol import Bench
from pytest_llmperf.scratch import MARK
from tests.acceptance.conftest import TEST, Run, emulate
from tests.benches import fleets, spec, workload

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends by signals")

SLEEPING = """
import json, os, pathlib, time

def say(servers):
    words = {"pid": os.getpid(), "servers": {server.pid: server.port for server in servers}}
    pathlib.Path("words.part").write_text(json.dumps(words))
    pathlib.Path("words.part").rename("words.json")

def test_asleep(ollama_factory):
    say([ollama_factory(), ollama_factory()])
    time.sleep(60)
"""
MEASURING = (
    "import os, pathlib, psutil, signal, threading, time\n"
    + TEST
    + """
def after_an_answer(server, strike):
    def wait():
        while '"/api/chat"' not in server.log.read_text():
            time.sleep(0.01)
        strike()
    threading.Thread(target=wait).start()
"""
)


class PytestRun:
    """pytest as a user types it, in a process group of its own; `words` is what its sleeping test has said."""

    def __init__(self, project: pytest.Pytester, *options: str) -> None:
        self._folder = project.path
        (self._folder / "words.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )

    @property
    def output(self) -> Path:
        return self._folder / "output"

    def words(self) -> dict[str, Any]:
        path = self._folder / "words.json"
        eventually(path.exists)
        words: dict[str, Any] = json.loads(path.read_text())
        return words

    def interrupt(self) -> None:
        """What the terminal does at Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture
def hearing() -> Iterator[None]:
    """Whoever was started in the background by a shell ignores SIGINT, and so would all that he starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def asleep(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, hearing: None
) -> Iterator[Callable[..., PytestRun]]:
    """Starts runs of a project whose test sleeps beside two servers; nothing of them is left after the test."""
    emulate(monkeypatch, speed=20)
    project.makepyfile(test_stack=SLEEPING)
    runs = list[PytestRun]()

    def start(*options: str) -> PytestRun:
        runs.append(PytestRun(project, *options))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
    for process in ours(project):
        with suppress(psutil.Error):
            process.kill()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def ours(project: pytest.Pytester) -> list[psutil.Process]:
    """Servers, runners, relays and keepers of this project: whatever has its mark or names its scratch folder."""
    scratch = str(project.path / "scratch")
    return [process for process in psutil.process_iter(["environ", "cmdline"]) if _of(process, scratch)]


def _of(process: psutil.Process, scratch: str) -> bool:
    marked = str((process.info["environ"] or {}).get(MARK, "")).startswith(scratch)
    return marked or any(word.startswith(scratch) for word in process.info["cmdline"] or ())


def assert_nothing_left(project: pytest.Pytester, words: dict[str, Any] | None = None) -> None:
    """No process, no port, no scratch folder; of the lane a file may be there, which nobody holds."""
    eventually(lambda: not ours(project))
    eventually(lambda: not list(project.path.glob("scratch/llmperf-*")))
    for lane in project.path.glob("scratch/*.lock"):
        with FileLock(lane, timeout=5):
            pass
    for port in (words or {"servers": {}})["servers"].values():
        with socket.create_server(("127.0.0.1", port)):
            pass


def keeper_of(pid: int) -> psutil.Process:
    (keeper,) = [child for child in psutil.Process(pid).children() if "pytest_llmperf.keeper" in child.cmdline()]
    return keeper


def test_a_killed_pytest_leaves_nothing(project: pytest.Pytester, asleep: Callable[..., PytestRun]) -> None:
    run = asleep()
    words = run.words()
    assert len(ours(project)) == 2 + 1
    run.process.kill()
    assert_nothing_left(project, words)


def test_where_the_keeper_was_killed_too_the_next_run_clears_up(
    project: pytest.Pytester, asleep: Callable[..., PytestRun]
) -> None:
    run = asleep()
    words = run.words()
    keeper_of(run.process.pid).kill()
    run.process.kill()
    run.process.wait()
    assert len(ours(project)) == 2, "nothing was left behind: this test shows nothing"
    project.makepyfile(test_next="def test_next(ollama):\n    pass\n")
    project.runpytest_subprocess("-p", "no:cacheprovider", "test_next.py").assert_outcomes(passed=1)
    assert_nothing_left(project, words)
    assert list(project.path.glob("scratch/*")) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_whose_keeper_died_or_froze_ends_as_if_nothing_were(
    project: pytest.Pytester, asleep: Callable[..., PytestRun], number: signal.Signals
) -> None:
    project.makepyfile(test_stack=SLEEPING.replace("sleep(60)", "sleep(0.5)"))
    run = asleep()
    words = run.words()
    keeper_of(run.process.pid).send_signal(number)
    assert run.process.wait(20) == 0
    assert_nothing_left(project, words)


def test_a_killed_worker_leaves_nothing_and_the_others_go_on(
    project: pytest.Pytester, asleep: Callable[..., PytestRun]
) -> None:
    project.makepyfile(test_next="def test_next(ollama):\n    pass\n")
    run = asleep("-n2")
    words = run.words()
    psutil.Process(words["pid"]).kill()
    assert run.process.wait(60) == 1
    assert re.search(r"worker 'gw\d' crashed while running 'test_stack.py::test_asleep'", run.output.read_text())
    assert "1 failed, 1 passed" in run.output.read_text()
    assert_nothing_left(project, words)


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_ctrl_c_leaves_nothing(
    project: pytest.Pytester, asleep: Callable[..., PytestRun], options: tuple[str, ...]
) -> None:
    run = asleep(*options)
    words = run.words()
    run.interrupt()
    assert run.process.wait(20) == pytest.ExitCode.INTERRUPTED
    assert_nothing_left(project, words)


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_a_second_ctrl_c_does_not_wait_for_deaf_servers(
    project: pytest.Pytester,
    asleep: Callable[..., PytestRun],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    emulate(monkeypatch, speed=20, fault="deaf")
    project.makepyfile(test_stack=SLEEPING.replace("ollama_factory(), ollama_factory()", "ollama_factory()"))
    run = asleep(*options)
    words = run.words()
    began = time.monotonic()
    for _ in range(2):
        run.interrupt()
        time.sleep(0.5)
    assert run.process.wait(20) in {pytest.ExitCode.INTERRUPTED, -signal.SIGINT}
    assert_nothing_left(project, words)
    assert time.monotonic() - began < 9.5, "the deaf server had its 10 s of grace"


def test_a_server_that_is_killed_in_a_measurement_makes_it_invalid_and_its_runner_goes_too(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate(monkeypatch, fault="orphan")
    project.makepyfile(
        test_stack=MEASURING
        + """
def test_it(llmperf, ollama_instances):
    victim = psutil.Process(ollama_instances[0].pid)
    def strike():
        (runner,) = victim.children()
        victim.kill()
        time.sleep(0.1)
        pathlib.Path("orphan").write_text(f"{runner.pid} {runner.is_running()}")
    after_an_answer(ollama_instances[0], strike)
    llmperf.check()
"""
    )
    result = run("--llmperf-rebaseline")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "llmperf: invalid: test_stack.py::test_it",
            "*; agent1 exited with code -9; the last lines of its log:",
            '    *"/api/chat"',
            "llmperf: 1 gated: 1 invalid",
        ]
    )
    pid, lived = (project.path / "orphan").read_text().split()
    assert lived == "True", "the runner went with its server: this test shows nothing"
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert_nothing_left(project)


def test_a_run_whose_runner_is_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPERF_EMULATOR", "speed=20,fault=orphan")
    with fleets(tmp_path, monkeypatch) as fleet_of:
        instance = fleet_of().start()
        bench = Bench(spec(workload("a", tokens=3000)), [instance])
        bench.load()
        bench.warm_up()
        bench.discard()
        (runner,) = psutil.Process(instance.pid).children()
        Timer(0.2, runner.kill).start()
        bench.step()
        discarded, broken, kept = bench.so_far().samples
    assert (discarded.kept, broken.kept, kept.kept) == (False, False, True)
    eof = "an error was encountered while running the model: unexpected EOF"
    assert re.fullmatch(rf"the server answered 200 with an error after \d+ chunks: {eof}", broken.cause)


def test_a_frozen_server_is_given_up_and_stopped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPERF_EMULATOR", "speed=20")
    monkeypatch.setattr(stream, "PATIENCE_S", 0.3)
    with fleets(tmp_path, monkeypatch) as fleet_of:
        instance = fleet_of().start()
        bench = Bench(spec(workload("a", tokens=8000)), [instance])
        bench.load()
        Timer(0.5, os.kill, (instance.pid, signal.SIGSTOP)).start()
        with pytest.raises(InvalidRunError) as caught:
            bench.session((1,))
        began = time.monotonic()
        instance.stop()
        assert time.monotonic() - began < 9.5, "it had its 10 s of grace"
    assert re.fullmatch(rf"{instance.url} sent no byte for \d+ s and answers nobody", str(caught.value))


def test_two_runs_at_once_take_turns_and_the_second_says_for_whom_it_waits(
    project: pytest.Pytester, asleep: Callable[..., PytestRun]
) -> None:
    first = asleep()
    pid = first.words()["pid"]
    project.makepyfile(test_next="def test_next(ollama):\n    pass\n")
    (output := project.path / "output").rename(project.path / "first")
    second = PytestRun(project, "test_next.py")
    said = f"llmperf: waiting for the device lane, held by test_stack.py::test_asleep (process {pid})"
    eventually(lambda: said in output.read_text())
    assert second.process.poll() is None
    first.interrupt()
    assert second.process.wait(20) == 0
    assert "1 passed" in output.read_text()
    assert_nothing_left(project)


@contextmanager
def tiny_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 KiB at `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root on Linux can mount a tiny disk, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


FULL = """
import os, pathlib

def test_full(ollama_factory):
    filler = pathlib.Path(os.environ["TMPDIR"], "filler")
    filler.write_bytes(b"x" * 65536)
    ollama_factory()
"""


def test_a_full_disk_is_one_sentence_with_a_remedy_and_leaves_nothing(project: pytest.Pytester) -> None:
    scratch = project.path / "scratch"
    project.makepyfile(test_stack=FULL)
    with tiny_disk(scratch):
        result = project.runpytest_subprocess("-p", "no:cacheprovider")
        assert [path.name for path in scratch.iterdir()] == ["filler"]
        assert_nothing_left(project)
    result.assert_outcomes(failed=1)
    remedy = f"the disk of {scratch}/llmperf-* is full: make room there, or set TMPDIR to another folder; *"
    result.stdout.fnmatch_lines([f"llmperf: *pytest_llmperf.emulator serve exited with code 1 before *; {remedy}"])
    assert "Traceback" not in result.stdout.str()
