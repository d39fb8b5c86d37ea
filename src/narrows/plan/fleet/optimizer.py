"""The optimizer's step and what it keeps, on the device, in the host's memory or on its disk."""

from __future__ import annotations

import numpy as np

from narrows.plan.fleet import constants, traffic
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.work import Work
from narrows.plan.layouts import Array
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Spread


def step_seconds(spreads: Spreads, fleet: Fleet, held: tuple[Array, Array], memory: float) -> Array:
    """Of the parameters that a rank owns, at `memory` bytes a second; `held` are those of its
    stage, and of its experts.

    Offloaded, gradients go down and weights come up (arXiv:2101.06840), and from a disk their state
    comes and goes (arXiv:2104.07857). Of several micro-batches the sum so far comes up to each and
    goes down again (`async_accumulate_grad_in_cpu_via_gpu` of deepspeed's stage_1_and_2.py).
    """
    mine, shared = owned(spreads, held), spreads.shared
    if shared.offload == "none":
        return np.asarray(mine * moved_bytes(shared) / memory)
    if fleet.host_link is None:
        raise BadInput(
            f"what joins {fleet.accelerator} to its host is not known, so nothing is offloaded",
            hint="leave layout.offload out",
        )
    near = float(fleet.devices_per_node)
    link = float(fleet.host_link.value) / min(near, constants.HOST_LINK_SHARED)
    passes = (moved_bytes(shared) + constants.HOST_PASSES) * near**2 / constants.HOST_MEMORY
    each = passes + copied_bytes(spreads) / link
    if shared.offload == "disk":
        each = each + 2.0 * state_bytes(shared) / constants.HOST_DISK
    return np.asarray(mine * each)


def host_bytes(work: Work, spread: Spread, fleet: Fleet) -> float:
    """What a host keeps where the optimizer is in its memory: its devices' states, gradients and
    the weights' copy that goes up.
    """
    spreads = Spreads.of([spread])
    mine = float(owned(spreads, traffic.held(work, spreads))[0])
    each = state_bytes(spread) + 4.0 + spreads.value_bytes
    return fleet.devices_per_node * mine * each


def overfills_host(work: Work, spread: Spread, fleet: Fleet) -> bool:
    """Whether the optimizer is to be in a host's memory that is known to be less."""
    known = fleet.host_memory
    if spread.offload != "host" or known is None:
        return False
    return host_bytes(work, spread, fleet) > float(known.value)


def owned(spreads: Spreads, held: tuple[Array, Array]) -> Array:
    """Trained parameters whose optimizer's state a rank keeps."""
    common, own = held
    sharded = spreads.sharding >= 1
    mine = common / np.where(sharded, spreads.shards, 1.0)
    mine = mine + own / np.where(sharded, spreads.expert_shards, 1.0)
    return np.asarray(spreads.shared.trained * mine)


def moved_bytes(shared: Spread) -> float:
    """Read and written for a parameter, in the memory that keeps its state: both moments are."""
    return constants.OPTIMIZER_BYTES - 4.0 * (4.0 - shared.state_bits / 8.0)


def copied_bytes(spreads: Spreads) -> Array:
    """Of an offloaded parameter, what goes to the host and comes from it: gradients, their sums and
    the weight.
    """
    return np.asarray(spreads.value_bytes * (3.0 * spreads.accumulation - 1.0))


def state_bytes(shared: Spread) -> float:
    """Kept for a parameter: what its master takes and two moments, which below 32 bits have a scale
    for each 256 of them (arXiv:2110.02861).
    """
    moment = shared.state_bits / 8.0 + (0.0 if shared.state_bits == 32 else 4.0 / 256.0)
    return shared.master_bytes + 2.0 * moment
