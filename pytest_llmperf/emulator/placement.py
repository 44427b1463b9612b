"""How much of the device a model takes, and what is left of its speed where not all of that is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_llmperf.emulator.models import Model
from pytest_llmperf.emulator.options import LoadOptions

_GPU_BANDWIDTH, _CPU_BANDWIDTH = 432.0, 89.6  # GB/s: GDDR6 of an RTX 4080 Laptop GPU, two channels of DDR5-5600


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model lies. `size` is bytes of weights and of the context's cache, spread evenly over its `total` layers.

    `asked` of them, the output layer among them, are to be on the GPU, and `layers` are.
    """

    size: int
    total: int
    asked: int
    layers: int

    @property
    def size_vram(self) -> int:
        """Bytes on the GPU."""
        return self.size * self.layers // self.total

    @property
    def spilled(self) -> int:
        """Layers that were to be on the GPU and found no room there."""
        return self.asked - self.layers

    @property
    def speed(self) -> float:
        """The part (0, 1] of the model's rate that spilled layers leave.

        Decoding reads every weight once a token, so a spilled layer takes as much longer as memory is slower than VRAM;
        prefill gets the same factor. Layers that were never asked for cost nothing.
        """
        slow = self.spilled / self.total
        return 1 / (1 - slow + slow * _GPU_BANDWIDTH / _CPU_BANDWIDTH)

    def within(self, free: int) -> Placement:
        """The same with as many of the asked-for layers on the GPU as fit into `free` bytes."""
        return replace(self, layers=min(self.asked, free * self.total // self.size))


def asked(model: Model, load: LoadOptions, slots: int) -> Placement:
    """What a load asks for: the caches of `slots` contexts, and `num_gpu` layers on the GPU or, with -1, all."""
    total = model.layers + 1
    layers = total if load.num_gpu < 0 else min(load.num_gpu, total)
    size = model.size + model.kv_bytes * load.num_ctx * slots
    return Placement(size=size, total=total, asked=layers, layers=layers)
