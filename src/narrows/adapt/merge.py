"""Adapters made part of the matrices that they stand beside, and the proof that nothing changed."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.adapt.apply import Adapted
from narrows.adapt.experts import AdaptedExperts
from narrows.adapt.low_rank import linear
from narrows.model.transformer import Transformer
from narrows.model.weights import Weights
from narrows.spec.adapter import target_rows
from narrows.spec.errors import RunFailed

_EXACT = 1e-5
_TOLERANCES = {torch.float32: _EXACT, torch.bfloat16: 3e-2}
"""How far logits may be off, relative, in norm. Sums rounded to bf16 moved those of 30 layers by
1.1e-2 to 2.1e-2, and fp32 by 9e-7.
"""
_ROWS, _SEQUENCES, _POSITIONS = 16, 2, 64


@torch.no_grad()
def merge(model: Transformer) -> Transformer:
    """Replace every adapted matrix of a model that has memory by one that computes the same, in
    place. Raises RunFailed where a sum, before it is rounded, is another product.
    """
    for layer, block in enumerate(model.blocks):
        for matrix in target_rows(model.spec, layer):
            own, dtype = block.get_submodule(matrix), model.tokens.weight.dtype
            if isinstance(own, Adapted):
                sum_ED = own.merged()
                _prove(f"blocks.{layer}.{matrix}", own, sum_ED)
                block.set_submodule(matrix, _plain(own, sum_ED.to(dtype)))
            elif isinstance(own, AdaptedExperts):
                block.set_submodule(matrix, _plain(own, own.merged().to(dtype)))
    return model


@torch.no_grad()
def merge_proven(model: Transformer, tokens_BT: Tensor | None = None) -> float:
    """The same, and by how much logits differ afterwards, relative, in norm; without `tokens`,
    those of random ones. Raises RunFailed where that is more than rounding does.
    """
    if tokens_BT is None:
        tokens_BT = _some_tokens(model)
    training = model.training
    model.eval()
    before_BTV = model(tokens_BT).float()
    after_BTV = merge(model)(tokens_BT).float()
    model.train(training)
    difference = float((after_BTV - before_BTV).norm() / before_BTV.norm())
    most = _TOLERANCES[model.tokens.weight.dtype]
    if not difference <= most:
        raise RunFailed(
            f"the merged model's logits are {difference:.1e} off the adapted one's, relative",
            causes=[f"rounding does {most:.0e} at most"],
            hint="keep the adapter apart, or merge in fp32",
        )
    return difference


def _prove(name: str, own: Adapted, sum_ED: Tensor) -> None:
    """Both ways to multiply, in fp32."""
    generator = torch.Generator().manual_seed(0)
    x_MD = torch.randn(_ROWS, own.shape[1], generator=generator).to(sum_ED.device)
    wide = own.frozen.whole(torch.float32).float()
    low = own.low
    if low is not None:
        low = low._replace(a_PD=low.a_PD.float(), b_XR=low.b_XR.float())
    before_ME = linear(x_MD, own.frozen._replace(weight=wide, scales=None), None, low)
    if own.length is not None:
        before_ME = before_ME * own.lengths().float()
    difference = float((x_MD @ sum_ED.t() - before_ME).norm() / before_ME.norm())
    if not difference <= _EXACT:
        raise RunFailed(
            f"merging {name} gives another product: {difference:.1e} off, relative",
            hint="are its weights finite? narrows train RUN --resume from an earlier checkpoint",
        )


def _plain(own: Adapted | AdaptedExperts, weight_ED: Tensor) -> Weights:
    with torch.device("meta"):
        plain = Weights(1, 1)
    plain.weight = torch.nn.Parameter(weight_ED, requires_grad=False)
    plain.bias = own.bias
    return plain


def _some_tokens(model: Transformer) -> Tensor:
    spec, device = model.spec, model.tokens.weight.device
    shape = (_SEQUENCES, min(_POSITIONS, spec.context))
    generator = torch.Generator().manual_seed(0)
    return torch.randint(spec.vocabulary, shape, generator=generator).to(device)
