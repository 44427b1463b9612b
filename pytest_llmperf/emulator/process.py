"""The process that a loaded model runs in: the server's own, or a child that lives and dies like llama-server."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import ClassVar

UNEXPECTED_EOF = "an error was encountered while running the model: unexpected EOF"


class RunnerError(RuntimeError):
    """The model's process failed, while it loaded or in the middle of an answer; the text is Ollama's."""


class Process:
    """The server itself: there as long as anybody can ask."""

    def alive(self) -> bool:
        """Whether the model still runs."""
        return True

    def end(self) -> None:
        """Kill it, as Ollama ends its runners."""


class Child(Process):
    """A process in the server's group with the server's environment, which outlives a server that is killed.

    llama-server sets no parent-death signal and ignores SIGPIPE; so does CPython.
    """

    _living: ClassVar[set[Child]] = set()
    _guard: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self) -> None:
        command = [sys.executable, "-c", "import time; time.sleep(1e8)", "llama-server"]
        nowhere = subprocess.DEVNULL
        with self._guard:
            self._process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
            self._living.add(self)

    def alive(self) -> bool:
        """Whether nobody has killed it."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        with self._guard:
            self._living.discard(self)
            self._process.kill()
            self._process.wait()

    @classmethod
    def end_all(cls) -> None:
        """Kill what is left; none starts after that, so only a process that is about to exit may call this."""
        cls._guard.acquire()
        for child in list(cls._living):
            child.end()
