"""What a process of several copies within its own memory around what it tells the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from narrows.plan.gradients import exchanged, islands
from narrows.plan.layouts import Layouts
from narrows.plan.operation import Operation, kernel
from narrows.plan.share import Share
from narrows.spec.exchange import PowerSGD


def copies(share: Share, layouts: Layouts) -> Iterator[Operation]:
    """What is copied around collectives. By tensor ranks the stream, in their order or as a whole.
    By fully_shard parameters into what is gathered and out of it, gradients into what is scattered,
    in fp32, and back. And what other exchanges do to all values.
    """
    if share.layout.tensor > 1:
        stream = layouts.micro_batch * share.spec.context * share.spec.width * np.ones((1, 1))
        regions = 2 * len(share.blocks) - len(share.experts)
        often = layouts.accumulation * (2.0 + layouts.full) * 2.0 * regions * np.ones((1, 1))
        moved = 2.0 * layouts.setting.value_bytes * stream
        yield kernel("joined", ("forward", "pointwise"), stream, often, moved)
    yield from exchanged(layouts, share.kept)
    apart = islands(layouts.gradients, share.layout)
    alone = share.shards * share.copies == apart or isinstance(layouts.gradients, PowerSGD)
    if share.grouped and not alone:
        yield from _sharded(share, layouts)


def _sharded(share: Share, layouts: Layouts) -> Iterator[Operation]:
    layout, value, m = share.layout, layouts.setting.value_bytes, layouts.accumulation
    dropped, each = layout.sharding == "parameters", layout.sharding in ("gradients", "parameters")
    once = np.ones((1, m.size))
    whole, kept = float(share.passing) * once, _kept(share) * once
    gathers = (m if dropped else 1.0) * (2.0 if dropped and layout.reshard else 1.0) * once
    scatters = (m if each else 1.0) * once
    moved = 2.0 * value * (whole + kept)
    yield kernel("gathered", ("forward", "pointwise"), whole, gathers, moved)
    whole = float(share.whole) * once
    moved = (value + 4.0) * (whole + float(share.kept))
    yield kernel("scattered", ("backward", "pointwise"), whole, scatters, moved)


def _kept(share: Share) -> float:
    """Of what passes, this process's own."""
    return float(share.kept if share.passing == share.whole else share.passing / share.shards)
