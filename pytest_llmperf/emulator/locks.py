"""Locks that die with their process."""

from __future__ import annotations

import os
import sys
import threading
import time

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class ByteLocks:
    """Exclusive locks on single bytes of an open file, which the operating system drops when their process ends.

    They exclude processes, not threads: callers keep their own threads apart.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = threading.Lock()  # msvcrt locks at the file position, which threads share

    def acquire(self, offset: int) -> None:
        """Wait until the byte at `offset` is ours."""
        if sys.platform == "win32":
            while not self.try_acquire(offset):
                time.sleep(0.001)
        else:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, offset)

    def try_acquire(self, offset: int) -> bool:
        """Whether the byte at `offset` is ours now; does not wait."""
        try:
            if sys.platform == "win32":
                self._msvcrt(msvcrt.LK_NBLCK, offset)
            else:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, offset: int) -> None:
        """Give the byte at `offset` back."""
        if sys.platform == "win32":
            self._msvcrt(msvcrt.LK_UNLCK, offset)
        else:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, offset)

    if sys.platform == "win32":

        def _msvcrt(self, mode: int, offset: int) -> None:
            with self._position:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                msvcrt.locking(self._descriptor, mode, 1)
