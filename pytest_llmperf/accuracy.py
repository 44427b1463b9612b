"""How exact a measurement's times are, by its own evidence: three stamps of every chunk. Standard library only.

The server's own (`created_at` of its lines), the kernel's when the bytes arrived, and the one taken after the read: the
first two differ by what the server and the network take, the last two by what the harness adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pytest_llmperf.traffic import Run


class Spread(NamedTuple):
    """Median, 99th percentile and maximum, in seconds."""

    median: float
    p99: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What some runs tell of their own times, in seconds.

    `late` is how long after their arrival bytes were read, None without stamps of the kernel: then times are those of
    the reads. `behind` is how long after the server's own stamp bytes arrived, None where it sends none or where its
    clock is another. `skew` is how late the last agent began, at most; `merged` the share of chunks that came in a
    read with others, whose gaps don't count.
    """

    late: Spread | None
    behind: Spread | None
    skew: float
    merged: float


def of(runs: Sequence[Run]) -> Accuracy | None:
    """The accuracy of these runs together, None of none."""
    if not runs:
        return None
    exchanges = [exchange for run in runs for exchange in run.exchanges]
    behind = _spread([delay for exchange in exchanges for delay in exchange.behind])
    chunks = sum(exchange.chunks for exchange in exchanges)
    return Accuracy(
        late=_spread([delay for run in runs for delay in run.late]),
        behind=behind if behind and behind.median >= 0 else None,
        skew=max(run.skew for run in runs),
        merged=sum(exchange.merged for exchange in exchanges) / chunks if chunks else 0.0,
    )


def _spread(delays: Sequence[float]) -> Spread | None:
    if not delays:
        return None
    ranked = sorted(delays)
    median, p99 = (ranked[int(share * (len(ranked) - 1))] for share in (0.5, 0.99))
    return Spread(median, p99, ranked[-1])
