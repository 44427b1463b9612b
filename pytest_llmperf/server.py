"""Supervise a server process, whatever it serves: a group of its own, a log, readiness, and a stop that leaves nothing.

Knows neither pytest nor HTTP.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from pytest_llmperf.model import LlmperfError

T = TypeVar("T")

_START_BYTES, _LAST_BYTES = 1 << 20, 1 << 12
_POLL_S = 0.001
"""A genuine Ollama is ready after 20 ms: polls every 10 ms would make a start a quarter longer."""

GRACE_S = 10.0
"""A server may take this long to end after TERM; Ollama needs 8-40 ms, its runners included."""


class ServerError(LlmperfError):
    """A server died or never became ready; the message ends with the last lines of its log."""


class Server:
    """One started process and the log its stdout and stderr go to (a file: nobody has to drain a pipe)."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log_path: Path) -> None:
        self.argv, self.log_path, self._stopped = list(argv), log_path, False
        log_path.write_bytes(b"")
        with log_path.open("ab") as sink:  # appended to: a log that grows too long can be cut while it is written
            try:
                self._process = subprocess.Popen(
                    self.argv,
                    env=dict(env),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    creationflags=_CREATION_FLAGS,
                )
            except OSError as error:
                raise ServerError(f"{self._name()} can't be started: {error.strerror or error}") from error

    @property
    def pid(self) -> int:
        """The process id; on POSIX also the id of the server's process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait(self, limit_s: float) -> int | None:
        """Wait up to `limit_s` seconds for its end; the exit code, None if it runs on."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)
        return self.exit_code

    def log_text(self) -> str:
        """What it has printed at first: as much as a start takes, however much it goes on to say."""
        with self.log_path.open("rb") as log:
            return log.read(_START_BYTES).decode("utf-8", "replace")

    def wait_until(self, ready: Callable[[], T | None], *, limit_s: float, what: str) -> T:
        """Poll until `ready()` is not None and return that; raise ServerError on death or after `limit_s` seconds."""
        give_up = time.monotonic() + limit_s
        while (found := ready()) is None:
            if self.exit_code is not None:
                end = f"exited with code {self.exit_code} before {what}"
                raise ServerError(f"{self._name()} {end}; {self.last_words()}")
            if time.monotonic() > give_up:
                raise ServerError(f"{self._name()} gave no sign of {what} within {limit_s:g} s; {self.last_words()}")
            time.sleep(_POLL_S)
        return found

    def last_words(self, lines: int = 12) -> str:
        """The last lines of the log, as the end of an error message; that it could not be written comes first."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _LAST_BYTES))
            said = log.read().decode("utf-8", "replace").splitlines()[-lines:]
        log_text = "\n  ".join(["the last lines of its log:", *said]) if said else "its log is empty"
        return f"{_no_room(self.log_path.parent)}{log_text}"

    def stop(self, grace_s: float = GRACE_S) -> None:
        """TERM to the group, wait, KILL the group: runners that a killed server left behind go too. Once is enough."""
        if self._stopped:
            return
        self._stopped = True  # its process group's id may be somebody else's from now on
        family = _family(self.pid)
        _signal_group(self._process, family, force=False)
        try:
            self.wait(grace_s)
        finally:  # also when Ctrl-C ends the wait
            _signal_group(self._process, family, force=True)
            if self.wait(GRACE_S) is None:
                stuck = f"{self._name()} (process {self.pid}) does not end {GRACE_S:g} s after KILL"
                raise ServerError(f"{stuck}: a driver or a disk holds it; end it by hand, or restart the machine")

    def _name(self) -> str:
        return subprocess.list2cmdline(self.argv)


if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    _CREATION_FLAGS = 0


def _family(pid: int) -> list[psutil.Process]:
    """The process and its descendants now; psutil checks the creation time before it signals, so no pid is mistaken."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _signal_group(process: subprocess.Popen[bytes], family: Sequence[psutil.Process], *, force: bool) -> None:
    if sys.platform != "win32":
        with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)  # a frozen one hears TERM only when it goes on
    if force or sys.platform == "win32":  # Windows has no TERM for a process without a console
        for member in family:  # on POSIX those too that left the group
            with suppress(psutil.Error):
                member.kill()


def _no_room(folder: Path) -> str:
    if shutil.disk_usage(folder).free >= _LAST_BYTES:
        return ""
    return f"the disk of {folder} is full: make room there, or set TMPDIR to another folder; "


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, which is how CI cancels a job, end a run as Ctrl-C does: with its servers stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
