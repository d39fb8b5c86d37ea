"""Blocks whose activations are dropped and made again in the backward pass: wholly, or all but
what products and attention gave.

recomputed("selective") → Wrapper, for a Transformer
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from narrows.model.block import Wrapper
from narrows.spec.layout import Recompute

aten = torch.ops.aten
KEPT = frozenset({
    aten.mm.default, aten.addmm.default, aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
})  # fmt: skip
"""Operations whose results selective recompute keeps: they cost the most to make. Attention that
torch spells in several of its own is made again: its scores are large.
"""


def recomputed(recompute: Recompute) -> Wrapper | None:
    """What a block is wrapped in, so that its forward pass runs again in the backward pass."""
    if recompute == "none":
        return None
    again: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
    if recompute == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, kept))
    return lambda block: lambda *args: again(block, *args)


def kept(context: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    """What becomes of an operation's result."""
    if operation in KEPT:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
