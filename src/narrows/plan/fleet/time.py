"""Seconds of one optimizer step under many layouts: roofline with ramps, rings, bubbles.

The step of the busiest pipeline stage is followed: its products, attention, memory-bound work and
collectives for each micro-batch; the bubble around them; then gradients, weights and optimizer.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from narrows.plan.fleet import amounts, constants, traffic
from narrows.plan.fleet.links import Links
from narrows.plan.fleet.optimizer import step_seconds
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import bubble, layers
from narrows.plan.fleet.work import Halves, Work, halves
from narrows.plan.layouts import Array
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Fusion
from narrows.spec.model import ModelSpec

# What weights are trained in; integers and tf32 are not among a layout's choices.
_NARROW = ("fp8", "fp4")
_FORMATS = ("fp32", "bf16", "fp16", *_NARROW)


class Rates(msgspec.Struct, frozen=True, kw_only=True):
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
        if precision not in _NARROW:
            wide = (precision, *wide)
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
        narrow = reach.narrow if precision in _NARROW else 1.0
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


class Step(msgspec.Struct, frozen=True, kw_only=True):
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
    T = amounts.tokens(work, spreads)
    block = _block(work, spreads, rates, links, T)
    head = head_seconds(work.spec, spreads, rates, T)
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


class _Block(msgspec.Struct, frozen=True, kw_only=True):
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
    gemm = _products(work, spreads, rates, T)
    scores = attention_seconds(work, spreads, rates, T)
    memory_bound = amounts.pointwise_bytes(work, spreads, T) / rates.memory
    products, gradients = amounts.product_ways(gemm, spreads)
    if amounts.stops_early(work, spreads):
        gradients = gradients - _unneeded(work, spreads, rates, T)
    attention, attention_back = amounts.attention_ways(*scores, spreads)
    light, light_back = amounts.pointwise_ways(memory_bound, spreads)
    idle = constants.HOST_BLOCK if spreads.shared.waits_for_host else 0.0
    early = constants.FORWARD_SHARE * idle
    shown = 1.0 - constants.TENSOR_OVERLAP if spreads.shared.sequence_parallel else 1.0
    tensor = shown * traffic.tensor_often(spreads) * links.gather(*traffic.tensor(work, spreads, T))
    met = _contexts(work, spreads, links, T, scores)
    return _Block(
        gemm=products + gradients, attention=attention + attention_back,
        pointwise=light + light_back, tensor=tensor,
        expert=_experts_exchange(work, spreads, links, T) * traffic.passes(spreads),
        context=met * (1.0 + spreads.shared.reached) / 2.0, idle=idle,
        forward=products + attention + light + early,
        backward=gradients + attention_back + light_back + idle - early,
        weight_gradients=gemm * spreads.shared.trained,
    )  # fmt: skip


def _products(work: Work, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """Forward products of an average block."""
    whole = product_seconds(work.average_block(rates.half), spreads, rates, T)
    if work.spec.experts is None:
        return whole
    each = expert_seconds(work, halves(work.expert, rates.half), spreads, rates, T)
    return np.asarray(whole + work.layers_experts / work.layers * each)


def product_seconds(sizes: Halves, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """Forward products of a micro-batch; `sizes` have the rates' ramp."""
    return amounts.product_flop(T, sizes, spreads, rates.half) / rates.matmul


def _unneeded(work: Work, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """Of an average block, its last product done again."""
    last = product_seconds(halves(work.dense[-1:], rates.half), spreads, rates, T)
    again = amounts.again(spreads, 2) * spreads.shared.reached
    return np.asarray(again * work.layers_dense / work.layers * last)


def expert_seconds(work: Work, sizes: Halves, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """Forward products of the experts that a rank has, of each of whose matrices `sizes` are."""
    local, tokens = amounts.experts_here(work, spreads, T)
    flop = local * 2.0 * (tokens + rates.half) * sizes.whole
    return np.asarray(flop / (rates.matmul * constants.EXPERT_REACH))


def attention_seconds(work: Work, spreads: Spreads, rates: Rates, T: Array) -> tuple[Array, Array]:
    """Attention's forward and backward pass, by tiles or through memory."""
    flop, width = amounts.score_flop(work, spreads, T), work.spec.head_width
    if spreads.shared.flash_attention:
        slower = max(1.0, 128.0 / width) ** constants.HEAD_WIDTH_POWER
        slower /= rates.biased if work.biased_scores else 1.0
        return (
            flop * slower / rates.attention_forward,
            amounts.TILES_BACKWARD * flop * slower / rates.attention_backward,
        )
    misaligned = constants.MISALIGNED if width % 8 else 1.0
    products = misaligned * flop / (rates.matmul_whole * constants.SCORE_REACH)
    moved = amounts.score_bytes(work, spreads) / rates.memory
    share = constants.SCORE_FORWARD_SHARE
    return products + share * moved, 2.0 * products + (1.0 - share) * moved


def head_seconds(spec: ModelSpec, spreads: Spreads, rates: Rates, T: Array) -> Array:
    """The vocabulary's product, forward and backward, and the loss; a few classes cost nothing."""
    if not spreads.shared.logits:
        return np.zeros_like(T)
    sizes = halves((amounts.head(spec),), rates.half)
    products = 3.0 * amounts.product_flop(T, sizes, spreads, rates.half) / rates.matmul_whole
    return np.asarray(products + amounts.logit_bytes(spec, spreads, T) / rates.memory)


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
    once, reduced = _gathered(work, spreads, links, held)
    forward = blocks * block.forward + head / 3.0
    backward = blocks * block.backward + head * 2.0 / 3.0
    hidden = constants.OVERLAP
    trained = spreads.shared.trained
    # Gradients are reduced in fp32; what hides takes multiprocessors and bandwidth from the rest.
    # Backward, parameters are gathered again where they were dropped.
    reduced = trained * reduced
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


def _gathered(
    work: Work, spreads: Spreads, links: Links, held: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Seconds to gather all parameters of a rank, and to reduce and scatter their gradients."""
    once = reduced = np.zeros(spreads.size)
    for sent in traffic.weights(work, spreads, held, 1.0):
        of_byte, waits = links.gathering(sent.ranks, sent.stride)
        seconds = of_byte * sent.moved
        once = once + (spreads.value_bytes * seconds + waits)
        reduced = reduced + (constants.REDUCED_BYTES * seconds + waits)
    return once, reduced


def data_least(work: Work, spreads: Spreads, fleet: Fleet) -> Array:
    """What `_data` is at the least, whatever is sharded and however long the computing is that
    hides it.
    """
    links, held = Links.of(fleet), traffic.held(work, spreads)
    trained = spreads.shared.trained
    once, reduced = _gathered(work, spreads, links, held)
    reduced = trained * reduced
    every = constants.CONTENTION * (once + reduced) + reduced * spreads.pipeline / work.layers
    often = np.where(spreads.pipeline > 1, 1.0, spreads.accumulation)
    plain = constants.EXPOSED_REDUCTION * (reduced + trained * once)
    return np.where(spreads.shards > 1, np.minimum(every * often, plain), 0.0)
