"""What else runs on the machine while servers of ours are measured: other users of the GPU and of the processor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from pytest_llmperf import gpu, quiet
from pytest_llmperf.instance import Instance
from pytest_llmperf.model import DisturbedError, LlmperfError

Say = Callable[[str], None]

_LOOK_S = 1.0
_PATIENCE_S = 30.0


class Surroundings:
    """Watches over real servers of ours; over emulators and over servers that ran already there is nothing to watch.

    `quiet_wait_s` is how long to wait for a quiet machine, None: nobody looks. Other load counts only where layers are
    `on_processor`.
    """

    def __init__(self, instances: Sequence[Instance], quiet_wait_s: float | None, say: Say) -> None:
        self._instances, self._limit_s, self._say = instances, quiet_wait_s, say
        self._watching = quiet_wait_s is not None and all(each.ours and not each.emulated for each in instances)
        self.on_processor = False
        self._gpus: gpu.Activity | None = None
        self._cpu: quiet.Cpu | None = None

    def refuse_crowded(self, instance: Instance, need: int) -> None:
        """Raise LlmperfError that names who holds the GPU's memory where `need` bytes of weights find no room.

        The check before loading of Extended Appendices Y.3, by what is sure: the weights; caches come on top.
        """
        if self._watching and (sentence := gpu.crowded(need, gpu.visible([instance.gpu]), self._ours())):
            raise LlmperfError(f"{instance.name}: {sentence}")

    @contextmanager
    def announced(self, what: str) -> Iterator[None]:
        """Say what is waited for in the block, if that takes long."""
        timer = threading.Timer(_PATIENCE_S, self._say, [f"llmperf: waiting for {what}"])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def settle(self) -> None:
        """Wait for a quiet machine; DisturbedError where it does not get quiet."""
        if not self._watching or self._limit_s is None:
            return
        if noise := quiet.await_quiet(self._noise, self._limit_s, self._say):
            problem = f"the machine did not get quiet within {self._limit_s:g} s: {noise}"
            raise DisturbedError(f"{problem}; end what is busy, or set llmperf_quiet_wait = off to measure beside it")

    def begin(self) -> None:
        """A run begins now."""
        if self._watching:
            self._gpus, self._cpu = gpu.Activity(self._visible), quiet.Cpu(self._ours)

    def disturbance(self) -> str:
        """What used the machine besides us since then, in words; "" if nothing did that counts."""
        if not (self._gpus and self._cpu):
            return ""
        if foreign := self._gpus.foreign(self._ours()):
            return f"other processes used the GPU ({', '.join(foreign)})"
        share = self._cpu.others() if self.on_processor else 0.0
        return f"other processes used {100 * share:.0f} % of the cores" if share > quiet.BUSY else ""

    def _noise(self) -> str:
        """What is noisy within the next second."""
        users, noise = gpu.Activity(self._visible), ""
        if self.on_processor:
            noise = quiet.noise(_LOOK_S, self._ours)
        elif self._visible:
            time.sleep(_LOOK_S)
        foreign = users.foreign(self._ours())
        return f"other processes use the GPU ({', '.join(foreign)})" if foreign else noise

    @cached_property
    def _visible(self) -> list[int]:
        """The GPUs that count: on one that no instance sees, somebody else may measure at the same time."""
        return [each.index for each in gpu.visible([each.gpu for each in self._instances])]

    def _ours(self) -> list[int]:
        return [os.getpid(), *(each.pid for each in self._instances)]
