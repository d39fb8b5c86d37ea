"""FLOP that a rank computes and bytes that it moves within its device, under many layouts.

`time` takes seconds from these expressions, as it does from those of `traffic` between devices;
`rows` says the same of one layout, operation by operation.
"""

from __future__ import annotations

import numpy as np

from narrows.plan.fleet import constants
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.work import Halves, Matrix, Work
from narrows.plan.layouts import Array
from narrows.spec.model import ModelSpec

Ways = tuple[Array, Array]
"""Of an operation, what it takes forward and what it takes backward."""

TILES_BACKWARD = 2.5
"""Of attention by tiles, what it computes backward: two gradients of each product, and the scores
again (arXiv:2205.14135).
"""


def head(spec: ModelSpec) -> Matrix:
    """The vocabulary's matrix."""
    return Matrix("head", float(spec.vocabulary), float(spec.width), "out")


def tokens(work: Work, spreads: Spreads) -> Array:
    """Of a rank's micro-batch."""
    return spreads.micro_batch * (work.positions / spreads.context)


def product_flop(T: Array, sizes: Halves, spreads: Spreads, half: float = 0.0) -> Array:
    """Of products of T rows; with a ramp `half`, in `sizes` too, the FLOP that take as long."""
    return np.asarray(2.0 * (T + half) * (sizes.whole + sizes.cut / spreads.tensor))


def experts_here(work: Work, spreads: Spreads, T: Array) -> tuple[Array, Array]:
    """Experts of a rank, and the tokens of each: those of a fixed capacity compute all of it,
    filled or not.
    """
    experts = work.spec.experts
    assert experts is not None
    local = experts.count / spreads.expert
    tokens = T / spreads.tensor * experts.chosen * (experts.capacity or 1.0) / local
    return local, tokens


def score_flop(work: Work, spreads: Spreads, T: Array) -> Array:
    """Of queries over their keys, forward; without tiles the whole square is computed."""
    hidden = 1.0 if spreads.shared.flash_attention or not work.spec.causal else 2.0
    return np.asarray(hidden * T * work.score_flop / spreads.tensor)


def score_bytes(work: Work, spreads: Spreads) -> Array:
    """Of scores that go through memory, forward and backward."""
    heads = spreads.micro_batch * work.spec.heads / spreads.tensor
    scores = heads * work.positions**2 / spreads.context
    return np.asarray(constants.SCORE_PASSES * scores * spreads.value_bytes)


def pointwise_bytes(work: Work, spreads: Spreads, T: Array) -> Array:
    """Of a block's memory-bound operations, forward and backward."""
    spec = work.spec
    gates = 1.5 if spec.gated else 1.0
    feed = work.layers_dense * spec.feed_forward_width
    if spec.experts is not None:
        each = spec.experts.chosen * spec.experts.width + spec.experts.shared_total
        feed += work.layers_experts * each
    fused = {"eager": 1.0, "fused": constants.FUSED, "compiled": constants.COMPILED}
    fused_share = fused[spreads.shared.kernels]
    # Norms, dropout and residual sums lie outside of what tensor parallelism divides.
    outside = 0.0 if spreads.shared.sequence_parallel else constants.OUTSIDE
    divided = (1.0 - outside) / spreads.tensor + outside
    sorting = 0.0
    if spec.experts is not None:
        # Tokens are laid out by expert and gathered again, a copy for each expert chosen.
        copies = spec.experts.chosen * work.layers_experts / work.layers
        sorting = constants.PASSES_EXPERT * copies
    values = (constants.PASSES_WIDTH + sorting) * spec.width * divided
    values = values + constants.PASSES_FEED_FORWARD * gates * feed / work.layers / spreads.tensor
    return np.asarray(values * T * spreads.value_bytes * fused_share)


def logit_bytes(spec: ModelSpec, spreads: Spreads, T: Array) -> Array:
    """Of the loss, forward and backward."""
    return np.asarray(T * spec.vocabulary / spreads.tensor * constants.LOGIT_BYTES)


def again(spreads: Spreads, kind: int) -> Array:
    """The share of blocks that are recomputed, where that is the kind."""
    return np.asarray(spreads.shared.recomputed * (spreads.recompute == kind))


def stops_early(work: Work, spreads: Spreads) -> bool:
    """Whether the last product of a block is not done again, since nothing keeps its result: torch
    stops once all is there that waits for it (torch.utils.checkpoint, early_stop), and XLA removes
    what nobody reads. Stacks with kernels of their own do again all of a block (Megatron).
    """
    followed = work.spec.block_norms in ("both", "behind", "stream")
    return spreads.shared.kernels != "fused" and not followed


def product_ways(forward: Array, spreads: Spreads, *, last: bool = False) -> Ways:
    """Frozen weights need no gradient of their own: one product of the two backward falls away. In
    front of all that is trained nothing goes backward. A block's `last` is not done again where it
    stops early.
    """
    half_again = 0.5 * spreads.shared.flash_attention * again(spreads, 1)
    redone = half_again if last else again(spreads, 2) + half_again
    shared = spreads.shared
    return forward, forward * (shared.reached * (1.0 + redone) + shared.trained)


def attention_ways(forward: Array, backward: Array, spreads: Spreads) -> Ways:
    """With what recompute makes again."""
    scores = not spreads.shared.flash_attention
    redone = again(spreads, 2) + scores * again(spreads, 1)
    return forward, spreads.shared.reached * (backward + forward * redone)


def pointwise_ways(both: Array, spreads: Spreads) -> Ways:
    """Of what a block's memory-bound operations take `both` ways."""
    scores = not spreads.shared.flash_attention
    light = constants.FORWARD_SHARE * both
    redone = again(spreads, 2) + (1.0 - 0.5 * scores) * again(spreads, 1) + again(spreads, 3)
    return light, spreads.shared.reached * (both - light + light * redone)
