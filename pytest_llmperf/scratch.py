"""The folder that everything of a fleet is in, and the proof that a process is its: both outlive a killed owner.

Every server gets the folder's path in its environment, and hands it on to what it starts; so a process is ours if that
variable names a folder of ours, whatever the process is called. The folder is its owner's as long as the owner holds
the lock in it, which the operating system frees when the owner dies.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pytest_llmperf.model import LlmperfError

MARK = "PYTEST_LLMPERF_SCRATCH"
"""The environment variable that names the folder of the fleet a process belongs to."""

PREFIX = "llmperf-"
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
        try:
            self.path, self._lock = _locked_folder()
        except OSError as error:
            problem = f"there can be no scratch folder in {tempfile.gettempdir()} ({error.strerror or error})"
            raise LlmperfError(f"{problem}; make room there, or set TMPDIR to another folder") from error
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "pytest_llmperf.keeper", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal is for it
            creationflags=_CREATION_FLAGS,
        )

    def close(self) -> None:
        """Stop what is left of the folder's processes, remove it, let the keeper go."""
        try:
            clear(self.path)
        finally:
            self._lock.release()
            self._keeper.communicate(timeout=30)


def clear_orphans() -> None:
    """Clear the folders of owners that are dead; a folder that can't be read is another user's."""
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            if _lock_of(folder).is_file():
                with FileLock(_lock_of(folder), timeout=0):
                    clear(folder)


def clear(folder: Path) -> None:
    """Stop every process that belongs to the folder, then remove it; on return neither is there any more."""
    for _ in range(_ROUNDS):
        left = [*_processes(folder)]
        for process in left:
            with suppress(psutil.Error):
                process.terminate()
        _, deaf = psutil.wait_procs(left, timeout=GRACE_S)
        for process in deaf:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(deaf, timeout=GRACE_S)
        if not left:
            break
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["environ", "status"]):
        if (process.info["environ"] or {}).get(MARK) == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process


def _locked_folder() -> tuple[Path, FileLock]:
    """A new folder with a lock that is ours; one that somebody cleared before it was locked is given up."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        lock = FileLock(_lock_of(folder))
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return folder, lock


def _lock_of(folder: Path) -> Path:
    return folder / "owner.lock"
