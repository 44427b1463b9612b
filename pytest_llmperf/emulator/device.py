"""The emulated GPU: who is active on it across processes, what part of its speed each gets, and who holds its memory.

Every loaded model holds a claim: a record in the device's file and an OS lock on a byte that stands for it. A record
whose lock can be had belongs to a process that died, and is cleared by whoever notices.
"""

from __future__ import annotations

import getpass
import mmap
import os
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from pytest_llmperf.emulator.locks import ByteLocks
from pytest_llmperf.emulator.options import LoadOptions

_CLAIMS = 64
_RECORD = struct.Struct("<QIiiI")  # bytes of memory, active streams, then a Demand
_SIZE = _CLAIMS * _RECORD.size
_LOCKS = 1 << 20  # beyond the records: Windows lets nobody read a byte that another process has locked
_TURN, _ALLOCATION = _LOCKS + _CLAIMS, _LOCKS + _CLAIMS + 1

_EQUAL, _UNEQUAL = 0.90, 0.97  # of one agent's rate, in total: TR116 has 45 + 45 and 42 + 55 of 100 tok/s
_HEAVY, _LIGHT = 42, 55
_BATCH_GAIN = 0.678  # two streams in one batch make 2 ** 0.678 = 1.6 times the tokens of one


class Demand(NamedTuple):
    """The load-time options of a claim, as far as they weigh; `rest` is 0 where the others are at their defaults."""

    num_ctx: int
    num_gpu: int
    rest: int

    @classmethod
    def of(cls, load: LoadOptions) -> Demand:
        """What a model loaded with `load` demands."""
        plain = LoadOptions(load.num_ctx, num_gpu=load.num_gpu)
        return cls(load.num_ctx, load.num_gpu, 0 if load == plain else zlib.crc32(repr(load).encode()) | 1)


def share(mine: Demand, others: Sequence[Demand]) -> float:
    """The part (0, 1] of its solo rate that a claim gets beside the `others` that are active.

    Equal demands split 0.9 evenly; unequal ones split 0.97, the lightest with a weight of 55 and the rest with 42. The
    lightest has the smallest context, then the most GPU layers asked for, then options that are not the defaults.
    """
    if not others:
        return 1.0
    if all(other == mine for other in others):
        return _EQUAL / (len(others) + 1)
    lightest = min((mine, *others), key=lambda d: (d.num_ctx, -d.num_gpu, not d.rest, d.rest))
    weights = [_LIGHT if demand == lightest else _HEAVY for demand in (mine, *others)]
    return _UNEQUAL * weights[0] / sum(weights)


def _user() -> str:
    if sys.platform == "win32":
        return getpass.getuser()
    return str(os.getuid())


class Device:
    """One emulated GPU with `memory` bytes as this process sees it.

    With `serial` it runs one stream at a time, whoever it belongs to.
    """

    def __init__(self, name: str, memory: int, *, serial: bool = False) -> None:
        folder = Path(tempfile.gettempdir(), f"pytest-llmperf-emulated-{_user()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(descriptor).st_size < _SIZE:
            os.ftruncate(descriptor, _SIZE)
        self._records = mmap.mmap(descriptor, _SIZE)
        self._locks = ByteLocks(descriptor)
        self._memory = memory
        self._mine: set[int] = set()
        self._guard, self._allocating = threading.Lock(), threading.Lock()
        self._serial = threading.Lock() if serial else None

    @contextmanager
    def allocation(self) -> Iterator[int]:
        """The bytes that are free, and nobody else can claim any of them while the block runs."""
        with self._alone(self._allocating, _ALLOCATION):
            yield self.free()

    def claim(self, demand: Demand, memory: int) -> Claim:
        """A place on the device and `memory` bytes of it; RuntimeError when all 64 places are taken."""
        with self._guard:
            for slot in range(_CLAIMS):
                if slot not in self._mine and self._locks.try_acquire(_LOCKS + slot):
                    self._mine.add(slot)
                    return Claim(self, slot, demand, memory)
        raise RuntimeError(f"all {_CLAIMS} places of the emulated device are taken: unload a model or stop a server")

    def release(self, slot: int) -> None:
        """Give a claim's place back."""
        with self._guard:
            self._clear(slot)
            self._mine.remove(slot)
            self._locks.release(_LOCKS + slot)

    def publish(self, slot: int, memory: int, active: int, demand: Demand) -> None:
        """Let every instance know what bytes a claim holds and how many of its streams are active."""
        self._records[slot * _RECORD.size : (slot + 1) * _RECORD.size] = _RECORD.pack(memory, active, *demand)

    def free(self) -> int:
        """Bytes that no claim holds; 0 where another process takes the device for larger and has filled it."""
        records = _RECORD.iter_unpack(self._records[:_SIZE])
        taken: int = sum(memory for slot, (memory, *_) in enumerate(records) if memory and self._alive(slot))
        return max(0, self._memory - taken)

    def others(self, mine: int) -> list[Demand]:
        """The demands of the active claims beside `mine`."""
        records = _RECORD.iter_unpack(self._records[:_SIZE])
        return [
            Demand(*demand)
            for slot, (_, active, *demand) in enumerate(records)
            if active and slot != mine and self._alive(slot)
        ]

    def turn(self) -> AbstractContextManager[None]:
        """Wait for the whole device if it is serial; else don't."""
        return nullcontext() if self._serial is None else self._alone(self._serial, _TURN)

    @contextmanager
    def _alone(self, thread: threading.Lock, offset: int) -> Iterator[None]:
        with thread:
            self._locks.acquire(offset)
            try:
                yield
            finally:
                self._locks.release(offset)

    def _clear(self, slot: int) -> None:
        self.publish(slot, 0, 0, Demand(0, 0, 0))

    def _alive(self, slot: int) -> bool:
        with self._guard:
            if slot in self._mine or not self._locks.try_acquire(_LOCKS + slot):
                return True
            self._clear(slot)
            self._locks.release(_LOCKS + slot)
            return False


class Claim:
    """A loaded model's place on the device. Its streams run as one batch and count as one beside other claims."""

    def __init__(self, device: Device, slot: int, demand: Demand, memory: int) -> None:
        self._device, self._slot, self._demand, self._memory = device, slot, demand, memory
        self._active = 0
        self._guard = threading.Lock()
        self._add(0)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One active stream for as long as the block runs."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def share(self) -> float:
        """The part of the model's solo rate that each stream of this claim gets at this moment."""
        part = share(self._demand, self._device.others(self._slot))
        return part * float(self._active ** (_BATCH_GAIN - 1))

    def release(self) -> None:
        """Leave the device."""
        self._device.release(self._slot)

    def _add(self, streams: int) -> None:
        with self._guard:
            self._active += streams
            self._device.publish(self._slot, self._memory, self._active, self._demand)
