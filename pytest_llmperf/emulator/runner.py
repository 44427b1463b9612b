"""A loaded model, and the queue in front of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from pytest_llmperf.emulator.device import Claim
from pytest_llmperf.emulator.models import Model
from pytest_llmperf.emulator.options import LoadOptions
from pytest_llmperf.emulator.placement import Placement
from pytest_llmperf.emulator.process import UNEXPECTED_EOF, Process, RunnerError


class Fifo:
    """A semaphore as a context manager that serves in order of arrival, which threading.Semaphore does not promise."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._guard = threading.Lock()

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._guard:
            if self._free:
                self._free -= 1
                return
            self._waiting.append(turn)
        turn.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Pace:
    """Steps that end at absolute deadlines: a late wake-up shortens the next sleep instead of adding up.

    `share` is asked at every step which part of its solo speed the stream has now.
    """

    def __init__(self, share: Callable[[], float]) -> None:
        self._share = share
        self._deadline = time.perf_counter()

    def step(self, seconds: float) -> None:
        """Sleep until the end of a step that takes `seconds` alone; return at once when that has passed."""
        self._deadline += seconds / self._share()
        delay = self._deadline - time.perf_counter()
        if delay > 0:
            time.sleep(delay)


@dataclass(kw_only=True)
class Runner:
    """One loaded model. A retiring runner takes no new requests.

    It may stay for `keep_alive` seconds after a request; when that ends is `expires`, in seconds since the epoch.
    """

    model: Model
    name: str
    load: LoadOptions
    placement: Placement
    claim: Claim
    slots: Fifo
    process: Process
    keep_alive: float
    users: int = 0
    expires: float = 0.0
    retiring: bool = False

    def accepts(self, asked: LoadOptions) -> bool:
        """Whether a request with these load-time options needs no reload."""
        return not self.retiring and self.process.alive() and self.load.serve(asked)

    def use(self, keep_alive: float | None) -> None:
        """Take a request; its `keep_alive` replaces what an earlier one has set, None leaves that as it is."""
        self.users += 1
        if keep_alive is not None:
            self.keep_alive = keep_alive
        self.renew()

    def renew(self) -> None:
        """Let the time it may stay begin now."""
        self.expires = time.time() + self.keep_alive

    def check(self) -> None:
        """RunnerError where the model's process is gone."""
        if not self.process.alive():
            raise RunnerError(UNEXPECTED_EOF)

    def share(self) -> float:
        """The part (0, 1] of the model's solo rate that each of its streams gets at this moment."""
        return self.claim.share() * self.placement.speed

    def over(self) -> bool:
        """Whether nobody uses it and its time has come."""
        return not self.users and (self.retiring or time.time() >= self.expires)
