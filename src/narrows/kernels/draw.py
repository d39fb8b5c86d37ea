"""One token out of the logits of all."""

from __future__ import annotations

import torch
from torch import Tensor


def tempered(logits_V: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature, the largest moved to 0 so that nothing overflows."""
    return (logits_V - logits_V.amax(-1, keepdim=True)) / temperature


def draw(logits_V: Tensor, generator: torch.Generator) -> int:
    """A token by its odds, from one uniform number: where the summed odds pass it."""
    odds_V = torch.softmax(logits_V, dim=-1, dtype=torch.float64)
    passed_V = odds_V.cumsum(-1)
    uniform = torch.rand(1, generator=generator, dtype=torch.float64) * passed_V[-1]
    found = int(torch.searchsorted(passed_V, uniform, right=True))
    # Rounding may leave the number at the very sum: then it is the last token that has odds.
    return min(found, int(odds_V.nonzero()[-1]))
