"""Many equal devices and what joins them, as published: what is planned for without having it."""

from __future__ import annotations

import re
from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.machine import Basis, Fact, Machine
from narrows.spec.record import Record, at_least
from narrows.spec.units import (
    Bytes,
    BytesPerSecond,
    DollarsPerHour,
    FlopPerSecond,
    GramsPerKilowattHour,
    Seconds,
    Watts,
)

Format = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8", "int4"]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "fp4"]
"""What weights are trained in."""
_USUAL: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
Sharding = Literal["none", "optimizer", "gradients", "parameters"]
Recompute = Literal["none", "selective", "full", "pointwise"]
"""What is computed again backward: nothing, attention's scores (arXiv:2205.05198), whole blocks, or
norms and activations alone.
"""
Schedule = Literal["1f1b", "gpipe", "zero_bubble"]
"""Of a pipeline: one forward and one backward in turn (arXiv:2104.04473), all forwards first
(arXiv:1811.06965), or backward passes cut in two and stages in a V (arXiv:2401.10241).
"""
Placement = Literal["pipeline_outermost", "data_outermost"]
"""Which ranks are neighbours, innermost first: tensor, context, data, pipeline, as Megatron places
them; or tensor, pipeline, context, data.
"""
Exchange = Literal["ring", "all_to_all"]
"""How ranks of a context meet all keys: keys go around (arXiv:2310.01889), or heads are dealt out
(arXiv:2309.14509).
"""
Offload = Literal["none", "host", "disk"]
Fusion = Literal["eager", "fused", "compiled"]
"""Memory-bound operations one by one, fused by hand, or by a compiler."""


# "7900 xtx" is a name and no count.
_COUNT = r"(?:(\d+)\s*x(?!tx?\b)\s*)?"
_COUNTED = re.compile(rf"^\s*{_COUNT}{_COUNT}(.*?)\s*$", re.IGNORECASE)


def counted(name: str) -> tuple[int | None, int | None, str]:
    """The counts before a fleet's name and what they count: "16x8xh100-sxm" is (16, 8, "h100-sxm"),
    of one count the second is None.
    """
    match = _COUNTED.match(name)
    assert match is not None
    first, second, what = match.groups()
    return int(first) if first else None, int(second) if second else None, what


class Reach(Record):
    """What a device keeps up in whole training steps, as shares of its data sheet. Within less
    power than the figures of its architecture are for, `clock` of its products' rates remains.

    A product of (m,k) @ (k,n) takes 2 (m+half)(n+half)(k+half) / (peak · matmul) seconds;
    `narrow` multiplies `matmul` for formats below 16 bits, `plain` where none are fused by
    hand, `biased` attention where a bias is added to the scores.

    Large sums over all ranks keep `links` of a domain's bandwidth by a ring, and `switched` of it
    where the switch adds them up (NVIDIA, NVLink SHARP, 2022); 0 where none does.
    """

    matmul: float
    half: float
    narrow: float
    plain: float = 1.0
    attention_forward: float
    attention_backward: float
    biased: float
    memory: float
    links: float = 0.7
    switched: float = 0.0
    clock: float = 1.0
    source: str
    basis: Basis = "assumed"


class Domain(Record):
    """What joins `devices`: bandwidth of one device in one direction over all its links."""

    name: str
    devices: int
    bandwidth: Fact[BytesPerSecond]
    latency: Fact[Seconds]


class Fleet(Record):
    """`devices` equal accelerators; `domains` from the innermost, the last joins all of them.

    `host_memory` is a node's. `machine` is the one at hand, where the fleet is that: its own curves
    are known.
    """

    name: str
    accelerator: str
    kind: str
    architecture: str
    devices: int
    devices_per_node: int
    peak: dict[str, Fact[FlopPerSecond]]
    reach: Reach
    memory_capacity: Fact[Bytes]
    memory_bandwidth: Fact[BytesPerSecond]
    domains: tuple[Domain, ...]
    host_link: Fact[BytesPerSecond] | None = None
    host_memory: Fact[Bytes] | None = None
    power_idle: Fact[Watts] | None = None
    power_full: Fact[Watts] | None = None
    price: Fact[DollarsPerHour] | None = None
    carbon: Fact[GramsPerKilowattHour]
    overhead: Fact[float]
    machine: Machine | None = None

    @property
    def precision(self) -> Precision:
        """What models are trained in on it unless something else is wished for: bf16, else fp16,
        else fp32. Raises BadInput where it computes integers alone.
        """
        if not self.floating:
            raise BadInput(
                f"{self.accelerator} computes integers alone, in which no model is trained",
                hint="it can answer: --serve 1 --weights 8",
            )
        return next(name for name in _USUAL if name in self.peak)

    @property
    def floating(self) -> bool:
        """Whether it computes more than integers."""
        return any(name in self.peak for name in _USUAL)

    def peak_of(self, precision: str) -> float:
        """FLOP/s of one device in `precision`, else in what it trains in."""
        return float(self.peak[precision if precision in self.peak else self.precision].value)


CHOICES_OF: dict[str, tuple[str, tuple[object, ...]]] = {
    **dict.fromkeys(("first_fewer", "last_fewer", "schedule", "placement"), ("pipeline", (1,))),
    "exchange": ("context", (1,)),
    "sequence_parallel": ("tensor", (1,)),
    "reshard": ("sharding", ("none", "optimizer", "gradients")),
}
"""What a choice is of, and with which of that it says nothing."""
SIZES = ("data", "replicas", "tensor", "pipeline", "interleave", "context", "expert")
"""What a layout counts of its axes, of a fleet's and of processes alike."""


def refuse(layout: Record, schedule: Schedule, interleave: int) -> None:
    """Raises BadInput where counts are too small or stages are cut as no such schedule runs them,
    of a fleet's layout and of processes alike.
    """
    at_least(1, layout, "layout", *SIZES, "micro_batch", "accumulation")
    at_least(0, layout, "layout", "first_fewer", "last_fewer")
    if schedule == "zero_bubble" and interleave != 2:
        raise BadInput(
            f"a zero-bubble pipeline has 2 pieces a stage, not {interleave}",
            hint="layout.interleave = 2",
        )
    if schedule == "gpipe" and interleave != 1:
        raise BadInput(
            f"GPipe's stages are whole, not {interleave} pieces",
            hint="layout.interleave = 1, or layout.schedule = 1f1b",
        )


class Spread(Record):
    """How one optimizer step is laid over a fleet: devices = replicas · data · tensor · pipeline ·
    context. Experts are spread over `expert` of the data and tensor ranks.

    `trained` is the share of parameters that have gradients, `reached` that of the layers which
    gradients go back through; without `logits` a head of a few classes stands for the vocabulary's.
    `stored_bits` are those of a weight that is kept narrower than it computes in, `state_bits` of
    each of the optimizer's two moments. `offload` keeps gradients and optimizer in the host's
    memory or on its disk, `chunked_loss` never has all logits at once. `waits_for_host`: the device
    idles at every block of a micro-batch. `gradient_bytes` are those of one parameter's gradient: a
    sum in fp32, and whatever copy the stack keeps of it. `master_bytes` are kept beside a weight
    for its master: a copy in fp32 (arXiv:1910.02054), or the rest of one (docs/decisions/0021).

    `recomputed` is the share of the blocks that recompute is of. Selective, it is of the scores
    where they go through memory (arXiv:2205.05198), else of half of the products and all between
    them (PyTorch's selective activation checkpointing).

    `sharding` says what of the data ranks' copies is kept once (ZeRO, arXiv:1910.02054), `replicas`
    how often that set is repeated; without `reshard` a block's parameters, once gathered, stay from
    the forward to the backward pass. `interleave` is the number of pieces of a pipeline stage;
    the first stage has `first_fewer` layers fewer than one in the middle, the last `last_fewer`.
    """

    data: int = 1
    replicas: int = 1
    tensor: int = 1
    pipeline: int = 1
    interleave: int = 1
    context: int = 1
    expert: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    first_fewer: int = 0
    last_fewer: int = 0
    sharding: Sharding = "optimizer"
    reshard: bool = True
    recompute: Recompute = "none"
    recomputed: float = 1.0
    schedule: Schedule = "1f1b"
    placement: Placement = "pipeline_outermost"
    exchange: Exchange = "ring"
    sequence_parallel: bool = True
    precision: Precision = "bf16"
    flash_attention: bool = True
    kernels: Fusion = "fused"
    trained: float = 1.0
    reached: float = 1.0
    logits: bool = True
    stored_bits: float | None = None
    state_bits: Literal[32, 16, 8] = 32
    offload: Offload = "none"
    chunked_loss: bool = False
    waits_for_host: bool = False
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0

    def __post_init__(self) -> None:
        refuse(self, self.schedule, self.interleave)

    @property
    def unusual(self) -> dict[str, object]:
        """Its choices that are not the usual ones and matter to it, by name; sizes and sharding are
        no choices.
        """
        usual = Spread()
        return {
            name: value
            for name in (
                "recompute", "schedule", "placement", "exchange", "reshard", "first_fewer",
                "last_fewer", "sequence_parallel", "state_bits", "offload", "chunked_loss",
            )
            if (value := getattr(self, name)) != getattr(usual, name) and self._has(name)
        }  # fmt: skip

    def _has(self, name: str) -> bool:
        """Whether it has what a choice is of."""
        of, without = CHOICES_OF.get(name, ("devices", ()))
        return getattr(self, of) not in without

    @property
    def devices(self) -> int:
        """Devices that it takes."""
        return self.replicas * self.data * self.tensor * self.pipeline * self.context

    @property
    def batch_sequences(self) -> int:
        """Sequences of one optimizer step."""
        return self.replicas * self.data * self.micro_batch * self.accumulation
