"""The folder that everything of a fleet is in, and the proof that a process is its: both outlive a killed owner.

Every server gets the folder's path in its environment, and hands it on to what it starts; so a process is ours if that
variable names a folder of ours, whatever the process is called. The folder is its owner's as long as the owner holds
the lock beside it, which the operating system frees when the owner dies. The lock's file is there before the folder and
goes after it, so that no moment is a bad one to die in.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock

from pytest_llmperf.model import LlmperfError

MARK = "PYTEST_LLMPERF_SCRATCH"
"""The environment variable that names the folder of the fleet a process belongs to."""

PREFIX = "llmperf-"
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{16}}")
_PROOF = ".pytest-llmperf"
"""A file in every such folder: what has another name, or holds things without this one, is somebody else's."""

GRACE_S = 3.0
"""What a dead owner's servers may take to end after TERM; Ollama needs 8-40 ms."""

_ROUNDS = 5
"""What is killed may have started something in the meantime; what can't be killed must not hold up anybody for ever."""

if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    _CREATION_FLAGS = 0


class Scratch:
    """A folder for temporary files that is gone with its owner, and the owner's servers with it, however that ends.

    A process beside the owner, its keeper, waits for the owner's end. Where both were killed, the next one who makes
    such a folder clears up.
    """

    def __init__(self) -> None:
        clear_orphans()
        self.path = Path(tempfile.gettempdir()).resolve() / f"{PREFIX}{secrets.token_hex(8)}"
        self._lock = FileLock(_lock_of(self.path))
        # -P: the project that the run was started in may have a types.py
        keeper = [sys.executable, "-P", "-m", "pytest_llmperf.keeper", str(self.path)]
        self._keeper = subprocess.Popen(
            keeper,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal is for it
            creationflags=_CREATION_FLAGS,
        )
        try:
            self._lock.acquire(timeout=GRACE_S)  # somebody who clears up may have it for a moment
            self.path.mkdir(mode=0o700)
            (self.path / _PROOF).touch()
        except OSError as error:
            self.close()
            problem = f"there can be no scratch folder in {self.path.parent} ({error.strerror or error})"
            raise LlmperfError(f"{problem}; make room there, or set TMPDIR to another folder") from error

    def close(self) -> None:
        """Stop what is left of the folder's processes, remove it, end the keeper; interrupted, leave it to him."""
        try:
            clear(self.path)
            self._keeper.kill()
        finally:
            self._lock.release()
            self._keeper.communicate(timeout=30)


def clear_orphans() -> None:
    """Clear the folders of owners that are dead; a folder that can't be read is another user's."""
    for lock in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*.lock"):
        if _NAME.fullmatch(lock.stem):
            with suppress(OSError), FileLock(lock, timeout=0):
                clear(lock.with_suffix(""))


def clear(folder: Path) -> None:
    """Stop every process that belongs to the folder, then remove it; on return neither is there any more."""
    for _ in range(_ROUNDS):
        if not (left := [*_processes(folder)]):
            break
        _end(left)
    _remove(folder)
    if folder.exists():
        return
    with suppress(OSError):  # Windows: whoever holds it has it open, filelock removes it then
        _lock_of(folder).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, its proof last: whoever goes on where this was cut off needs it."""
    with suppress(OSError):
        if (folder / _PROOF).is_file():
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != _PROOF:
                    path.unlink()
            (folder / _PROOF).unlink()
        folder.rmdir()


def _processes(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(MARK) == str(folder) and _runs(process):
            yield process


def _end(processes: Sequence[psutil.Process]) -> None:
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                ask(process)
        processes = _survivors(processes)


def _survivors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after a while; psutil would wait for zombies too, which no one reaps in many containers."""
    give_up = time.monotonic() + GRACE_S
    while (running := [*filter(_runs, processes)]) and time.monotonic() < give_up:
        time.sleep(0.01)
    return running


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")
