"""What one process tells the others in a step: exactly what `parallel` does, group by group.

tests/parallel/test_exchange.py holds count and bytes to what traced and real processes send.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from narrows.plan.gradients import gradient_bytes, islands
from narrows.plan.share import Group, Share
from narrows.spec.adapter import EVERYTHING, Learning
from narrows.spec.exchange import EXACT, Bf16, GradientExchange, LocalSteps, PowerSGD
from narrows.spec.layout import Layout
from narrows.spec.ledger import Phase
from narrows.spec.machine import Collective
from narrows.spec.model import ModelSpec
from narrows.spec.trace import AxisName

_FP32, _BF16, _INT64, _INT32 = 4, 2, 8, 4


class Message(NamedTuple):
    """`calls` of one kind of collective among `ranks` of an axis, into each of which this process
    puts `message` bytes; `hidden` where they travel while it computes. No axis is everybody.
    """

    kind: Collective
    axis: AxisName | None
    phase: Phase
    ranks: int
    message: float
    calls: float
    hidden: bool = False

    @property
    def sent(self) -> float:
        """Bytes that this process sends in all of them, around a ring."""
        return self.calls * sent(self.kind, self.message, self.ranks)


def sent(kind: Collective, message: float, ranks: int) -> float:
    """Bytes that a rank sends of a collective into which it puts `message`."""
    share = (ranks - 1) / ranks
    match kind:
        case "send" | "shift":
            return message
        case "all_gather":
            return (ranks - 1) * message
        case "all_reduce":
            return 2 * share * message
        case "reduce_scatter" | "all_to_all" | "broadcast":
            return share * message


def exchange(
    spec: ModelSpec, layout: Layout, rank: int = 0, gradients: GradientExchange = EXACT,
    learning: Learning = EVERYTHING,
) -> tuple[Message, ...]:  # fmt: skip
    """All that process `rank` of the layout tells others in one optimizer step, on average."""
    if layout.processes == 1:
        return ()
    telling = _Telling(Share.of(spec, layout, rank, learning), gradients)
    parts = (
        telling.parameters, telling.regions, telling.loss_rows, telling.keys, telling.experts,
        telling.stages, telling.completing, telling.votes, telling.meetings,
    )  # fmt: skip
    return tuple(
        each for part in parts for each in part()
        if each.ranks > 1 and each.calls > 0 and each.message > 0
    )  # fmt: skip


class _Telling(msgspec.Struct, frozen=True):
    share: Share
    gradients: GradientExchange

    @property
    def spec(self) -> ModelSpec:
        return self.share.spec

    @property
    def layout(self) -> Layout:
        return self.share.layout

    @property
    def value(self) -> int:
        """Bytes of a weight or an activation."""
        return 4 if self.layout.precision == "fp32" else 2

    @property
    def islands(self) -> int:
        """Sets of ranks that take each step apart."""
        return islands(self.gradients, self.layout)

    @property
    def tokens(self) -> float:
        """Positions of a micro-batch that this process has before tensor ranks cut them."""
        return self.layout.micro_batch * self.spec.context / self.layout.context

    @property
    def pieces(self) -> float:
        """Bytes of the stream between blocks."""
        cut = self.layout.tensor if self.layout.sequence_parallel else 1
        return self.tokens / cut * self.spec.width * self.value

    def passes(self) -> Iterator[tuple[Phase, float]]:
        """A block's forward passes of a step, those that are made again included."""
        yield "forward", float(self.layout.accumulation)
        if self.layout.recompute == "full":
            yield "backward", float(self.layout.accumulation)

    def parameters(self) -> Iterator[Message]:
        """What fully_shard gathers, scatters and adds up (parallel/data.py)."""
        share = self.share
        if not share.grouped:
            return
        if isinstance(self.gradients, PowerSGD):
            # What is not compressed, and both factors (parallel/compressed.py).
            groups = (*share.blocks, share.ends)
            tables = (table for group in groups for table in group if table.learns)
            moved = gradient_bytes(self.gradients, [(t.rows, t.columns) for t in tables]) / 3.0
            yield Message("all_reduce", "data", "optimizer", share.copies, moved, 3.0)
            return
        gathers: list[tuple[Group, int, int, bool]] = [
            *(
                (each, share.shards, share.copies, at < share.still)
                for at, each in enumerate(share.blocks)
            ),
            *((each, share.expert_shards, share.expert_copies, False) for each in share.experts),
            (share.ends, share.shards, share.copies, True),
        ]
        for group, shards, copies, outside in gathers:
            yield from self._group(group, (shards, copies), outside=outside)

    def _group(self, group: Group, among: tuple[int, int], *, outside: bool) -> Iterator[Message]:
        (shards, copies), layout = among, self.layout
        width = _BF16 if isinstance(self.gradients, Bf16) else _FP32
        m = float(layout.accumulation)
        padded = sum(table.padded(shards) for table in group if table.learns)
        # Weights' gradients, taken apart from the input's, are those of parameters still gathered.
        apart = layout.pipeline > 1 and layout.schedule == "zero_bubble"
        each = layout.sharding in ("gradients", "parameters") and not apart
        dropped = layout.sharding == "parameters" and not apart
        forward = m if dropped else 1.0
        if dropped and outside:
            # Each piece's backward pass drops them.
            forward *= len(self.share.pieces)
        backward = m if dropped and layout.reshard and not outside else 0.0
        gathered = sum(t.padded(shards) * (t.packed or self.value) for t in group) / shards
        yield Message("all_gather", "data", "forward", shards, gathered, forward)
        # The next block's, asked for before this one goes backward, are there when it is done.
        yield Message("all_gather", "data", "backward", shards, gathered, backward)
        scattered = m if each else 1.0
        yield Message("reduce_scatter", "data", "backward", shards, padded * width, scattered)
        axis: AxisName = "data" if layout.sharding == "none" else "replicas"
        copies //= self.islands
        yield Message("all_reduce", axis, "backward", copies, padded / shards * width, 1.0)

    def regions(self) -> Iterator[Message]:
        """Entering and leaving what tensor ranks compute parts of (parallel/tensor.py)."""
        layout, t = self.layout, self.layout.tensor
        if t == 1:
            return
        blocks, routed = len(self.share.blocks), len(self.share.experts)
        # Experts take their piece of the sequence as it is.
        regions = float(2 * blocks - routed)
        m, again = float(layout.accumulation), layout.recompute == "full"
        # Leaving a feed-forward, whose result nothing keeps, is not done again.
        last = float(blocks - routed)
        whole = self.tokens * self.spec.width * self.value
        first, end = float(self.share.first), float(self.share.last)
        if not layout.sequence_parallel:
            forward, backward = regions + first, regions + end + again * (regions - last)
            yield Message("all_reduce", "tensor", "forward", t, whole, m * forward)
            yield Message("all_reduce", "tensor", "backward", t, whole, m * backward)
            return
        yield Message("all_reduce", "tensor", "forward", t, whole, m * first)
        entering, leaving = regions + end, regions
        yield Message("all_gather", "tensor", "forward", t, whole / t, m * entering)
        yield Message("reduce_scatter", "tensor", "forward", t, whole, m * leaving)
        gathers = leaving + first + again * regions
        yield Message("all_gather", "tensor", "backward", t, whole / t, m * gathers)
        scatters = entering + again * (regions - last)
        yield Message("reduce_scatter", "tensor", "backward", t, whole, m * scatters)

    def loss_rows(self) -> Iterator[Message]:
        """What tensor ranks share of logits (parallel/vocabulary.py): a row's largest; the sum of
        its exponentials and its target's.
        """
        layout, t = self.layout, self.layout.tensor
        if not self.share.last:
            return
        chunks = math.ceil(self.tokens / layout.loss_chunk)
        rows, count = self.tokens / chunks, float(layout.accumulation * chunks)
        yield Message("all_reduce", "tensor", "forward", t, rows * _FP32, count)
        yield Message("all_reduce", "tensor", "forward", t, 2 * rows * _FP32, count)

    def keys(self) -> Iterator[Message]:
        """How parts of a sequence meet in attention (parallel/context.py, parallel/ring.py)."""
        layout, c, spec = self.layout, self.layout.context, self.spec
        if c == 1:
            return
        own = self.tokens * spec.head_width
        queries, keys = spec.heads // layout.tensor, spec.kv_heads // layout.tensor
        blocks = len(self.share.blocks)
        if layout.exchange == "ring":
            part = own * keys
            for phase, often in self.passes():
                count = often * blocks * 2 * (c - 1)
                yield Message("shift", "context", phase, c, part * self.value, count, True)
            often = float(layout.accumulation * blocks)
            count = often * 2 * (c - 1)
            yield Message("shift", "context", "backward", c, part * self.value, count, True)
            yield Message("shift", "context", "backward", c, part * _FP32, often * 2 * c, True)
            return
        dealt = own * (queries + 2 * math.lcm(keys, c)) * self.value
        back = own * queries * self.value
        for phase, often in (*self.passes(), ("backward", float(layout.accumulation))):
            yield Message("all_to_all", "context", phase, c, dealt, often * blocks)
            yield Message("all_to_all", "context", phase, c, back, often * blocks)

    def experts(self) -> Iterator[Message]:
        """Rows to their experts and back (parallel/expert.py), as many to each rank: how many they
        really are only the router knows.
        """
        layout, experts, e = self.layout, self.spec.experts, self.layout.expert
        blocks = len(self.share.experts)
        if experts is None or not blocks:
            return
        tokens = self.tokens / layout.tensor
        rows = tokens * experts.chosen * self.spec.width * self.value
        for phase, often in self.passes():
            yield Message("all_to_all", "expert", phase, e, experts.count * _INT32, often * blocks)
            yield Message("all_to_all", "expert", phase, e, rows, 2 * often * blocks)
            if experts.capacity is not None:
                names = tokens * experts.chosen * _INT64
                axes: tuple[tuple[AxisName, int], ...] = ("tensor", 1), ("context", layout.tensor)
                for axis, times in axes:
                    yield Message(
                        "all_gather", axis, phase, getattr(layout, axis), names * times,
                        often * blocks,
                    )  # fmt: skip
        often = float(layout.accumulation * blocks)
        yield Message("all_to_all", "expert", "backward", e, rows, 2 * often)

    def stages(self) -> Iterator[Message]:
        """The stream to the next piece, and its gradient back (parallel/pipeline.py)."""
        p, m = self.layout.pipeline, float(self.layout.accumulation)
        if p == 1:
            return
        ahead = sum(not each.last and not self._here(each.number + 1) for each in self.share.pieces)
        back = sum(not each.first and not self._here(each.number - 1) for each in self.share.pieces)
        yield Message("send", "pipeline", "forward", p, self.pieces, m * ahead, True)
        yield Message("send", "pipeline", "backward", p, self.pieces, m * back, True)

    def _here(self, number: int) -> bool:
        return any(each.number == number for each in self.share.pieces)

    def completing(self) -> Iterator[Message]:
        """Gradients of what several have alike (parallel/split.py), summed in fp32 where there are
        several micro-batches.
        """
        wide = _FP32 if self.layout.accumulation > 1 else self.value
        p, t = self.layout.pipeline, self.layout.tensor
        yield Message("send", "pipeline", "optimizer", p, self.share.copied * wide, 1.0)
        yield Message("all_reduce", "tensor", "optimizer", t, self.share.partial * wide, 1.0)

    def votes(self) -> Iterator[Message]:
        """How many tokens count and their loss (parallel/split.py); the gradient's norm, whether
        all take the step, and whether anybody wants to stop (train/).
        """
        layout, apart = self.layout, self.islands
        yield Message("all_reduce", "data", "forward", layout.batches // apart, _INT64, 1.0)
        yield Message("all_reduce", "pipeline", "forward", layout.pipeline, _FP32, 1.0)
        yield Message("all_reduce", "context", "forward", layout.context, _FP32, 1.0)
        yield Message("all_reduce", "data", "forward", layout.batches // apart, _FP32, 1.0)
        yield Message("all_reduce", None, "optimizer", layout.processes // apart, _FP32, 2.0)
        often = 1.0 / self.gradients.every if isinstance(self.gradients, LocalSteps) else 1.0
        yield Message("all_reduce", None, "optimizer", layout.processes, _FP32, often)

    def meetings(self) -> Iterator[Message]:
        """What islands have moved since they met (train/outer.py)."""
        if isinstance(self.gradients, LocalSteps):
            axis: AxisName = "replicas" if self.layout.replicas > 1 else "data"
            moved, often = self.share.kept * _FP32, 1.0 / self.gradients.every
            yield Message("all_reduce", axis, "optimizer", self.islands, moved, often)
