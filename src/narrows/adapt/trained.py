"""The model of a run that trained a part of it: what it began with and what was learned, made one.

whole(plan, learned) → Transformer;   tuned(plan, learned), with its adapter still beside it
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from narrows.adapt.apply import adapted
from narrows.adapt.merge import merge
from narrows.kernels.load import load
from narrows.model.beginning import values_of
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.plan import Plan


def whole(plan: Plan, learned: Mapping[str, Tensor]) -> Transformer:
    """The plan's model with what a checkpoint holds of it, on the CPU, in the plan's precision.

    Raises BadInput where what training began with is no longer there, RunFailed where an adapter
    cannot be merged exactly.
    """
    return merge(tuned(plan, learned))


def tuned(plan: Plan, learned: Mapping[str, Tensor]) -> Transformer:
    """The same with an adapter beside its matrices."""
    with torch.device("meta"):
        model = Transformer(plan.model, load("torch"))
    dtype = torch.bfloat16 if plan.layout.precision == "bf16" else torch.float32
    model = model.to(dtype).to_empty(device="cpu")
    initialise(model, plan.seed)
    if plan.start is not None:
        first = values_of(plan.start)
        for name, parameter in model.named_parameters():
            value = first(name, parameter.shape)
            if value is not None:
                parameter.data.copy_(value)
    return adapted(model, plan.learning, dict(learned))
