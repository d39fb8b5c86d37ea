"""What failures and checkpoints leave of a fleet's time, and the whole training with them."""

from __future__ import annotations

import math

from narrows.plan.fleet.memory import weights_bytes
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Goodput, Run
from narrows.spec.ledger import Total

_MTBF_DEVICE_SECONDS = 50_000 * 3600.0
"""Between failures of one device with its share of the node: 419 interruptions in 54 days of 16,384
H100s (arXiv:2407.21783, section 3.3.4).
"""
_STORAGE_BYTES_PER_NODE = 2e9
"""A second, into storage that all nodes share (arXiv:2407.21783, section 3.3.1: 2 TB/s for 7,500
servers is far less a node; this is a common cluster's).
"""
_RESTART_SECONDS = 600.0


def goodput(work: Work, fleet: Fleet, trained: float = 1.0) -> Goodput:
    """Of failures that come at random, and checkpoints that each cost their writing."""
    between = _MTBF_DEVICE_SECONDS / fleet.devices
    nodes = max(1.0, fleet.devices / fleet.devices_per_node)
    # Weights, masters and moments: 14 bytes for each 2 of weights.
    writing = 7.0 * trained * weights_bytes(work) / (_STORAGE_BYTES_PER_NODE * nodes)
    interval = math.sqrt(2.0 * writing * between)
    lost = writing / interval + (interval / 2.0 + _RESTART_SECONDS) / between
    return Goodput(
        mean_time_between_failures_s=between, checkpoint_interval_s=interval,
        checkpoint_seconds=writing, share=max(0.0, 1.0 - lost),
    )  # fmt: skip


def run(total: Total, good: Goodput, fleet: Fleet) -> Run | None:
    """`total` with the time, energy and money that failures waste; None where it never ends."""
    if good.share <= 0.0:
        return None
    powered = fleet.power_full is not None
    return Run(
        steps=total.steps, tokens=total.tokens, seconds=total.seconds / good.share,
        joules=total.joules / good.share if powered else None,
        dollars=None if fleet.price is None else total.dollars / good.share,
        carbon_grams=total.carbon_grams / good.share if powered else None,
    )  # fmt: skip
