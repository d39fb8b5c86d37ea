"""Bytes of one device at the worst moment under many layouts, by kind (arXiv:2205.05198).

Stages compete: the first keeps the activations of as many micro-batches as the pipeline is deep,
the last those of few, and the logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrows.plan.fleet import constants
from narrows.plan.fleet.optimizer import state_bytes
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import Stages, parameters_of, stages
from narrows.plan.fleet.work import Work, parameters
from narrows.plan.layouts import Array
from narrows.plan.memory import MemoryBytes

_FP32 = 4.0
_CHUNK = 1024.0
"""Positions whose logits exist at once where the loss is taken in chunks."""


def memory(work: Work, spreads: Spreads) -> MemoryBytes:
    """The device that needs most, [layouts]; masters are counted with the optimizer's states."""
    held = stages(work, spreads)
    every = _each(work, spreads, held)
    worst = every.peak.argmax(axis=0)[None]
    return MemoryBytes(**{
        name: np.take_along_axis(getattr(every, name), worst, axis=0)[0]
        for name in every.__struct_fields__
    })  # fmt: skip


def memory_of(work: Work, spreads: Spreads, kind: int) -> MemoryBytes:
    """Of a device of one kind of stage, its place in the arrays of Stages."""
    every = _each(work, spreads, stages(work, spreads))
    return MemoryBytes(**{
        name: getattr(every, name)[kind] for name in every.__struct_fields__
    })  # fmt: skip


def peak(work: Work, spreads: Spreads) -> Array:
    """Bytes of the device that needs most, [layouts]: what a search asks for."""
    return np.asarray(_each(work, spreads, stages(work, spreads)).peak.max(axis=0))


def fullest(work: Work, spreads: Spreads) -> Array:
    """Which stage needs most, [layouts]: the first (0), one in the middle (1) or the last (2)."""
    return np.asarray(_each(work, spreads, stages(work, spreads)).peak.argmax(axis=0))


def _each(work: Work, spreads: Spreads, held: Stages) -> MemoryBytes:
    """Of a device of each kind of stage, [stages, layouts]."""
    value, d = spreads.value_bytes, spreads.shards
    sharding, shared = spreads.sharding, spreads.shared
    common, own = parameters_of(work, spreads, held.layers, held.tables)

    def parameters(sharded: npt.NDArray[np.bool_]) -> Array:
        """Of a rank, its share where they are sharded."""
        some = common / np.where(sharded, d, 1.0)
        if work.spec.experts is None:
            return np.asarray(some)
        return np.asarray(some + own / np.where(sharded, spreads.expert_shards, 1.0))

    stored = value if shared.stored_bits is None else shared.stored_bits / 8.0
    # Tables of embeddings stay as they are; only products of blocks read narrower weights.
    table = held.tables * (work.spec.vocabulary * work.spec.width * (value - stored))
    # A pipeline gathers its stage once a step, not for each micro-batch, as torchtitan does.
    whole = (sharding == 3) & (spreads.pipeline == 1)
    weights = stored * parameters(whole) + table / spreads.tensor
    # Two blocks' weights stand gathered at once: one computes, the next arrives.
    blocks = np.where(spreads.reshard == 1, np.minimum(2.0, held.layers), held.layers)
    each = (common + own) / np.maximum(held.layers, 1.0)
    gathered = np.where(whole, value, 0.0) * blocks * each
    here = 0.0 if shared.offload != "none" else shared.trained
    cut = (sharding == 2) | whole
    gradients = here * shared.gradient_bytes * parameters(cut)
    optimizer = here * state_bytes(shared) * parameters(sharding >= 1)
    T = spreads.micro_batch * (work.positions / spreads.context)
    block = T * kept_bytes(work, spreads)
    stream = T * work.spec.width * value
    kept_stream = stream / (spreads.tensor if shared.sequence_parallel else 1.0)
    full = spreads.recompute == 2
    kept = np.where(full, kept_stream, block)
    if shared.flash_attention:
        # Half of the products' results are computed again, and all between them.
        kept = np.where(spreads.recompute == 1, 0.5 * (block + kept_stream), kept)
    kept = block + shared.recomputed * (kept - block)
    again = np.where(full, block, 0.0)
    rows = np.minimum(T, _CHUNK) if shared.chunked_loss else T
    logits = shared.logits * rows * work.spec.vocabulary / spreads.tensor * constants.LOGIT_MEMORY
    there = np.where(held.layers > 0.0, 1.0, 0.0)
    training = there * float(shared.trained > 0.0)
    # A product of weights that are kept narrower wants them whole first, one matrix at a time.
    matrices = (*work.attention, *work.dense, *work.expert)
    widest = max(each.parameters for each in matrices) if shared.stored_bits else 0.0
    alone = d * spreads.replicas * spreads.tensor * spreads.pipeline == 1
    communicators = np.where(alone, 0.0, constants.COMMUNICATOR_BYTES)
    return MemoryBytes(
        weights=weights,
        masters=np.broadcast_to(0.0, weights.shape),
        gradients=gradients,
        optimizer=optimizer,
        activations=training
        * constants.ALLOCATOR
        * (held.flight * shared.reached * held.layers * kept + again),
        logits=training * held.losses * logits,
        workspace=there * constants.ALLOCATOR
        * (gathered + value * widest + training * constants.WORKSPACE_STREAMS * stream),
        runtime=there * (constants.RUNTIME_BYTES + communicators),
    )  # fmt: skip


def kept_bytes(work: Work, spreads: Spreads) -> Array:
    """Bytes of a block that wait for its backward pass, per token, where nothing is done again."""
    spec, value, t = work.spec, spreads.value_bytes, spreads.tensor
    whole = spreads.tensor if spreads.shared.sequence_parallel else np.ones_like(t)
    # What a product in fewer bits reads again backward is kept in those bits, a byte at the least.
    narrow = 1.0 if spreads.shared.precision in ("fp8", "fp4") else value
    attention = value * work.attention_kept
    attention += work.attentions * spec.heads * (narrow * spec.value_width + _FP32)
    feed = work.layers_dense * value * spec.up_width
    activated = work.layers_dense * narrow * spec.feed_forward_width
    if spec.experts is not None:
        chosen = spec.experts.chosen * (spec.experts.capacity or 1.0)
        tokens = chosen * spec.experts.width + spec.experts.shared_total
        routed = chosen * spec.width
        gates = 2.0 if spec.gated else 1.0
        feed += work.layers_experts * (gates * value * tokens + narrow * routed)
        activated += work.layers_experts * narrow * tokens
    # Norms and activations are quick to do again: nothing of theirs waits then.
    lasting = np.where(spreads.recompute == 3, 0.0, 1.0)
    inside = attention + (feed + lasting * activated) / work.layers
    read, given = work.streams_kept
    outside = spec.width * ((constants.STREAMS_MORE + read) * value + lasting * given * narrow)
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
