"""The first values of a model's parameters, drawn by name from the seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from narrows.spec.model import ModelSpec

if TYPE_CHECKING:
    from narrows.model.transformer import Transformer


def initialise(model: Transformer, seed: int) -> None:
    """Give every parameter its first value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(first_value(model.spec, name, parameter.shape, seed))


def first_value(spec: ModelSpec, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """Normal weights of deviation 0.02, divided by √(2L) where a block writes to the residual
    stream (Radford et al. 2019); biases and sinks zero, norms one; fp32.

    Equal for equal seeds and names on every device, whatever else a process has.
    """
    *_, owner, kind = ["", *name.split(".")]
    if kind != "weight" or len(shape) == 1:
        return torch.full(shape, 1.0 if kind == "weight" else 0.0)
    residual = owner in ("out", "down", "shared_down")
    deviation = 0.02 / math.sqrt(2 * spec.layers) if residual else 0.02
    own = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(own[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)
