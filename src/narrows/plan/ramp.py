"""A batch that is to grow with the gradients' noise: where it can, and what the plan knows of it.

A step stays what it was planned as; an update reads the data of one step, two, four and so on. So
data, learning rate, evaluations and checkpoints go by steps, and only updates become fewer.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from narrows.plan.layouts import Layouts
from narrows.spec.errors import BadInput
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.layout import Layout
from narrows.spec.ledger import Ledger
from narrows.spec.ramp import BatchRamp
from narrows.spec.units import Seconds

_COLUMNS = ("micro_batch", "accumulation", "recompute", "threads", "loss_chunk")


def able(
    found: list[Layouts], ramp: BatchRamp | None, exchange: GradientExchange, batch: int
) -> list[Layouts]:
    """Of candidates, those in which the noise can be measured; raises BadInput where none is, or
    the ramp leads nowhere.
    """
    if ramp is None:
        return found
    if ramp.times_most(batch) < 2:
        raise BadInput(
            f"train.batch_ramp.most_sequences is {ramp.most_sequences}, and a step has {batch} "
            "already",
            hint=f"--set train.batch_ramp.most_sequences={8 * batch}, or a smaller "
            "train.batch_sequences",
        )
    able = []
    for layouts in found:
        several = np.flatnonzero(layouts.accumulation > 1)
        if layouts.layout(0).processes == 1 and several.size:
            kept = {name: getattr(layouts, name)[several] for name in _COLUMNS}
            able.append(replace(layouts, **kept))
    if not able:
        check(found[0].layout(0), ramp, exchange)
    return able


def check(layout: Layout, ramp: BatchRamp | None, exchange: GradientExchange) -> None:
    """Raises BadInput where nothing tells the noise: it is measured between the micro-batches of
    one process.
    """
    if ramp is None:
        return
    if layout.processes > 1 or exchange != EXACT:
        raise BadInput(
            "train.batch_ramp goes by the noise between one process's micro-batches, and the "
            f"layout has {layout.processes} processes",
            hint="--set layout.processes=1, or leave out train.batch_ramp",
        )
    if layout.accumulation < 2:
        batch = layout.micro_batch * layout.accumulation
        hint = f"--set layout.micro_batch={batch // 2}" if batch > 1 else "batch_sequences = 4"
        raise BadInput(
            "train.batch_ramp goes by the noise between micro-batches, and a step has only one",
            hint=hint,
        )


def why(ramp: BatchRamp, batch: int, context: int, steps: int, predicted: Ledger) -> str:
    """The range that the measured noise will choose from."""
    times = ramp.times_most(batch)
    fewest = -(-steps // times)
    updating = sum(row.seconds for row in predicted.rows if row.phase == "optimizer")
    longest = predicted.total.seconds
    shortest = Seconds(longest - (steps - fewest) * updating).text()
    return (
        f"from {batch} sequences ({batch * context:,} tokens) an update to {batch * times} "
        f"({batch * times * context:,}), as the gradients' noise scale grows, which nobody knows "
        f"before (arXiv:1812.06162): {fewest} to {steps} updates over the same data, "
        f"{shortest} to {Seconds(longest).text()}"
    )
