"""Bytes of one device at the worst moment under many layouts, by kind (arXiv:2205.05198).

Two stages compete: the first keeps the activations of as many micro-batches as the pipeline is
deep, the last those of one, and the logits.
"""

from __future__ import annotations

import numpy as np

from narrows.plan.fleet import constants
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import stage_parameters
from narrows.plan.fleet.work import Work, parameters
from narrows.plan.layouts import Array
from narrows.plan.memory import MemoryBytes

_FP32 = 4.0
_CHUNK = 1024.0
"""Positions whose logits exist at once where the loss is taken in chunks."""


def memory(work: Work, spreads: Spreads) -> MemoryBytes:
    """The device that needs most, [layouts]; masters are counted with the optimizer's states."""
    common, own = stage_parameters(work, spreads)
    value, d = spreads.value_bytes, spreads.shards
    state = common + own
    mine = common / d + own / spreads.expert_shards
    sharding = spreads.sharding
    shared = spreads.shared
    stored = value if shared.stored_bits is None else shared.stored_bits / 8.0
    # Tables of embeddings are looked up as they are; only products read narrower weights.
    tables = 1.0 if work.spec.tied_embeddings else 2.0
    table = tables * work.spec.vocabulary * work.spec.width * (value - stored)
    # A pipeline gathers its stage once a step, not for each micro-batch, as torchtitan does.
    whole = (sharding == 3) & (spreads.pipeline == 1)
    weights = stored * np.where(whole, mine, state) + table / spreads.tensor
    # Two blocks' weights stand gathered at once: one computes, the next arrives.
    layers = work.layers / spreads.pipeline
    gathered = np.where(whole, 2.0 * value * state / np.maximum(layers, 1.0), 0.0)
    here = 0.0 if shared.offload else shared.trained
    cut = (sharding == 2) | whole
    gradients = here * shared.gradient_bytes * np.where(cut, mine, state)
    optimizer = here * constants.STATE_BYTES * np.where(sharding >= 1, mine, state)
    T = spreads.micro_batch * (work.positions / spreads.context)
    p = spreads.pipeline
    flight = np.minimum(p, spreads.accumulation)
    flight = flight * (1.0 + np.where(spreads.interleave > 1, (p - 1.0) / (p * spreads.interleave),
                                      0.0))  # fmt: skip
    block = T * kept_bytes(work, spreads)
    stream = T * work.spec.width * value
    kept_stream = stream / (spreads.tensor if spreads.shared.sequence_parallel else 1.0)
    full = spreads.recompute == 2
    kept = np.where(full, kept_stream, block)
    if shared.flash_attention:
        # Half of the products' results are computed again, and all between them.
        kept = np.where(spreads.recompute == 1, 0.5 * (block + kept_stream), kept)
    again = np.where(full, block, 0.0)
    rows = np.minimum(T, _CHUNK) if shared.chunked_loss else T
    logits = rows * work.spec.vocabulary / spreads.tensor * constants.LOGIT_MEMORY
    first = flight * layers * kept + again
    last = layers * kept + again + logits
    at_first = first >= last
    training = float(shared.trained > 0.0)
    # A product of weights that are kept narrower wants them whole first, one matrix at a time.
    matrices = (*work.attention, *work.dense, *work.expert)
    widest = max(each.parameters for each in matrices) if shared.stored_bits else 0.0
    return MemoryBytes(
        weights=weights,
        masters=0.0 * T,
        gradients=gradients,
        optimizer=optimizer,
        activations=training * constants.ALLOCATOR * np.where(at_first, first, last - logits),
        logits=training * np.where(at_first & (p > 1), 0.0, logits),
        workspace=constants.ALLOCATOR
        * (gathered + value * widest + training * constants.WORKSPACE_STREAMS * stream),
        runtime=constants.RUNTIME_BYTES
        + np.where(
            d * spreads.replicas * spreads.tensor * p > 1, constants.COMMUNICATOR_BYTES, 0.0
        ),
    )


def kept_bytes(work: Work, spreads: Spreads) -> Array:
    """Bytes of a block that wait for its backward pass, per token, where nothing is done again."""
    spec, value, t = work.spec, spreads.value_bytes, spreads.tensor
    whole = spreads.tensor if spreads.shared.sequence_parallel else np.ones_like(t)
    # What a product in fewer bits reads again backward is kept in those bits, a byte at the least.
    narrow = 1.0 if spreads.shared.precision in ("fp8", "fp4") else value
    attention = value * sum(m.out for m in work.attention if m.name != "out")
    attention += narrow * spec.heads * spec.value_width
    feed = work.layers_dense * (value * spec.up_width + narrow * spec.feed_forward_width)
    if spec.experts is not None:
        tokens = spec.experts.chosen * spec.experts.width + spec.experts.shared_total
        gates = 2.0 if spec.gated else 1.0
        each = (gates * value + narrow) * tokens + narrow * spec.experts.chosen * spec.width
        feed += work.layers_experts * each
    inside = attention + feed / work.layers + _FP32 * spec.heads
    # The stream before both norms and after them; dropout's masks are no longer the habit.
    outside = spec.width * ((constants.STREAMS_KEPT - 2.0) * value + 2.0 * narrow)
    kept = outside / whole + inside / t
    if not spreads.shared.flash_attention:
        # Scores, softmax and their dropout, 5 bytes each (arXiv:2205.05198, equation 2).
        scores = 5.0 * spec.heads * work.positions / t
        kept = kept + np.where(spreads.recompute == 1, 0.0, scores)
    return np.asarray(kept)


def weights_bytes(work: Work) -> float:
    """All weights in 16 bits, for what must be loaded and saved."""
    total = sum(
        layers * (sums.whole + sums.cut)
        for layers, sums in (
            (work.layers, parameters(work.attention)),
            (work.layers_dense, parameters(work.dense)),
            (work.layers_experts, parameters(work.routed)),
        )
    )
    if work.spec.experts is not None:
        total += work.layers_experts * work.spec.experts.count * parameters(work.expert).whole
    return 2.0 * (total + work.spec.embedding_parameters)
