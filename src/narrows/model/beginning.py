"""What a model begins with that a plan starts from a published one.

Each parameter is read by itself, in the type that it has, so that no process ever has the whole
model beside its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.opening import opened
from narrows.model.reading import Reader
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Start


def values_of(start: Start) -> Callable[[str, Sequence[int]], Tensor | None]:
    """Of each parameter, what the model to start from has of it; of a head for classes, and of a
    pooler before it that the model lacks, nothing.

    Raises BadInput where the files changed since the plan was made.
    """
    original = opened(start.path)
    if original.digest() != start.digest:
        raise BadInput(
            f"{start.path} changed since the plan was made",
            hint="plan again: narrows plan job.toml -o plan.toml",
        )
    reader = Reader(_names(original.spec), original.spec, original.naming, original.tensors)

    def first(name: str, shape: Sequence[int]) -> Tensor | None:
        if name.startswith("score.") or name.startswith("pooler.") and not original.spec.pooler:
            return None
        return reader.read(name, tuple(shape))

    return first


def _names(spec: ModelSpec) -> list[str]:
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    return [name for name, _ in model.named_parameters()]
