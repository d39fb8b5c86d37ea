"""The rows of a step's ledger: what a layout computes and moves, operation by operation.

Seconds are those of `time`, divided as its own expressions do; FLOP and bytes are those that they
were taken from. Products and attention by tiles take their time from FLOP alone: their bytes are
each operand's and each result's, once. What is memory-bound has no FLOP here.

A rank of the mean number of blocks is followed, and of the head what shows: a stage that has fewer
blocks computes it while the others compute theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from narrows.plan.fleet import amounts, constants, traffic
from narrows.plan.fleet.amounts import Ways
from narrows.plan.fleet.optimizer import copied_bytes, moved_bytes, owned
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stage
from narrows.plan.fleet.time import (
    Rates,
    Step,
    attention_seconds,
    expert_seconds,
    head_seconds,
    product_seconds,
)
from narrows.plan.fleet.work import Matrix, Work, halves
from narrows.plan.layouts import Array
from narrows.spec.fleet import Fleet, Spread
from narrows.spec.ledger import Kind, Phase, Row

# Collectives by what of Step they take, and the axes of ranks that they are among.
_LINKS = {
    "tensor": ("tensor-parallel collectives", ("tensor",)),
    "expert": ("tokens to experts", ("expert",)),
    "context": ("context-parallel ring", ("context",)),
    "pipeline": ("pipeline hops", ("pipeline",)),
    "data": ("data-parallel collectives", ("data", "replicas")),
}
_IDLE = {"bubble": "pipeline bubble", "waiting": "stragglers, host and data"}
_PHASES: tuple[Phase, Phase] = ("forward", "backward")
_NONE = np.zeros(1)
_ROUNDING = 1e-12
"""Of a step, what is no time but a difference of equals."""


class _Amount(NamedTuple):
    """What all calls of an operation take, arrays [1]."""

    calls: Array
    flop: Array = _NONE
    memory: Array = _NONE
    network: Array = _NONE
    seconds: Array = _NONE


_Told = tuple[str, Phase, Kind, _Amount]


class _Rank(NamedTuple):
    """One layout, what it runs on, and the step that it takes."""

    work: Work
    spreads: Spreads
    rates: Rates
    taken: Step

    @property
    def tokens(self) -> Array:
        """Of a micro-batch."""
        return amounts.tokens(self.work, self.spreads)

    def often(self, layers: float) -> Array:
        """How often one of so many layers is computed in a step."""
        return layers / self.spreads.pipeline * self.spreads.accumulation


def rows(work: Work, spread: Spread, fleet: Fleet, taken: Step, energy: float) -> Iterator[Row]:
    """Of the step `taken`, whose `energy` goes by seconds."""
    rates = Rates.of(fleet, spread.precision, spread.kernels)
    rank = _Rank(work, Spreads.of([spread]), rates, taken)
    seconds = float(taken.seconds[0])
    for part in (_products, _experts, _attention, _pointwise, _head, _links, _optimizer, _idle):
        for operation, phase, kind, amount in part(rank):
            count, flop, memory, network, own = (float(each[0]) for each in amount)
            if own > _ROUNDING * seconds or network > 0.0:
                yield Row(
                    operation=operation, phase=phase, kind=kind, count=count, flop=flop,
                    memory_bytes=memory, network_bytes=network, seconds=own,
                    joules=energy * own / seconds,
                )  # fmt: skip


def _products(rank: _Rank) -> Iterator[_Told]:
    work, spreads, rates, T = rank.work, rank.spreads, rank.rates, rank.tokens
    groups = (
        (work.layers, work.attention), (work.layers_dense, work.dense),
        (work.layers_experts, work.routed),
    )  # fmt: skip
    for layers, matrices in groups:
        often = rank.often(layers)
        for matrix in matrices:
            ramped = halves((matrix,), rates.half)
            forward = _Amount(
                calls=often,
                flop=often * amounts.product_flop(T, halves((matrix,), 0.0), spreads),
                memory=often * _operands(matrix, spreads, T),
                seconds=often * product_seconds(ramped, spreads, rates, T),
            )
            last = matrix == work.dense[-1] and amounts.stops_early(work, spreads)
            yield from _both(matrix.name, "gemm", forward, _product_ways(spreads, last=last))


def _experts(rank: _Rank) -> Iterator[_Told]:
    if rank.work.spec.experts is None:
        return
    work, spreads, rates, T = rank.work, rank.spreads, rank.rates, rank.tokens
    local, tokens = amounts.experts_here(work, spreads, T)
    often = rank.often(work.layers_experts)
    for matrix in work.expert:
        ramped = halves((matrix,), rates.half)
        forward = _Amount(
            calls=often * local,
            flop=often * local * 2.0 * tokens * matrix.parameters,
            memory=often * local * _operands(matrix, spreads, tokens),
            seconds=often * expert_seconds(work, ramped, spreads, rates, T),
        )
        yield from _both(matrix.name, "gemm", forward, _product_ways(spreads))


def _attention(rank: _Rank) -> Iterator[_Told]:
    work, spreads, T = rank.work, rank.spreads, rank.tokens
    often = rank.often(work.layers)
    flop = amounts.score_flop(work, spreads, T)
    if spreads.shared.flash_attention:
        # Backward, all that was read is read, its gradients written, and the output's read.
        moved = _attended(work, spreads, T)
        memory, back = (moved, 2.0 * moved), amounts.TILES_BACKWARD
    else:
        moved, share = amounts.score_bytes(work, spreads), constants.SCORE_FORWARD_SHARE
        memory, back = (share * moved, (1.0 - share) * moved), 2.0
    seconds = attention_seconds(work, spreads, rank.rates, T)
    count, flops, memories, waited = (
        amounts.attention_ways(often * forward, often * backward, spreads)
        for forward, backward in (
            (np.ones(1), np.ones(1)), (flop, back * flop), memory, seconds,
        )
    )  # fmt: skip
    for place, phase in enumerate(_PHASES):
        yield "attention", phase, "attention", _Amount(
            calls=count[place], flop=flops[place], memory=memories[place], seconds=waited[place]
        )  # fmt: skip


def _pointwise(rank: _Rank) -> Iterator[_Told]:
    often = rank.often(rank.work.layers)
    both = often * amounts.pointwise_bytes(rank.work, rank.spreads, rank.tokens)
    ways = amounts.pointwise_ways(both, rank.spreads)
    for phase, moved in zip(_PHASES, ways, strict=True):
        yield "memory-bound operations", phase, "pointwise", _Amount(
            calls=often, memory=moved, seconds=moved / rank.rates.memory
        )  # fmt: skip


def _head(rank: _Rank) -> Iterator[_Told]:
    spec, spreads, T = rank.work.spec, rank.spreads, rank.tokens
    whole = head_seconds(spec, spreads, rank.rates, T)
    if not spreads.shared.logits or not whole[0]:
        return
    matrix = amounts.head(spec)
    often = rank.taken.head / whole
    forward = _Amount(
        calls=often,
        flop=often * amounts.product_flop(T, halves((matrix,), 0.0), spreads),
        memory=often * (_operands(matrix, spreads, T) + amounts.logit_bytes(spec, spreads, T) / 3),
        seconds=rank.taken.head / 3.0,
    )
    yield from _both("head and loss", "loss", forward, lambda once: (once, 2.0 * once))


def _links(rank: _Rank) -> Iterator[_Told]:
    spread = rank.spreads.spread(0)
    middle = Stage.of(rank.work, spread, spread.pipeline // 2)
    planned = traffic.planned(rank.work, spread, middle)
    for part, (name, axes) in _LINKS.items():
        sent = [each for each in planned if each.axis in axes]
        yield name, "other", "link", _Amount(
            calls=_NONE + sum(each.count for each in sent),
            network=_NONE + sum(each.bytes for each in sent),
            seconds=getattr(rank.taken, part),
        )  # fmt: skip


def _optimizer(rank: _Rank) -> Iterator[_Told]:
    """Offloaded, the memory is the host's, and the network what joins it."""
    spreads = rank.spreads
    mine = owned(spreads, traffic.held(rank.work, spreads))
    away = spreads.shared.offload != "none"
    yield "optimizer", "optimizer", "optimizer", _Amount(
        calls=np.ones(1), memory=mine * moved_bytes(spreads.shared),
        network=mine * copied_bytes(spreads) if away else _NONE, seconds=rank.taken.optimizer,
    )  # fmt: skip


def _idle(rank: _Rank) -> Iterator[_Told]:
    for part, name in _IDLE.items():
        yield name, "other", "idle", _Amount(calls=np.ones(1), seconds=getattr(rank.taken, part))


def _both(name: str, kind: Kind, given: _Amount, ways: Callable[[Array], Ways]) -> Iterator[_Told]:
    """An operation forward and backward, each of whose amounts `ways` divides alike."""
    for phase, amount in zip(_PHASES, zip(*map(ways, given), strict=True), strict=True):
        yield name, phase, kind, _Amount(*amount)


def _product_ways(spreads: Spreads, *, last: bool = False) -> Callable[[Array], Ways]:
    return lambda forward: amounts.product_ways(forward, spreads, last=last)


def _operands(matrix: Matrix, spreads: Spreads, T: Array) -> Array:
    """Bytes of both operands and the result of one product of T rows."""
    out = matrix.out / (spreads.tensor if matrix.cut == "out" else 1.0)
    inner = matrix.inner / (spreads.tensor if matrix.cut == "in" else 1.0)
    return np.asarray((T * (out + inner) + out * inner) * spreads.value_bytes)


def _attended(work: Work, spreads: Spreads, T: Array) -> Array:
    """Bytes of a block's queries and outputs, and of all keys and values that they meet."""
    spec = work.spec
    each = float(spec.score_width + spec.value_width)
    kept = spec.heads if spec.latent is not None else spec.kv_heads
    values = T * (spec.heads + kept * spreads.context) * each / spreads.tensor
    return np.asarray(work.attentions * values * spreads.value_bytes)
