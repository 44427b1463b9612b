"""What went over the wire, and what it says of one run: recordings, their lines, exchanges, tracks.

Standard library only. Recordings carry `time.perf_counter()` seconds; from `Exchange` on, times are seconds since the
common release of the run's agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Read(NamedTuple):
    """What one read of a socket gave, and when.

    `kernel_ns` is the kernel's receive stamp in ns since the epoch, 0 without one; `late` how many seconds after the
    bytes' arrival their reader had them, as far as the kernel's stamp tells.
    """

    at: float
    data: bytes
    kernel_ns: int = 0
    late: float = 0.0


@dataclass(frozen=True)
class Recording:
    """One request as it went over the wire: when it was due, when it was sent, and every read with its stamp.

    `epoch` is what makes seconds since the epoch of its stamps, 0 where it is not known.
    """

    released: float
    sent: float
    reads: tuple[Read, ...]
    epoch: float = 0.0


@dataclass(frozen=True)
class Line:
    """One line of the response body; `alone` is whether its read carried no other line: then its stamp is its own."""

    at: float
    text: str
    alone: bool


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request of an agent: as its client saw it, and as the server reported it.

    `gaps` are seconds between streamed chunks that arrived in reads of their own. `server` holds the durations the
    server reported, in seconds, by Ollama's names without `_duration` (total, load, prompt_eval, eval). Of the
    `prompt` tokens, `cached` came from the server's prompt cache; 0 too where it does not say. Of the `chunks` that
    carry text `merged` came in a read with others; `behind` is how long after the server's own stamp each arrived.
    """

    released: float
    first_token: float
    ended: float
    gaps: tuple[float, ...]
    tokens: int
    budget: int
    server: Mapping[str, float]
    prompt: int = 0
    cached: int = 0
    chunks: int = 0
    merged: int = 0
    behind: tuple[float, ...] = ()

    @property
    def from_cache(self) -> bool:
        """Whether the server had the whole prompt in its cache: it evaluates one token at least."""
        return self.cached > 0 and self.cached >= self.prompt - 1

    @property
    def short(self) -> bool:
        """Whether the model stopped before its token budget."""
        return self.tokens < self.budget


@dataclass(frozen=True, kw_only=True)
class Track:
    """One agent's requests in one run, in order."""

    agent: str
    exchanges: tuple[Exchange, ...]

    @property
    def duration(self) -> float:
        """Seconds from the common release to the agent's last byte, waiting included."""
        return self.exchanges[-1].ended

    @property
    def tokens(self) -> int:
        """Tokens generated, thinking included."""
        return sum(exchange.tokens for exchange in self.exchanges)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All agents released together once. `skew` is how late the last agent sent its first request, in seconds.

    `late` is how long after their arrival bytes were read, in seconds, one for each read that the kernel stamped.
    """

    tracks: tuple[Track, ...]
    skew: float = 0.0
    late: tuple[float, ...] = ()

    @property
    def makespan(self) -> float:
        """Seconds from the common release until the last agent has ended."""
        return max(track.duration for track in self.tracks)

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All requests of all agents."""
        return tuple(exchange for track in self.tracks for exchange in track.exchanges)
