"""The supervisor and the device lane, on real processes."""

from __future__ import annotations

import os
import sys
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from threading import Timer

import psutil
import pytest

from pytest_llmperf.model import LlmperfError
from pytest_llmperf.server import Server, ServerError

Start = Callable[[str], Server]

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no TERM that a process could hear")

READY_AND_DEAF = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(60)
"""
WITH_GRANDCHILD = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session={new_session})
    print("ready", child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Runs a text of Python as a server; it is gone after the test."""
    with ExitStack() as running:

        def run(code: str) -> Server:
            argv = [sys.executable, "-c", dedent(code)]
            server = Server(argv, env={**os.environ, "GREETING": "hello"}, cwd=tmp_path, log_path=tmp_path / "log")
            running.callback(server.stop, 0.1)
            return server

        yield run


def words_after_ready(server: Server) -> list[str]:
    """Wait for the line `ready ...` and return its other words."""

    def look() -> list[str] | None:
        text = server.log_text()
        return text.split()[1:] if text.endswith("\n") else None

    return server.wait_until(look, limit_s=20, what="ready")


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def test_what_readiness_found_is_returned(start: Start) -> None:
    server = start("import time; print('ready on 1234', flush=True); time.sleep(60)")
    assert words_after_ready(server) == ["on", "1234"]
    assert server.exit_code is None


def test_a_server_that_dies_is_an_error_that_ends_with_the_last_lines_of_its_log(start: Start) -> None:
    server = start("for n in range(30): print('line', n)\nraise SystemExit(3)")
    with pytest.raises(ServerError) as caught:
        server.wait_until(lambda: None, limit_s=20, what="listening")
    said, _, log = str(caught.value).partition("; the last lines of its log:\n")
    assert said.startswith(sys.executable)
    assert said.endswith("exited with code 3 before listening")
    assert log.splitlines() == [f"  line {n}" for n in range(18, 30)]


def test_a_server_that_dies_silently_has_an_empty_log(start: Start) -> None:
    with pytest.raises(ServerError, match=r"exited with code 0 before listening; its log is empty$"):
        start("").wait_until(lambda: None, limit_s=20, what="listening")


def test_waiting_for_readiness_is_bounded(start: Start) -> None:
    server = start("import time; print('starting', flush=True); time.sleep(60)")
    words_after_ready(server)
    with pytest.raises(ServerError, match=r"(?s)gave no sign of listening within 0.2 s; the last lines.*\n  starting$"):
        server.wait_until(lambda: None, limit_s=0.2, what="listening")


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ollama"
    with pytest.raises(LlmperfError, match=r"ollama serve can't be started: No such file"):
        Server([str(missing), "serve"], env={}, cwd=tmp_path, log_path=tmp_path / "log")


def test_output_and_errors_go_to_the_log_and_input_is_empty(start: Start, tmp_path: Path) -> None:
    server = start(
        """
        import os, sys
        print("out", os.environ["GREETING"], os.getcwd(), repr(sys.stdin.read()), flush=True)
        print("err", file=sys.stderr)
        os.write(2, b"\\xff")
        """
    )
    assert server.wait(20) == 0
    not_utf8 = "\N{REPLACEMENT CHARACTER}"
    assert server.log_text().splitlines() == [f"out hello {tmp_path.resolve()} ''", "err", not_utf8]


def test_waiting_for_the_end_is_bounded(start: Start) -> None:
    assert start("import time; time.sleep(60)").wait(0.05) is None


@posix_only
def test_a_server_gets_the_chance_to_end_by_itself(start: Start) -> None:
    server = start(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("bye"))
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    words_after_ready(server)
    server.stop()
    assert server.exit_code == 1
    assert server.log_text().endswith("bye\n")


@posix_only
def test_a_server_deaf_to_term_is_killed_after_its_grace(start: Start) -> None:
    server = start(READY_AND_DEAF)
    words_after_ready(server)
    began = time.monotonic()
    server.stop(grace_s=0.3)
    assert time.monotonic() - began >= 0.3
    assert server.exit_code == -9


@posix_only
def test_a_server_is_killed_too_when_the_user_interrupts_its_grace(start: Start) -> None:
    server = start(READY_AND_DEAF)
    words_after_ready(server)
    Timer(0.1, interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        server.stop(grace_s=60)
    assert server.exit_code == -9


def test_a_grandchild_goes_with_its_server(start: Start) -> None:
    server = start(WITH_GRANDCHILD.format(new_session=False))
    [grandchild] = words_after_ready(server)
    server.stop()
    assert_gone(int(grandchild))


@posix_only
def test_a_grandchild_that_left_the_group_goes_too(start: Start) -> None:
    server = start(WITH_GRANDCHILD.format(new_session=True))
    [grandchild] = words_after_ready(server)
    server.stop()
    assert_gone(int(grandchild))


@posix_only
def test_a_grandchild_that_a_killed_server_left_behind_is_stopped(start: Start) -> None:
    server = start(WITH_GRANDCHILD.format(new_session=False))
    [grandchild] = words_after_ready(server)
    psutil.Process(server.pid).kill()
    assert server.wait(20) == -9
    assert runs(int(grandchild)), "nothing was left behind: this test shows nothing"
    server.stop()
    assert_gone(int(grandchild))


def test_a_second_stop_is_harmless(start: Start) -> None:
    server = start("import time; time.sleep(60)")
    server.stop()
    ended = server.exit_code
    assert ended is not None
    server.stop()
    assert server.exit_code == ended
