"""Release agents together and run them side by side: one thread each, all asleep until one deadline."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar

from pytest_llmperf.stamps import Offsets

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

LEAD_S = 0.01
"""From the last agent's arrival to the release: a woken thread needs up to some ms on a busy machine."""


class Client(Protocol[R_co]):
    """What an agent is to the release: something to get ready, and something to do from a given moment on."""

    def prepare(self) -> None:
        """Everything that must not count: connections, encoded requests."""

    def work(self, released: float) -> R_co:
        """The agent's run; `released` is the common release on `time.perf_counter()`, in seconds."""

    def close(self) -> None:
        """Give back what `prepare` opened: called when a client is prepared in vain; `work` cleans up after itself."""

    def abort(self) -> None:
        """Let `work`, which another thread is in, come to an end at once."""


class Together(NamedTuple, Generic[R]):
    """The common release on `time.perf_counter()`, each client's result in order, and the clocks around the run."""

    release: float
    results: list[R]
    offsets: Offsets


def run_together(clients: Sequence[Client[R]]) -> Together[R]:
    """Run all clients from one common release.

    Raises what the first failing client raised, at once; the others are aborted then, as they are by Ctrl-C.
    """
    _prepare(clients)
    release = _Release(len(clients))
    pool = ThreadPoolExecutor(len(clients), thread_name_prefix="llmperf-agent")
    try:
        with _no_collection():
            before = _offset()
            futures = [pool.submit(_after, release, client) for client in clients]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future in ended and future.exception()]
            results = [future.result() for future in failed or futures]
            after = _offset()
    except BaseException:
        for client in clients:
            client.abort()
        raise
    finally:
        pool.shutdown(wait=False)
    return Together(release.deadline, results, Offsets(before, after))


def _offset() -> float:
    """What to add to `time.perf_counter()` for seconds since the epoch, from the closest of a few pairs of looks."""
    looks = []
    for _ in range(5):
        before, at, after = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
        looks.append((after - before, at - (before + after) // 2))
    return min(looks)[1] / 1e9


def _prepare(clients: Sequence[Client[R]]) -> None:
    with ExitStack() as in_vain:
        for client in clients:
            in_vain.callback(client.close)
            client.prepare()
        in_vain.pop_all()


class _Release:
    """A barrier whose last arrival sets the deadline that all then sleep for."""

    def __init__(self, parties: int) -> None:
        self.deadline = 0.0
        self._barrier = threading.Barrier(parties, action=self._set)

    def _set(self) -> None:
        self.deadline = time.perf_counter() + LEAD_S

    def wait(self) -> float:
        self._barrier.wait(timeout=60)
        time.sleep(max(0.0, self.deadline - time.perf_counter()))
        return self.deadline


def _after(release: _Release, client: Client[R]) -> R:
    return client.work(release.wait())


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timed window: a full collection stops all agents' threads."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
