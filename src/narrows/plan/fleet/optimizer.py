"""The optimizer's step and what it keeps, on the device, in the host's memory or on its disk."""

from __future__ import annotations

import numpy as np

from narrows.plan.fleet import constants
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.layouts import Array
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Spread


def step_seconds(spreads: Spreads, fleet: Fleet, held: tuple[Array, Array], memory: float) -> Array:
    """Of the parameters that a rank owns, at `memory` bytes a second; `held` are those of its
    stage, and of its experts.

    Offloaded, their gradients go down and weights come up (arXiv:2101.06840), and from a disk their
    state comes and goes (arXiv:2104.07857).
    """
    mine, shared = owned(spreads, held), spreads.shared
    if shared.offload == "none":
        return np.asarray(mine * moved_bytes(shared) / memory)
    if fleet.host_link is None:
        raise BadInput(
            f"what joins {fleet.accelerator} to its host is not known, so nothing is offloaded",
            hint="leave layout.offload out",
        )
    each = host_bytes(spreads) / float(fleet.host_link.value)
    each = each + moved_bytes(shared) / constants.HOST_MEMORY
    if shared.offload == "disk":
        each = each + 2.0 * state_bytes(shared) / constants.HOST_DISK
    return np.asarray(mine * each)


def owned(spreads: Spreads, held: tuple[Array, Array]) -> Array:
    """Parameters that a rank updates."""
    common, own = held
    sharded = spreads.sharding >= 1
    mine = common / np.where(sharded, spreads.shards, 1.0)
    mine = mine + own / np.where(sharded, spreads.expert_shards, 1.0)
    return np.asarray(spreads.shared.trained * mine)


def moved_bytes(shared: Spread) -> float:
    """Read and written for a parameter, in the memory that keeps its state: both moments are."""
    return constants.OPTIMIZER_BYTES - 4.0 * (4.0 - shared.state_bits / 8.0)


def host_bytes(spreads: Spreads) -> Array:
    """Of an offloaded parameter, gradients that go down and the weight that comes up."""
    return np.asarray(spreads.value_bytes * (spreads.accumulation + 1.0))


def state_bytes(shared: Spread) -> float:
    """Kept for a parameter: a master in fp32 and two moments, which below 32 bits have a scale for
    each 256 of them (arXiv:2110.02861).
    """
    moment = shared.state_bits / 8.0 + (0.0 if shared.state_bits == 32 else 4.0 / 256.0)
    return constants.MASTER_BYTES + 2.0 * moment
