"""AWQ: a channel that a text drives hard is made larger before it is rounded, its source smaller.

    x = norm(s) · g     qkv, up  ← columns times s, g over s
    x = attention of v  out      ← columns times s, the rows of v over s
    x = act(gate) · up  down     ← columns times s, the rows of up over s

s is the mean of |x| to a power between 0 and 1, the one that makes the least of the error behind
rounding (arXiv:2306.00978, section 3). What is computed without rounding stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from narrows.adapt.calibration import Inputs
from narrows.adapt.method import AWQ, Type
from narrows.adapt.rounding import rounded
from narrows.model.block import Block
from narrows.model.weights import NormWeights, Weights
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

_LEAST = 1e-4


@torch.no_grad()
def fold(block: Block, inputs: Mapping[str, Inputs], type: Type, method: AWQ) -> None:
    """Make the block's channels larger and smaller; Σ x xᵀ of the inputs goes with them."""
    spec = block.spec
    qkv, out, up, down = (getattr(block, name) for name in inputs)
    assert block.norm_feed_forward is not None
    for norm, into, name in ((block.norm_attention, qkv, "qkv"),
                             (block.norm_feed_forward, up, "up")):  # fmt: skip
        scales_D = _best(into.weight, inputs[name], type, method)
        _shrink_norm(norm, scales_D)
        _enlarge(into, inputs[name], scales_D)
    heads, width = spec.kv_heads, spec.head_width
    # One channel of a value feeds a channel of each query head of its group.
    own = (heads, spec.heads // heads, width)
    shared_KH = inputs["out"].absolute_D.view(own).mean(1)
    scales_D = _best(out.weight, inputs["out"], type, method,
                     shared_KH[:, None].expand(own).flatten())  # fmt: skip
    _shrink_rows(qkv, -heads * width, scales_D.view(own)[:, 0].flatten())
    _enlarge(out, inputs["out"], scales_D)
    if spec.gated:
        scales_D = _best(down.weight, inputs["down"], type, method)
        _shrink_rows(up, -spec.feed_forward_width, scales_D)
        _enlarge(down, inputs["down"], scales_D)


def refuse_others(spec: ModelSpec) -> None:
    """Raises BadInput where norms do not stand before what they feed, and cannot take scales."""
    if spec.block_norms not in ("before", "both"):
        what = "AWQ changes the norm before each half of a block, and this model has none there"
        raise BadInput(what, hint="--method gptq")


def _best(
    weight_ND: Tensor, inputs: Inputs, type: Type, method: AWQ, absolute_D: Tensor | None = None
) -> Tensor:
    """The scales [D] by which columns lose least when they are rounded."""
    absolute_D = inputs.absolute_D if absolute_D is None else absolute_D
    best, least = torch.ones_like(absolute_D), float("inf")
    for step in range(method.steps):
        scales_D = absolute_D.clamp_min(_LEAST) ** (step / method.steps)
        scales_D = scales_D / (scales_D.max() * scales_D.min()).sqrt()
        error_ND = rounded(weight_ND * scales_D, type).whole() / scales_D - weight_ND
        error = float((error_ND @ inputs.second_DD).mul_(error_ND).sum())
        if error < least:
            best, least = scales_D, error
    return best


def _enlarge(weights: Weights, inputs: Inputs, scales_D: Tensor) -> None:
    weights.weight.mul_(scales_D)
    inputs.second_DD /= torch.outer(scales_D, scales_D)


def _shrink_norm(norm: NormWeights, scales_D: Tensor) -> None:
    for each in (norm.weight, norm.bias):
        if each is not None:
            each.div_(scales_D)


def _shrink_rows(weights: Weights, first: int, scales_E: Tensor) -> None:
    """Rows from `first` on, counted from behind."""
    weights.weight[first:].div_(scales_E[:, None])
    if weights.bias is not None:
        weights.bias[first:].div_(scales_E)
