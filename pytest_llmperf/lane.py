"""The device lane: the lock that keeps two measurements off one device, whichever process or user takes them."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_llmperf.model import LlmperfError

if sys.platform == "win32":
    _SHARED = Path(os.environ.get("PROGRAMDATA", "C:/ProgramData"), "pytest-llmperf")
else:
    _SHARED = Path("/tmp/pytest-llmperf")  # noqa: S108 - where every user finds the same locks, whatever TMPDIR says


@contextmanager
def machine_lanes(devices: Sequence[str], holder: str, say: Callable[[str], None]) -> Iterator[float]:
    """Hold the lanes of real devices, which all users of the machine share; yields the seconds waited for them.

    They are taken in the order of their names, so that two who want several never wait for each other.
    """
    folder = _shared_folder()
    with ExitStack() as held:
        waited = [held.enter_context(_lane(folder, f"pytest-llmperf-{name}", holder, say)) for name in sorted(devices)]
        yield sum(waited)


@contextmanager
def device_lane(device: str, holder: str, say: Callable[[str], None]) -> Iterator[float]:
    """Hold the lane of an emulated device, which is where the folder for temporary files is; yields the seconds waited.

    Waits as long as the holder lives (the operating system frees the lock of a dead one) and says who that is: after a
    second, then every minute. Nothing of it stays on disk.
    """
    with _lane(Path(tempfile.gettempdir()), f"pytest-llmperf-{_user()}-{device}", holder, say) as waited_s:
        yield waited_s


@contextmanager
def _lane(folder: Path, stem: str, holder: str, say: Callable[[str], None]) -> Iterator[float]:
    path, card = (folder / f"{stem}{suffix}" for suffix in (".lock", ".holder"))
    began = time.monotonic()
    lock = _locked(path, card, say)
    try:
        with suppress(OSError):
            card.unlink(missing_ok=True)
            with card.open("x", encoding="utf-8") as text:  # "x": a link that somebody put there is not followed
                text.write(f"{holder} (process {os.getpid()})")
                if sys.platform != "win32":
                    os.fchmod(text.fileno(), 0o644)  # all are to read it, whatever the umask
        yield time.monotonic() - began
    finally:
        with suppress(OSError):  # Windows: the lock file is open, filelock removes it itself
            card.unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # a waiter that gets the lock of a nameless file tries again (filelock 3.24.3)
        lock.release()


def _locked(path: Path, card: Path, say: Callable[[str], None]) -> FileLock:
    lock = FileLock(path, mode=0o666)
    try:
        for patience_s in chain([1], repeat(60)):
            with suppress(Timeout):
                lock.acquire(timeout=patience_s)
                break
            say(f"llmperf: waiting for the device lane, held by {_read(card)}")
    except OSError as error:
        problem = f"the device lane {path} can't be locked ({error.strerror})"
        raise LlmperfError(f"{problem}; let every user write to {path.parent}, or remove it") from error
    return lock


def _shared_folder() -> Path:
    with suppress(OSError):
        _SHARED.mkdir()  # fails where there is something: chmod would follow a link that somebody put there
        # not sticky: in sticky folders Linux lets nobody open another user's file for creation (fs.protected_regular)
        _SHARED.chmod(0o777)
    return _SHARED


def _user() -> str:
    if sys.platform == "win32":
        return getpass.getuser()
    return str(os.getuid())  # in a container the user often has no name


def _read(card: Path) -> str:
    with suppress(OSError):
        if holder := card.read_text("utf-8", "replace"):
            return holder
    return "a process that has not said its name"
