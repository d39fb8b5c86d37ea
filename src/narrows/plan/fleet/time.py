"""Seconds of one optimizer step under many layouts: roofline with ramps, rings, bubbles.

The step of the busiest pipeline stage is followed: its products, attention, memory-bound work and
collectives for each micro-batch; the bubble around them; then gradients, weights and optimizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from narrows.plan.fleet import constants, traffic
from narrows.plan.fleet.links import Links
from narrows.plan.fleet.optimizer import step_seconds
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import bubble, layers
from narrows.plan.fleet.work import Matrix, Work, halves
from narrows.plan.layouts import Array
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Fusion
from narrows.spec.model import ModelSpec

# What weights are trained in; integers and tf32 are not among a layout's choices.
_FORMATS = ("fp32", "bf16", "fp16", "fp8", "fp4")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one device does, in FLOP and bytes a second."""

    matmul: float
    matmul_whole: float
    half: float
    attention_forward: float
    attention_backward: float
    biased: float
    memory: float

    @classmethod
    def of(cls, fleet: Fleet, precision: str, kernels: Fusion = "fused") -> Rates:
        """Raises BadInput where the device does not compute in `precision`."""
        reach = fleet.reach
        known = {name: float(fleet.peak[name].value) for name in _FORMATS if name in fleet.peak}
        wide = ("fp32",) if precision == "fp32" else ("bf16", "fp16", "fp32")
        whole = next((known[name] for name in wide if name in known), 0.0)
        peak = whole if precision in ("bf16", "fp16") else known.get(precision, 0.0)
        if not peak:
            raise BadInput(
                f"{fleet.accelerator} has no {precision} figures",
                hint=f"--set layout.precision=... with one of {', '.join(known)}",
            )
        if precision == "fp4" and "fp8" in known:
            # Four bits are no quicker than power allows, whatever the data sheet's peak.
            peak = np.minimum(peak, constants.FOUR_BITS * known["fp8"])
        narrow = reach.narrow if precision in ("fp8", "fp4") else 1.0
        matmul = reach.clock * reach.matmul * (reach.plain if kernels != "fused" else 1.0)
        return cls(
            matmul=peak * matmul * narrow,
            matmul_whole=whole * matmul,
            half=reach.half,
            attention_forward=whole * reach.clock * reach.attention_forward,
            attention_backward=whole * reach.clock * reach.attention_backward,
            biased=reach.biased,
            memory=float(fleet.memory_bandwidth.value) * reach.memory,
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds by part, arrays [layouts]; `bubble` and `waiting` are the parts' losses."""

    gemm: Array
    attention: Array
    pointwise: Array
    head: Array
    tensor: Array
    expert: Array
    context: Array
    pipeline: Array
    bubble: Array
    data: Array
    optimizer: Array
    waiting: Array

    @property
    def seconds(self) -> Array:
        """The whole step."""
        parts = (
            self.gemm, self.attention, self.pointwise, self.head, self.tensor, self.expert,
            self.context, self.pipeline, self.bubble, self.data, self.optimizer, self.waiting,
        )  # fmt: skip
        return np.asarray(sum(parts))


def step(work: Work, spreads: Spreads, fleet: Fleet) -> Step:
    """The step of `work` laid out as each of `spreads` over `fleet`."""
    rates = Rates.of(fleet, spreads.shared.precision, spreads.shared.kernels)
    links = Links.of(fleet)
    T = spreads.micro_batch * (work.positions / spreads.context)
    block = _block(work, spreads, rates, links, T)
    head = _head(work.spec, spreads, rates, T)
    p, m = spreads.pipeline, spreads.accumulation
    each = work.layers / p
    often = each * m
    # All wait for the stage that takes longest; what it takes longer than its share is lost.
    whole = block.forward + block.backward
    first, middle, last = layers(work, spreads)
    head_alone = np.where(p > 1, last, each) * whole + head
    worst = np.maximum(np.maximum(first, np.where(p > 1, middle, each)) * whole, head_alone)
    per_micro = worst + each * block.communicating
    over = worst - each * whole
    hops = _hops(work, spreads, links, T)
    # Pieces of a stage leave other work to do while an activation travels.
    shown = np.where(spreads.interleave > 1, constants.HOPS_SHOWN, 1.0)
    pipeline = shown * hops * (m + p - 1.0) * spreads.interleave + block.idle * often
    waited = bubble(spreads, per_micro, each * block.weight_gradients)
    held = traffic.held(work, spreads)
    data = _data(work, spreads, links, block, head, held)
    optimizer = step_seconds(spreads, fleet, held, rates.memory)
    parts = {
        "gemm": block.gemm * often, "attention": block.attention * often,
        "pointwise": block.pointwise * often, "head": np.minimum(over, head) * m,
        "tensor": block.tensor * often, "expert": block.expert * often,
        "context": block.context * often, "pipeline": pipeline,
        "bubble": waited + np.maximum(0.0, over - head) * m, "data": data, "optimizer": optimizer,
    }  # fmt: skip
    total = np.asarray(sum(parts.values()))
    return Step(**parts, waiting=total * waiting_share(fleet.devices))


def waiting_share(devices: int) -> float:
    """Of a step, what all wait for the host, the data and the slowest of so many devices: the
    largest of n normal deviates lies at √(2 ln n) of them (extreme value theory, Gumbel 1958).
    """
    return constants.WAITING + constants.DEVIATION * math.sqrt(2.0 * math.log(devices))


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Seconds of one block for one micro-batch, forward and backward with what is done again."""

    gemm: Array
    attention: Array
    pointwise: Array
    tensor: Array
    expert: Array
    context: Array
    idle: float
    forward: Array
    backward: Array
    weight_gradients: Array

    @property
    def communicating(self) -> Array:
        return self.tensor + self.expert + self.context


def _block(work: Work, spreads: Spreads, rates: Rates, links: Links, T: Array) -> _Block:
    full, selective, light_again = (
        spreads.shared.recomputed * (spreads.recompute == kind) for kind in (2, 1, 3)
    )
    gemm = _products(work, spreads, rates, T)
    forward_attention, backward_attention = _scores(work, spreads, rates, T)
    memory_bound = _memory_bound(work, spreads, rates, T)
    scores = 0.0 if spreads.shared.flash_attention else 1.0
    again_attention = full + scores * selective
    again_pointwise = full + (1.0 - 0.5 * scores) * selective + light_again
    again = full + 0.5 * (1.0 - scores) * selective
    # Frozen weights need no gradient of their own: one product of the two backward falls away. In
    # front of all that is trained nothing goes backward.
    back = spreads.shared.reached
    gemm_all = gemm * (1.0 + back * (1.0 + again) + spreads.shared.trained)
    if spreads.shared.kernels != "fused":
        gemm_all = gemm_all - back * full * _unneeded(work, spreads, rates, T)
    attention = forward_attention * (1.0 + back * again_attention) + back * backward_attention
    light = constants.FORWARD_SHARE * memory_bound
    pointwise = light + back * (memory_bound - light + light * again_pointwise)
    idle = constants.HOST_BLOCK if spreads.shared.waits_for_host else 0.0
    forward = gemm + forward_attention + light + constants.FORWARD_SHARE * idle
    backward = gemm_all + attention + pointwise + idle - forward
    shown = 1.0 - constants.TENSOR_OVERLAP if spreads.shared.sequence_parallel else 1.0
    tensor = shown * traffic.tensor_often(spreads) * links.gather(*traffic.tensor(work, spreads, T))
    met = _contexts(work, spreads, links, T, (forward_attention, backward_attention))
    return _Block(
        gemm=gemm_all, attention=attention, pointwise=pointwise, tensor=tensor,
        expert=_experts_exchange(work, spreads, links, T) * traffic.passes(spreads),
        context=met * (1.0 + back) / 2.0, idle=idle,
        forward=forward, backward=backward, weight_gradients=gemm * spreads.shared.trained,
    )  # fmt: skip


def _products(work: Work, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """Forward products of an average block."""
    t, half = spreads.tensor, rates.half
    whole, cut = work.average_block(half)
    seconds = 2.0 * (T + half) * (whole + cut / t) / rates.matmul
    experts = work.spec.experts
    if experts is None:
        return np.asarray(seconds)
    local = experts.count / spreads.expert
    # Experts of a fixed capacity compute all of it, filled or not.
    tokens = T / t * experts.chosen * (experts.capacity or 1.0) / local
    each = halves(work.expert, half).whole
    grouped = local * 2.0 * (tokens + half) * each / (rates.matmul * constants.EXPERT_REACH)
    return np.asarray(seconds + work.layers_experts / work.layers * grouped)


def _unneeded(work: Work, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """The last product of an average block, whose result nothing keeps: torch stops doing a block
    again once all is there that waits for it (torch.utils.checkpoint, early_stop), and XLA removes
    what nobody reads. Stacks with kernels of their own do again all of a block (Megatron).
    """
    if work.spec.block_norms in ("both", "behind", "stream"):
        return np.zeros_like(T)
    whole, cut = halves(work.dense[-1:], rates.half)
    seconds = 2.0 * (T + rates.half) * (whole + cut / spreads.tensor) / rates.matmul
    return np.asarray(work.layers_dense / work.layers * seconds)


def _scores(work: Work, spreads: Spreads, rates: Rates, T: Array) -> tuple[Array, Array]:
    """Attention's forward and backward pass, by tiles or through memory."""
    spec, t = work.spec, spreads.tensor
    flop = T * work.score_flop / t
    width = spec.head_width
    if spreads.shared.flash_attention:
        slower = max(1.0, 128.0 / width) ** constants.HEAD_WIDTH_POWER
        slower /= rates.biased if work.biased_scores else 1.0
        return (
            flop * slower / rates.attention_forward,
            2.5 * flop * slower / rates.attention_backward,
        )
    # Without tiles the whole square is computed, and its scores travel.
    whole = flop * (2.0 if spec.causal else 1.0)
    misaligned = constants.MISALIGNED if width % 8 else 1.0
    products = misaligned * whole / (rates.matmul_whole * constants.SCORE_REACH)
    scores = spreads.micro_batch * spec.heads / t * work.positions**2 / spreads.context
    moved = constants.SCORE_PASSES * scores * spreads.value_bytes / rates.memory
    share = constants.SCORE_FORWARD_SHARE
    return products + share * moved, 2.0 * products + (1.0 - share) * moved


def _memory_bound(work: Work, spreads: Spreads, rates: Rates, T: Array) -> Array:
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
    return np.asarray(values * T * spreads.value_bytes * fused_share / rates.memory)


def _head(spec: ModelSpec, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """The vocabulary's product, forward and backward, and the loss; a few classes cost nothing."""
    if not spreads.shared.logits:
        return np.zeros_like(T)
    matrix = (Matrix("head", float(spec.vocabulary), float(spec.width), "out"),)
    whole, cut = halves(matrix, rates.half)
    t = spreads.tensor
    products = 6.0 * (T + rates.half) * (whole + cut / t) / rates.matmul_whole
    return np.asarray(products + T * spec.vocabulary / t * constants.LOGIT_BYTES / rates.memory)


def _experts_exchange(work: Work, spreads: Spreads, links: Links, T: Array) -> Array:
    """Tokens to their experts and back, forward, of an average block."""
    if work.spec.experts is None:
        return np.zeros_like(T)
    share = constants.EXPERT_SHOWN * work.layers_experts / work.layers
    return share * links.exchange(*traffic.experts(work, spreads, T))


def _contexts(
    work: Work, spreads: Spreads, links: Links, T: Array, attention: tuple[Array, Array]
) -> Array:
    """How queries meet the keys of other ranks of their context, forward and backward."""
    if not np.any(spreads.context > 1):
        return np.zeros_like(T)
    forward, backward = attention
    # Keys and values pass once around forward and twice backward (arXiv:2310.01889), hidden behind
    # the attention that needs them.
    once = links.gather(*traffic.keys(work, spreads, T))
    ring = np.maximum(0.0, once - forward) + np.maximum(0.0, 2.0 * once - backward)
    # Or heads are dealt out and gathered again (arXiv:2309.14509).
    sent = links.exchange(*traffic.heads(work, spreads, T))
    again = 2.0 + spreads.shared.recomputed * (spreads.recompute == 2)
    return np.where(spreads.exchange == 1, sent * again, ring)


def _hops(work: Work, spreads: Spreads, links: Links, T: Array) -> Array:
    """An activation to the next stage and its gradient back, cut among the tensor ranks."""
    moved = 2.0 * traffic.stream(work, spreads, T)
    hop = links.send(moved / spreads.tensor, spreads.inside_pipeline)
    if not spreads.shared.sequence_parallel:
        hop = hop + moved / links.inside
    return np.where(spreads.pipeline > 1, hop, 0.0)


def _data(
    work: Work,
    spreads: Spreads,
    links: Links,
    block: _Block,
    head: Array,
    held: tuple[Array, Array],
) -> Array:
    """What data-parallel collectives add to the step, beyond what computing hides."""
    d, m = spreads.shards, spreads.accumulation
    blocks = work.layers / spreads.pipeline

    def gathered(width: float) -> Array:
        each = (links.gather(*sent) for sent in traffic.weights(work, spreads, held, width))
        return np.asarray(sum(each))

    once = gathered(spreads.value_bytes)
    forward = blocks * block.forward + head / 3.0
    backward = blocks * block.backward + head * 2.0 / 3.0
    hidden = constants.OVERLAP
    trained = spreads.shared.trained
    # Gradients are reduced in fp32; what hides takes multiprocessors and bandwidth from the rest.
    # Backward, parameters are gathered again where they were dropped.
    reduced = trained * gathered(constants.REDUCED_BYTES)
    back = spreads.reshard * once + reduced
    every = np.maximum(constants.CONTENTION * once, once - hidden * forward)
    every = every + np.maximum(constants.CONTENTION * back, back - hidden * backward)
    every = every + back / blocks
    plain = constants.EXPOSED_REDUCTION * (reduced + trained * once)
    # A pipeline gathers its stage once a step, not for each micro-batch.
    often = np.where(spreads.pipeline > 1, 1.0, m)
    exposed = np.where(spreads.sharding == 3, every * often, plain)
    across = 2.0 * links.gather(*traffic.copies(spreads, held))
    across = np.maximum(constants.EXPOSED_REDUCTION * across, across - 0.5 * backward)
    return np.where(d > 1, exposed, 0.0) + np.where(spreads.replicas > 1, across, 0.0)
