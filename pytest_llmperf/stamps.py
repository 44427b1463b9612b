"""When bytes arrived: the kernel's receive stamps brought to the clock of the process. Standard library only.

A kernel's stamp is within 82 us (p99) of the sending where one taken after the read needs 300, and within 46 instead of
5,700 with every core busy: it does not wait for the reader to wake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pytest_llmperf.traffic import Read, Recording

MOST_DRIFT_S = 50e-6
"""The clock of the kernel's stamps may be stepped or slewed during a run; by more than this, and they are dropped."""


class Offsets(NamedTuple):
    """What to add to `time.perf_counter()` for seconds since the epoch, before and after a run."""

    before: float
    after: float


def at_arrival(recordings: Sequence[Recording], offsets: Offsets) -> list[Recording]:
    """The recordings of a run with every read at its kernel's stamp.

    A read keeps the stamp taken after it where the kernel gave none, where the clocks drifted apart, or where the
    kernel's lies outside the time that was waited for it.
    """
    if abs(offsets.after - offsets.before) > MOST_DRIFT_S:
        return list(recordings)
    epoch = sum(offsets) / 2
    return [replace(each, reads=_reads(each, epoch), epoch=epoch) for each in recordings]


def _reads(recording: Recording, offset: float) -> tuple[Read, ...]:
    reads, earliest = list[Read](), recording.sent
    for read in recording.reads:
        at = read.kernel_ns / 1e9 - offset
        arrived = at if read.kernel_ns and earliest <= at <= read.at else read.at
        reads.append(read._replace(at=arrived, late=read.at - arrived))
        earliest = arrived
    return tuple(reads)
