"""`python -m pytest_llmperf.keeper FOLDER`: waits for its owner's end, then clears the owner's folder and processes.

A process of its own, because nobody can clear up after a SIGKILL of himself. Its stdin is a pipe whose other end the
owner has; a process that the owner forked may have it too, so the keeper also looks who its parent is. As long as the
owner lives it sees to it that no server's log fills the disk. An owner that has cleared up itself kills it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

LOG_LIMIT, LOG_KEPT = 64 << 20, 1 << 20
"""A log longer than this many bytes is cut to its first ones, which hold how the server started."""

_LOOK_S = 0.5
_EXEC_S = 0.2
"""A server that its owner had just forked carries the mark from exec on."""


def main(folder: Path) -> None:
    """Keep watch while the owner lives; nothing is imported before that need not be: a measurement may be running."""
    ended, owner = threading.Event(), os.getppid()
    threading.Thread(target=_await_end_of_stdin, args=(ended,), daemon=True).start()
    while not ended.wait(_LOOK_S) and os.getppid() == owner:
        for log in folder.glob("*/*.log"):
            _curb(log)
    time.sleep(_EXEC_S)
    from pytest_llmperf.scratch import clear  # noqa: PLC0415

    clear(folder)


def _await_end_of_stdin(ended: threading.Event) -> None:
    os.read(0, 1)  # nobody writes; sys.stdin has a lock, without which the interpreter does not end
    ended.set()


def _curb(log: Path) -> None:
    with suppress(OSError):
        if log.stat().st_size > LOG_LIMIT:
            os.truncate(log, LOG_KEPT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
