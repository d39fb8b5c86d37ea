"""Seconds of one pass through a model that is served: a decode step, or a prefill.

`decode_seconds` and `prefill_seconds` are all that serving knows of a machine.

Each kind of operation takes the longer of reading its bytes and computing its FLOP (the roofline,
Williams, Waterman & Patterson, 2009), one after the other; starting kernels and reductions between
ranks come on top.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import msgspec

from narrows.plan.fleet import constants, here
from narrows.plan.fleet.between import Sent, between_ranks
from narrows.plan.fleet.work import Halves, Matrix, Work, halves
from narrows.spec.fleet import Fleet
from narrows.spec.ledger import Kind
from narrows.spec.model import ModelSpec

_PRODUCTS: tuple[tuple[str, Kind], ...] = (
    ("attention's matrices", "gemm"), ("feed-forward", "gemm"), ("experts", "gemm"),
    ("head", "gemm"),
)  # fmt: skip


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """How one copy of the model is laid out; bits of a weight, and bytes of a key or value.

    Of `tensor` ranks, `attention_data` groups attend to different requests. `compute_bits`: of
    products, where more than the weights have. `captured`: a step's kernels start as one graph.
    """

    tensor: int = 1
    attention_data: int = 1
    weight_bits: float = 16.0
    cache_bytes: float = 2.0
    compute_bits: float | None = None
    captured: bool = True


class Pass(NamedTuple):
    """Seconds of one pass by what they are spent on; whichever of reading and computing is longer
    in an operation counts.
    """

    read: float
    compute: float
    links: float
    starts: float

    @property
    def seconds(self) -> float:
        """The whole."""
        return self.read + self.compute + self.links + self.starts


class Part(NamedTuple):
    """An operation of a pass on one device: FLOP and bytes, and the seconds of each at its rate."""

    name: str
    kind: Kind
    flop: float
    bytes: float
    compute: float
    read: float

    @property
    def seconds(self) -> float:
        """Whichever is longer."""
        return max(self.read, self.compute)


class _Product(NamedTuple):
    """Bytes that products read, their FLOP, and those that take as long without Reach's ramp."""

    read: float
    flop: float
    timed: float


class Tokens(NamedTuple):
    """What a pass computes: `new` tokens of all requests, which attend to `seen` tokens each, of
    `sequences` requests whose caches are read.
    """

    new: float
    sequences: float
    seen: float


class Prompt(NamedTuple):
    """`tokens` of one request to compute, behind `cached` ones that are kept already; in a pass of
    their own, or `beside` so many tokens of a decode step, as one `among` so many alike.
    """

    tokens: float
    cached: float = 0.0
    beside: float = 0.0
    among: float = 1.0


def decode_seconds(
    work: Work, replica: Replica, sequences: float, past: float, fleet: Fleet, each: float = 1.0
) -> float:
    """`each` tokens for each of `sequences`, with `past` tokens behind them."""
    served = served_here(work, replica, fleet)
    if (known := here.seconds(here.decode_rows, served, sequences, past, each)) is not None:
        return known
    tokens = Tokens(sequences * each, sequences, seen(work.spec, past))
    return decode_pass(work, replica, tokens, fleet).seconds


def prefill_seconds(work: Work, replica: Replica, prompt: Prompt, fleet: Fleet) -> float:
    """A prompt of one request."""
    served, asked = served_here(work, replica, fleet), (prompt.tokens, prompt.cached, prompt.beside)
    if (known := here.seconds(here.prefill_rows, served, *asked)) is not None:
        return known
    return prefill_pass(work, replica, prompt, fleet).seconds


def served_here(work: Work, replica: Replica, fleet: Fleet) -> here.Served:
    """What a machine at hand may have measured."""
    return here.Served(
        fleet, work.spec, replica.weight_bits, replica.cache_bytes, ranks=replica.tensor
    )


def decode_pass(work: Work, replica: Replica, tokens: Tokens, fleet: Fleet) -> Pass:
    """One decode step."""
    return _summed(decode_parts(work, replica, tokens, fleet), work, replica, tokens, fleet)


def decode_parts(work: Work, replica: Replica, tokens: Tokens, fleet: Fleet) -> list[Part]:
    """What a decode step computes and reads."""
    own = max(1.0, tokens.sequences / replica.attention_data)
    cache = own * tokens.seen * cache_bytes_per_token(work.spec, replica)
    scored = own * tokens.new / tokens.sequences * tokens.seen
    flop = scored * work.spec.layers * _score_flop(work.spec, replica)
    return [
        *_products(work, replica, tokens.new, fleet),
        Part(
            "scores over the cache", "attention", flop, cache,
            compute=flop / _whole(fleet) / constants.SERVING_SCORES,
            read=cache / float(fleet.memory_bandwidth.value) / constants.SERVING_CACHE,
        ),
    ]  # fmt: skip


def prefill_pass(work: Work, replica: Replica, prompt: Prompt, fleet: Fleet) -> Pass:
    """One prompt, as if all ranks computed it: groups that attend for themselves have one each."""
    if not prompt.beside:
        parts = prefill_parts(work, replica, prompt, fleet)
        return _summed(parts, work, replica, Tokens(prompt.tokens, 1.0, 0.0), fleet)
    scores, elements = _between_products(work, replica, prompt, fleet)
    # What joins a step adds what it computes, and what it reads beyond the step's own.
    alone, both = prompt.beside, prompt.beside + prompt.among * prompt.tokens
    more = sum(each.seconds for each in _products(work, replica, both, fleet)) - sum(
        each.seconds for each in _products(work, replica, alone, fleet)
    )
    links = reductions(work, replica, both, fleet).seconds
    links -= reductions(work, replica, alone, fleet).seconds
    return Pass(
        read=elements.read, compute=scores.compute + max(0.0, more) / prompt.among,
        links=links / prompt.among, starts=0.0,
    )  # fmt: skip


def prefill_parts(work: Work, replica: Replica, prompt: Prompt, fleet: Fleet) -> list[Part]:
    """What a prompt in a pass of its own computes and reads."""
    products = _products(work, replica, prompt.tokens, fleet)
    return [*_between_products(work, replica, prompt, fleet), *products]


def _between_products(
    work: Work, replica: Replica, prompt: Prompt, fleet: Fleet
) -> tuple[Part, Part]:
    """A prompt's causal scores over the new and the kept, by tiles, which read queries, keys and
    values once and write what comes of them; and elements that are moved.
    """
    spec, rate = work.spec, float(fleet.memory_bandwidth.value) * constants.SERVING_MEMORY
    positions = max(1, int(prompt.tokens))
    keys = sum(count * spec.keys_mean(positions, layer) for layer, count in _alike(spec))
    keys += spec.layers * seen(spec, prompt.cached)
    each = float(spec.heads * (spec.score_width + spec.value_width))
    scores = 2.0 * prompt.tokens * keys * each / replica.tensor
    tiles = spec.layers * prompt.tokens * each * 2.0 / replica.tensor
    tiles += (prompt.tokens + prompt.cached) * cache_bytes_per_token(spec, replica)
    moved = (
        prompt.tokens * spec.width * 2.0 * constants.SERVING_PASSES * spec.layers / replica.tensor
    )
    attending = _whole(fleet) * fleet.reach.attention_forward
    return (
        Part("attention", "attention", scores, tiles, compute=scores / attending, read=0.0),
        Part("memory-bound operations", "pointwise", 0.0, moved, compute=0.0, read=moved / rate),
    )


def weights_bytes(work: Work, replica: Replica) -> float:
    """Of one device."""
    return sum(each.read for each in _matrices(work, replica, 1e12))


def touched_bytes(work: Work, replica: Replica, tokens: float) -> float:
    """Weights that a pass of `tokens` reads on one device; of the experts, those that some token
    chose.
    """
    return sum(each.read for each in _matrices(work, replica, tokens))


def cache_bytes_per_token(spec: ModelSpec, replica: Replica) -> float:
    """Keys and values of one token on one device, all layers."""
    if spec.latent is not None:
        return spec.layers * (spec.latent.kv_rank + spec.latent.rope_width) * replica.cache_bytes
    shared = max(1.0, replica.tensor / replica.attention_data)
    heads = max(1.0, spec.kv_heads / shared)
    return 2.0 * spec.layers * heads * spec.head_width * replica.cache_bytes


def seen(spec: ModelSpec, past: float) -> float:
    """Tokens of a past that a layer attends to, the mean over the layers."""
    windows = [(spec.window_of(layer), count) for layer, count in _alike(spec)]
    total = sum(count * (past if size is None else min(past, size)) for size, count in windows)
    return total / spec.layers


def _alike(spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    """A layer of each kind of window, and how many are like it."""
    every = spec.window.full_every if spec.window else None
    if every is None:
        return ((0, spec.layers),)
    full = spec.layers // every
    return ((every - 1, full), (0, spec.layers - full))


def _products(work: Work, replica: Replica, tokens: float, fleet: Fleet) -> list[Part]:
    """Attention's matrices, feed-forward, experts, head."""
    rate = float(fleet.memory_bandwidth.value)
    shares = (constants.SERVING_MEMORY,) * 2 + (constants.SERVING_EXPERTS, constants.SERVING_MEMORY)
    wide = _rest_bits(work, replica)
    own = replica.compute_bits or replica.weight_bits
    wide = max(wide, own) if replica.compute_bits else wide
    whole = peak_of(fleet, wide)
    peaks = (whole, whole, peak_of(fleet, own) * constants.SERVING_GROUPED, peak_of(fleet, 16.0))
    return [
        Part(
            name,
            kind,
            each.flop,
            each.read,
            compute=each.timed / peak,
            read=each.read / rate / share,
        )
        for (name, kind), each, share, peak in zip(
            _PRODUCTS,
            _matrices(work, replica, tokens, fleet.reach.half),
            shares,
            peaks,
            strict=True,
        )
    ]


def _matrices(
    work: Work, replica: Replica, tokens: float, half: float = 0.0
) -> tuple[_Product, ...]:
    """The same four on one device."""
    spec, ranks = work.spec, float(replica.tensor)
    bits, own = _rest_bits(work, replica), max(1.0, tokens / replica.attention_data)
    ramp = partial(_product, byte=bits / 8.0, half=half)
    attention = ramp(work.layers, work.attention, ranks / replica.attention_data, own)
    dense = ramp(work.layers_dense, work.dense, ranks, tokens)
    routed = ramp(work.layers_experts, work.routed, ranks, tokens)
    experts = _Product(0.0, 0.0, 0.0)
    if spec.experts is not None:
        each = work.layers_experts * _size(work.expert, 0.0).over(1.0) / ranks
        draws = min(tokens, 1e6) ** constants.SERVING_DRAWS
        missed = (1.0 - spec.experts.chosen / spec.experts.count) ** draws
        touched = spec.experts.count * (1.0 - missed)
        flop = 2.0 * each * tokens * spec.experts.chosen
        experts = _Product(each * touched * replica.weight_bits / 8.0, flop, flop)
    head = float(spec.vocabulary * spec.width) / ranks
    last = 2.0 * min(tokens, own) * head
    together = _Product(*(a + b for a, b in zip(dense, routed, strict=True)))
    return attention, together, experts, _Product(2.0 * head, last, last)


def _product(
    layers: float, matrices: tuple[Matrix, ...], ranks: float, tokens: float, *,
    byte: float, half: float,
) -> _Product:  # fmt: skip
    """Of so many layers' `matrices` of `byte` bytes a weight, divided over `ranks`."""
    held = layers * _size(matrices, 0.0).over(ranks)
    # Few rows have kernels of their own, which start no tile that they do not fill.
    timed = 2.0 * (tokens + min(half, tokens)) * layers * _size(matrices, half).over(ranks)
    return _Product(byte * held, 2.0 * tokens * held, timed)


def _rest_bits(work: Work, replica: Replica) -> float:
    """Of weights outside of experts: formats of 4 bits are made for experts where there are any
    (arXiv:2508.10925; NVIDIA, DeepSeek-R1-NVFP4, 2025).
    """
    return 16.0 if work.spec.experts and replica.weight_bits < 8.0 else replica.weight_bits


def peak_of(fleet: Fleet, bits: float) -> float:
    """FLOP/s that products of weights of `bits` reach."""
    whole = _whole(fleet)
    narrow, share = "fp8", constants.SERVING_EIGHT
    if bits < 8.0:
        narrow, share = "fp4", constants.SERVING_FOUR
    gain = 1.0
    if bits <= 8.0 and narrow in fleet.peak:
        gain += (float(fleet.peak[narrow].value) / whole - 1.0) * share
    return whole * fleet.reach.matmul * constants.SERVING_MATMUL * gain


def _whole(fleet: Fleet) -> float:
    return fleet.peak_of(fleet.precision if fleet.floating else "int8")


def _score_flop(spec: ModelSpec, replica: Replica) -> float:
    """Of one query and one key in one layer on one device, by the latent where there is one: each
    head meets the whole of it (arXiv:2405.04434, absorbed).
    """
    heads = max(1.0, spec.heads * replica.attention_data / replica.tensor)
    if spec.latent is None:
        return 2.0 * heads * (spec.score_width + spec.value_width)
    return 2.0 * heads * (2.0 * spec.latent.kv_rank + spec.latent.rope_width)


def _summed(parts: list[Part], work: Work, replica: Replica, tokens: Tokens, fleet: Fleet) -> Pass:
    return Pass(
        read=sum(each.read for each in parts if each.read >= each.compute),
        compute=sum(each.compute for each in parts if each.read < each.compute),
        links=reductions(work, replica, tokens.new, fleet).seconds,
        starts=starts(work, replica, tokens.sequences, fleet),
    )


def starts(work: Work, replica: Replica, sequences: float, fleet: Fleet) -> float:
    """Seconds to start a pass's kernels, and of the host for the pass and each request in it."""
    found = work.layers * constants.SERVING_BLOCK + work.layers_experts * constants.SERVING_ROUTING
    found += _narrowing(work, replica, fleet)
    if work.spec.latent is not None:
        found += work.layers * constants.SERVING_LATENT
    if not replica.captured:
        found += work.layers * constants.SERVING_EAGER
    own = sequences / replica.attention_data
    return found + constants.SERVING_STEP + own * constants.SERVING_SEQUENCE


def _narrowing(work: Work, replica: Replica, fleet: Fleet) -> float:
    """Seconds of kernels that bring a block's operands into the format of its products: in 4 bits
    for each product; of experts, in blocks of 8 bits or where a device lacks 4, as their own
    kernels in 4 bits begin with it.
    """
    if replica.weight_bits >= 16.0:
        return 0.0
    if work.spec.experts is None:
        narrow = replica.weight_bits < 8.0 and replica.compute_bits is None
        return work.layers * constants.SERVING_NARROWED if narrow else 0.0
    own = replica.weight_bits < 8.0 and replica.compute_bits is None and "fp4" in fleet.peak
    return 0.0 if own else work.layers_experts * constants.SERVING_NARROWED_EXPERTS


def reductions(work: Work, replica: Replica, tokens: float, fleet: Fleet) -> Sent:
    """Between the ranks, of a pass of `tokens`."""
    narrow = replica.weight_bits <= 8.0 and replica.compute_bits is None
    groups = replica.attention_data
    return between_ranks(work, replica.tensor, groups, tokens, fleet, narrow=narrow)


@cache
def _size(matrices: tuple[Matrix, ...], half: float) -> Halves:
    return halves(matrices, half)
