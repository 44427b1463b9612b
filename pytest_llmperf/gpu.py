"""NVIDIA GPUs through NVML: their memory, who holds it, who uses them.

Without the library `nvidia-ml-py` (the extra `gpu`), without a driver or without permission there are no GPUs to ask.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

try:
    import pynvml
except ImportError:
    pynvml = None

IDLE = 3
"""% of a GPU's time up to which a process counts as idle: a desktop draws now and then; a margin is 5 % if not set."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a GPU's memory.

    `used` in bytes, None where the driver does not tell (Windows). `name` is that of its systemd service, such as
    `ollama.service`, else the program's.
    """

    pid: int
    used: int | None
    name: str


@dataclass(frozen=True)
class Gpu:
    """A GPU now; `total` and `free` memory in bytes. The index is NVML's: CUDA may count in another order."""

    index: int
    uuid: str
    name: str
    total: int
    free: int
    holders: tuple[Holder, ...]


def gpus() -> list[Gpu]:
    """The GPUs that can be asked."""
    found = list[Gpu]()
    for index, device in _devices().items():
        with suppress(pynvml.NVMLError):
            name, uuid = pynvml.nvmlDeviceGetName(device), pynvml.nvmlDeviceGetUUID(device)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            found.append(Gpu(index, uuid, name, memory.total, memory.free, _holders(device)))
    return found


def named(name: str, known: Sequence[Gpu]) -> Gpu | None:
    """The GPU that a test means by its index or by the beginning of its UUID; None if that is none or several.

    A beginning with `GPU-` that no other has is as good as the whole ("CUDA C++ Programming Guide", environment
    variables); lower case is another UUID.
    """
    meant = [gpu for gpu in known if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))]
    return meant[0] if len(meant) == 1 else None


def visible(pins: Collection[str | None]) -> list[Gpu]:
    """The GPUs that servers see together, each of which is pinned to one of `pins`, or to None and sees all."""
    known = gpus()
    return known if None in pins else [gpu for gpu in known if gpu in [named(pin or "", known) for pin in pins]]


def _holders(device: Any) -> tuple[Holder, ...]:  # noqa: ANN401 - a pointer of NVML's
    """Who computes and who draws on a GPU; a process that does both is in both of NVML's lists."""
    used = dict[int, int | None]()
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        with suppress(pynvml.NVMLError):
            used |= {process.pid: process.usedGpuMemory for process in ask(device)}
    return tuple(Holder(pid, amount, _name(pid) or "an unseen process") for pid, amount in used.items())


def _devices() -> dict[int, Any]:
    """NVML's handles by index; of a GPU that was lost, and after the driver was, there is none."""
    devices = dict[int, Any]()
    if _ready():
        with suppress(pynvml.NVMLError):
            for index in range(pynvml.nvmlDeviceGetCount()):
                with suppress(pynvml.NVMLError):
                    devices[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
    return devices


@cache
def _ready() -> bool:
    """Open NVML once and for good: a GPU that nobody has open takes 1-3 s to wake (NVIDIA, "Driver Persistence")."""
    if pynvml is None:
        return False
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


class Activity:
    """Which processes use GPUs, from now on. To hold memory is not to use: an idle server or a desktop always does.

    `watched` are the indexes of the GPUs that count, None: all.
    """

    def __init__(self, watched: Collection[int] | None = None) -> None:
        self._watched = watched
        self._seen = dict.fromkeys(_devices(), _now_us())

    def foreign(self, ours: Collection[int]) -> list[str]:
        """Who used a GPU since this was made or last asked, with the share of its time, e.g. `ollama.service 43 %`.

        `ours` are process ids; their descendants are ours too. Nothing where NVML can't tell (Windows, WSL, a virtual
        GPU). Nobody is named whose process does not exist here: it has ended, or this is a container and NVML counts
        as the host does; either way it may be one of ours.
        """
        shares = Counter[str]()
        for index, device in _devices().items():
            if self._watched is None or index in self._watched:
                for pid, share in self._shares(index, device).items():
                    if (name := _name(pid)) and not _is_ours(pid, ours):
                        shares[name] += share
        return [f"{name} {share} %" for name, share in shares.most_common() if share > IDLE]

    def _shares(self, index: int, device: Any) -> dict[int, int]:  # noqa: ANN401 - a pointer of NVML's
        """Each process's % of the GPU's time since last asked; NVML averages, one sample for each process."""
        now = _now_us()
        seen, self._seen[index] = self._seen.get(index, now), now
        with suppress(pynvml.NVMLError):  # "not found": no samples since then
            samples = pynvml.nvmlDeviceGetProcessUtilization(device, seen)
            # Some drivers add empty or absurd samples (nvtop issue 110).
            fresh = [sample for sample in samples if sample.timeStamp > seen and sample.smUtil <= 100]
            self._seen[index] = max((sample.timeStamp for sample in fresh), default=now)
            return {sample.pid: sample.smUtil for sample in fresh}
        return {}


def _now_us() -> int:
    return time.time_ns() // 1000


def _name(pid: int) -> str:
    """The systemd service of a process, else its program; "" if there is no such process here."""
    with suppress(OSError):
        if service := _service(Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace")):
            return service
    with suppress(psutil.Error):
        return psutil.Process(pid).name()
    return ""


def _service(cgroups: str) -> str:
    """The service that cgroups end in; a program that a user started ends in a scope or a session."""
    found = re.search(r"^\d+:(?:name=systemd)?:/.*?([^/\n]+\.service)$", cgroups, re.MULTILINE)
    return found[1] if found else ""


def _is_ours(pid: int, ours: Collection[int]) -> bool:
    """Whether a process or one of its ancestors is ours."""
    with suppress(psutil.Error):
        return pid in ours or any(parent.pid in ours for parent in psutil.Process(pid).parents())
    return False


def crowded(need: int, gpus: Sequence[Gpu], ours: Collection[int]) -> str:
    """Why `need` bytes don't fit into the free memory of these GPUs together, in one sentence; "" if they do.

    Together, because Ollama splits a model over several. `ours` as for `Activity.foreign`.
    """
    free, total = sum(gpu.free for gpu in gpus), sum(gpu.total for gpu in gpus)
    if need <= free or not gpus:
        return ""
    names = " and ".join(gpu.name for gpu in gpus)
    if need > total:
        have = "the GPU has" if len(gpus) == 1 else "the GPUs have"
        remedy = "declare smaller models, num_ctx or num_gpu"
        return f"the models need about {_gb(need)} GB and {have} {_gb(total)} GB in all ({names}); {remedy}"
    found = f"the models need about {_gb(need)} GB and {_gb(free)} of {_gb(total)} GB are free on {names}"
    holders = _held([holder for gpu in gpus for holder in gpu.holders if not _is_ours(holder.pid, ours)])
    return f"{found}{holders}; stop what holds the memory, or declare smaller num_ctx or num_gpu"


def _held(holders: Sequence[Holder]) -> str:
    """Who holds how much, the five largest first."""
    held = Counter[str]()
    for holder in holders:
        service = holder.name.endswith(".service")
        held[holder.name if service else f"{holder.name} (pid {holder.pid})"] += holder.used or 0
    each = [f"{who} holds {f'{_gb(used)} GB' if used else 'an unknown part'}" for who, used in held.most_common(5)]
    rest = [f"{len(held) - 5} more hold less"] if len(held) > 5 else []
    return f": {', '.join(each + rest)}" if each else ""


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
