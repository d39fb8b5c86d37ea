"""A packed decoder whose answers are torch's, to be held against what torch computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from narrows.kernels.decoder import PackedDecoder


class Decoder:
    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._own = PackedDecoder(*arguments, **options)
        self.cache = self._own.cache

    @property
    def stream(self) -> Tensor:
        return torch.from_numpy(self._own.stream)

    def step(self, *arguments: Any) -> Tensor:
        return torch.from_numpy(self._own.step(*arguments))

    def read(self, *arguments: Any) -> Tensor:
        return torch.from_numpy(self._own.read(*arguments))


def bits(values: Tensor) -> np.ndarray:
    """Of bf16."""
    return values.bfloat16().contiguous().view(torch.uint16).numpy()


def plain(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.contiguous().numpy()
