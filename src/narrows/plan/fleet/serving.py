"""Seconds to the first token and between tokens of a model that is served by continuous batching.

A decode step reads every weight that its tokens meet and every key and value of their past; a
prefill computes. Under a constant number of requests each of them is prefilled once in the time
that it takes to write its answer, so a step between two tokens carries its share of a prefill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from narrows.plan.fleet import constants, here
from narrows.plan.fleet.links import Links
from narrows.plan.fleet.work import Matrix, Work, parameters
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Load:
    """`concurrency` requests at a time on one replica, each of `prompt` tokens and `answer` more;
    `apart`: other devices compute the prompts.
    """

    concurrency: float
    prompt: float
    answer: float
    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Replica:
    """How one copy of the model is laid out; bits of a weight, and bytes of a key or value.

    `tensor` ranks share attention, `expert` of them hold different experts; `attention_data` groups
    of them attend to different requests.
    """

    tensor: int = 1
    expert: int = 1
    attention_data: int = 1
    weight_bits: float = 16.0
    cache_bytes: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """Seconds to the first token, seconds a token, and what a device holds."""

    first_token: float
    per_token: float
    prefill: float
    decode: float
    weights_bytes: float
    cache_bytes: float


def serve(work: Work, replica: Replica, load: Load, fleet: Fleet) -> Served:
    """Steady state under a constant number of requests."""
    past = load.prompt + load.answer / 2.0
    decode = decode_seconds(work, replica, load.concurrency, past, fleet)
    prefill = prefill_seconds(work, replica, load.prompt, fleet)
    # One prompt joins for each answer that ends.
    joining = 0.0 if load.apart else load.concurrency / max(load.answer, 1.0)
    per_token = decode + joining * prefill / replica.attention_data
    # A request waits for the step that runs, and for the prompts that came at the same time.
    together = load.concurrency / replica.attention_data * constants.SERVING_TOGETHER
    waiting = 0.5 * per_token + prefill * together
    return Served(
        first_token=constants.SERVING_REQUEST + prefill + waiting,
        per_token=per_token,
        prefill=prefill,
        decode=decode,
        weights_bytes=weights_bytes(work, replica),
        cache_bytes=load.concurrency * (load.prompt + load.answer)
        * cache_bytes_per_token(work.spec, replica),
    )  # fmt: skip


def decode_seconds(
    work: Work, replica: Replica, sequences: float, past: float, fleet: Fleet
) -> float:
    """One token for each of `sequences`, each with `past` tokens behind it."""
    machine = here.measured(fleet, work.spec, replica.weight_bits, replica.tensor)
    if machine is not None:
        return here.decode_seconds(work.spec, sequences, past, machine)
    rate = float(fleet.memory_bandwidth.value) * constants.SERVING_MEMORY
    read = touched_bytes(work, replica, sequences) / replica.tensor
    windows = [work.spec.window_of(layer) for layer in range(work.spec.layers)]
    seen = sum(past if size is None else min(past, size) for size in windows) / len(windows)
    own = max(1.0, sequences / replica.attention_data)
    read += own * seen * cache_bytes_per_token(work.spec, replica)
    compute = _flop(work, sequences) / replica.tensor / _peak(fleet, replica)
    return max(read / rate, compute) + _fixed(work, replica, sequences, fleet)


def prefill_seconds(work: Work, replica: Replica, prompt: float, fleet: Fleet) -> float:
    """A prompt of one request, computed at once."""
    machine = here.measured(fleet, work.spec, replica.weight_bits, replica.tensor)
    if machine is not None:
        return here.prefill_seconds(work.spec, prompt, machine)
    rate = float(fleet.memory_bandwidth.value) * constants.SERVING_MEMORY
    compute = _flop(work, prompt) / replica.tensor / _peak(fleet, replica)
    keys = sum(work.spec.keys_mean(int(prompt), layer) for layer in range(work.spec.layers))
    spec = work.spec
    scores = 2.0 * prompt * keys * spec.heads * (spec.score_width + spec.value_width)
    whole = _peak(fleet, Replica())
    attention = scores / replica.tensor / (whole / fleet.reach.matmul
                                           * fleet.reach.attention_forward)  # fmt: skip
    moved = prompt * spec.width * 2.0 * constants.SERVING_PASSES * spec.layers / replica.tensor
    read = touched_bytes(work, replica, prompt) / replica.tensor
    return max(compute + attention + moved / rate, read / rate) + _fixed(
        work, replica, prompt, fleet
    )


def weights_bytes(work: Work, replica: Replica) -> float:
    """Of one device."""
    return touched_bytes(work, replica, 1e12) / replica.tensor


def cache_bytes_per_token(spec: ModelSpec, replica: Replica) -> float:
    """Keys and values of one token on one device, all layers."""
    if spec.latent is not None:
        return spec.layers * (spec.latent.kv_rank + spec.latent.rope_width) * replica.cache_bytes
    shared = max(1.0, replica.tensor / replica.attention_data)
    heads = max(1.0, spec.kv_heads / shared)
    return 2.0 * spec.layers * heads * spec.head_width * replica.cache_bytes


def touched_bytes(work: Work, replica: Replica, tokens: float) -> float:
    """Weights that a pass of `tokens` reads; of the experts, those that some token chose."""
    spec = work.spec
    bits = replica.weight_bits / 8.0
    total = work.layers * _size(work.attention) * bits
    total += work.layers_dense * _size(work.dense) * bits
    total += spec.vocabulary * spec.width * 2.0
    if spec.experts is not None:
        missed = (1.0 - spec.experts.chosen / spec.experts.count) ** min(tokens, 1e6)
        chosen = spec.experts.count * (1.0 - missed)
        total += work.layers_experts * (chosen * _size(work.expert) + _size(work.routed)) * bits
    return total


def _flop(work: Work, tokens: float) -> float:
    spec = work.spec
    total = work.layers * _size(work.attention) + work.layers_dense * _size(work.dense)
    if spec.experts is not None:
        each = spec.experts.chosen * _size(work.expert) + _size(work.routed)
        total += work.layers_experts * each
    return 2.0 * tokens * total


def _peak(fleet: Fleet, replica: Replica) -> float:
    known = {name: float(fact.value) for name, fact in fleet.peak.items()}
    whole = known.get("bf16") or known.get("fp16") or known.get("fp32") or 1.0
    narrow = {8.0: "fp8", 4.0: "fp4"}.get(replica.weight_bits, "bf16")
    gain = known.get(narrow, whole) / whole if narrow in known else 1.0
    return whole * fleet.reach.matmul * (1.0 + (gain - 1.0) * constants.SERVING_NARROW)


def _fixed(work: Work, replica: Replica, tokens: float, fleet: Fleet) -> float:
    """What a pass waits for whatever its size: kernels to start, and reductions across ranks."""
    kernels = work.layers * constants.SERVING_BLOCK + constants.SERVING_STEP
    if replica.tensor == 1:
        return kernels
    links = Links.of(fleet)
    moved = np.array([tokens * work.spec.width * 2.0])
    ranks = np.array([float(replica.tensor)])
    around = float(links.gather(moved, ranks, np.ones(1))[0]) - (replica.tensor - 1) * (
        links.latency_inside
    )
    reduce = constants.SERVING_REDUCE + constants.SERVING_REDUCE_RANK * replica.tensor
    return kernels + 2.0 * work.layers * (reduce + 2.0 * max(0.0, around))


def _size(matrices: tuple[Matrix, ...]) -> float:
    sums = parameters(matrices)
    return sums.whole + sums.cut
