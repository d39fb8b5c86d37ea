"""How one optimizer step is laid over the hardware."""

from __future__ import annotations

from typing import Literal

from narrows.spec.fleet import Exchange, Offload, Schedule, Sharding, refuse
from narrows.spec.machine import KernelSet
from narrows.spec.record import Record

Recompute = Literal["none", "full", "selective"]
"""What of a block is computed again in the backward pass; selective, all but products and attention
(arXiv:2205.05198, which drops what is large and cheap to make).
"""
RECOMPUTES: tuple[Recompute, ...] = ("none", "full", "selective")


class Layout(Record):
    """Every choice that changes speed and memory but not what is learned.

    `micro_batch` sequences go through the model at once, `accumulation` times a step. `precision`
    is that of weights in products and of activations; masters and moments are fp32. `loss_chunk` is
    the number of positions whose logits exist at once. `recompute` drops a block's activations, or
    some, and computes them again in the backward pass.

    Of several processes each is at one place of replicas · data · tensor · pipeline · context; the
    names mean what they do in `fleet.Spread`. `threads` are those of one process.

    `offload` keeps what the optimizer keeps in the host's memory, or on a disk in files: in the
    run's folder, or in `offload_folder`.
    """

    micro_batch: int
    accumulation: int
    precision: Literal["fp32", "bf16"]
    recompute: Recompute
    compile: bool
    kernels: KernelSet
    threads: int
    loss_chunk: int
    data: int = 1
    replicas: int = 1
    tensor: int = 1
    pipeline: int = 1
    interleave: int = 1
    context: int = 1
    expert: int = 1
    sharding: Sharding = "none"
    reshard: bool = True
    schedule: Schedule = "1f1b"
    exchange: Exchange = "ring"
    sequence_parallel: bool = True
    first_fewer: int = 0
    last_fewer: int = 0
    offload: Offload = "none"
    offload_folder: str | None = None

    def __post_init__(self) -> None:
        refuse(self, self.schedule, self.interleave)

    @property
    def processes(self) -> int:
        """Processes that it takes."""
        return self.replicas * self.data * self.tensor * self.pipeline * self.context

    @property
    def batches(self) -> int:
        """Ranks that read different sequences."""
        return self.replicas * self.data
