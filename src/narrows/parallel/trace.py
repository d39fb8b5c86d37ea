"""One rank's step of a layout of any size, on tensors that have shapes and no memory.

The model that this process would have among thousands is really built and really run: torch's fake
process group answers for the others, fake tensors for the numbers. What the step computes, sends
and keeps is counted on the way; plan/fleet/beside.py holds it against the plan.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from narrows.kernels.load import load
from narrows.parallel import data, expert
from narrows.parallel.counting import AxisOf, Counting, Counts, axes, traffic
from narrows.parallel.mesh import ranks_of
from narrows.parallel.recompute import recomputed
from narrows.parallel.running import Beside, Rows
from narrows.parallel.split import Making, Split, local, split
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.ledger import MemoryPeak
from narrows.spec.model import ModelSpec
from narrows.spec.pieces import even
from narrows.spec.trace import Trace

_CPU = torch.device("cpu")
# Micro-batches that are run: the first and the last differ from those between, which are alike.
_RUN = 3
_MASTER_BYTES, _MOMENT_BYTES = 4, 8
"""Of a parameter: its master, a part of which is its weight, and two moments in fp32."""


class Found(NamedTuple):
    """What a step computes and sends, its memory at the worst moment, the operations that made it,
    and the most of each kind at any time.
    """

    counts: Counts
    memory: MemoryPeak
    makers: dict[str, float]
    most: dict[str, float]

    def beyond(self, before: Found, often: float) -> Found:
        """What `often` more of the steps from `before` to this lead to."""

        def add(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
            return {key: value + often * (value - other.get(key, 0.0))
                    for key, value in one.items()}  # fmt: skip

        memory = add(msgspec.structs.asdict(self.memory), msgspec.structs.asdict(before.memory))
        return Found(
            add(self.counts, before.counts), MemoryPeak(**memory),
            add(self.makers, before.makers), add(self.most, before.most),
        )  # fmt: skip


def trace(spec: ModelSpec, layout: Layout, *, rank: int = 0) -> Trace:
    """What process `rank` of the layout does in a step, its experts chosen equally often; raises
    BadInput where `parallel` cannot run it.
    """
    _refuse(spec)
    began = time.perf_counter()
    dtype = torch.bfloat16 if layout.precision == "bf16" else torch.float32
    making = Making(load("torch"), recomputed(layout.recompute), _CPU, dtype)
    with _alone_among(layout.processes, rank), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ranks = ranks_of(layout, _CPU)
        mine = split(spec, layout, ranks, making, seed=None)
        with FakeTensorMode(allow_non_fake_inputs=True), _balanced(spec, layout):
            mine.model.to_empty(device=_CPU)
            found = _whole_step(mine, axes(ranks, layout))
    state = _MASTER_BYTES - dtype.itemsize + _MOMENT_BYTES
    optimizer = float(state * sum(local(each).numel() for each in mine.parameters().values()))
    memory = msgspec.structs.replace(
        found.memory, optimizer=optimizer, peak=found.memory.peak + optimizer
    )
    return Trace(
        rank=rank, products=found.counts["products"], scores=found.counts["scores"],
        traffic=traffic(found.counts), memory=memory, makers=found.makers, most=found.most,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _whole_step(mine: Split, axis_of: AxisOf) -> Found:
    """Of all micro-batches, from a step of fewer, or from two of a pipeline: once it is full, each
    further round adds the same.
    """
    layout = mine.layout

    def found(micros: int) -> Found:
        counting = Counting(axis_of, mine.model.spec.experts)
        counts = step(mine, counting, micros)
        return Found(counts, *counting.kept.peak(), counting.kept.most())

    if layout.pipeline == 1:
        return found(layout.accumulation)
    fewer, more = _full(layout)
    if layout.accumulation <= more:
        return found(layout.accumulation)
    before, after = found(fewer), found(more)
    return after.beyond(before, (layout.accumulation - more) / (more - fewer))


def _full(layout: Layout) -> tuple[int, int]:
    """Micro-batches that fill a pipeline, and a round more."""
    p = layout.pipeline
    if layout.schedule == "gpipe":
        return 2, 3
    if layout.schedule == "zero_bubble":
        return 2 * p, 2 * p + 1
    return (p + 1, p + 2) if layout.interleave == 1 else (2 * p, 3 * p)


def step(mine: Split, counting: Counting, micros: int) -> Counts:
    """Counts of a step of `micros` micro-batches; but for a pipeline's they are counted from its
    first ones and its last.
    """
    layout, T = mine.layout, mine.model.spec.context
    seen: list[Counts] = []
    run = micros if layout.pipeline > 1 else min(micros, _RUN)
    kept, parameters = counting.kept, mine.parameters().values()

    def after() -> None:
        seen.append(counting.counts.copy())
        for gradient in data.gradients(mine.model):
            kept.name("gradients", local(gradient))
        if layout.replicas > 1 and layout.pipeline == 1 and len(seen) < run:
            # What waits to be added to other copies' is in buffers of the last sum, too.
            kept.name_all("gradients")

    for parameter in parameters:
        kept.name("weights", local(parameter))
    tokens_BT = torch.zeros(run * layout.micro_batch, T + 1, dtype=torch.int64)
    with kept.growing(), counting:
        mine.run(Rows.of(tokens_BT), layout.loss_chunk, Beside(after=after))
        gradients = {
            name: local(parameter.grad)
            for name, parameter in mine.parameters().items()
            if parameter.grad is not None
        }
        mine.complete(gradients)
    for parameter in parameters:
        parameter.grad = None
    counts = counting.counts.copy()
    for name in seen[1] if micros > run else ():
        counts[name] += (micros - run) * (seen[1][name] - seen[0].get(name, 0.0))
    return counts


@contextmanager
def _balanced(spec: ModelSpec, layout: Layout) -> Iterator[None]:
    """Rows of experts go to each rank alike, as no fake tensor tells how many do."""
    if layout.expert == 1:
        yield
        return
    assert spec.experts is not None
    tokens = layout.micro_batch * spec.context // (layout.context * layout.tensor)
    share = min(1.0, spec.experts.capacity or 1.0)
    total = int(share * tokens * spec.experts.chosen)
    each = [even(total, layout.expert, rank) for rank in range(layout.expert)]
    plain = expert.rows

    def rows(counts_PE: Tensor) -> list[int]:
        return [stop - start for start, stop in each]

    expert.rows = rows
    try:
        yield
    finally:
        expert.rows = plain


@contextmanager
def _alone_among(count: int, rank: int) -> Iterator[None]:
    """This process as one of `count`, the others of which only seem to be there."""
    if count == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _refuse(spec: ModelSpec) -> None:
    if spec.encoder_layers:
        raise BadInput(
            "an encoder beside the decoder cannot be traced yet",
            hint="a model of one stack, such as --model llama-3.1-8b",
        )
