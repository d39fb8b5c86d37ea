"""How far two models' next tokens are apart on a text: perplexity, KL, the likeliest token.

KL is of what the second says from what the first does, Σ p log(p / q) in nats, at each position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from narrows.data.windows import Rows
from narrows.evaluate.progress import Progress, Talk
from narrows.infer.packed import PackedWriter
from narrows.infer.parity import perplexity_of
from narrows.kernels.decoder import Run
from narrows.model.transformer import Transformer
from narrows.spec.record import Record

Read = Callable[[Sequence[int]], Iterator[Tensor]]
"""Logits behind each of a row's tokens, some positions at once [C,V]."""
_POSITIONS = 128
"""That are read at once, whatever reads."""


class Divergence(Record):
    """Of so many `tokens` of a text, each behind those before it in its row. `same` is the share of
    positions where both find the same token the likeliest.
    """

    text: str
    tokens: int
    perplexity_before: float
    perplexity: float
    kl_mean: float
    kl_p99: float
    same: float


@torch.inference_mode()
def divergences(
    before: Read, afters: Sequence[Read], rows_BT: Rows, text: str, talk: Talk
) -> list[Divergence]:
    """What readers make of the same rows, each beside the first; the first token of a row is not
    foretold.
    """
    sums = [_Sums() for _ in afters]
    progress = Progress(talk, "tokens compared", rows_BT.size)
    for row in rows_BT.tolist():
        following, readers = (
            torch.tensor(row[1:]),
            zip(*(each(row) for each in afters), strict=True),
        )
        for start, (one_CV, others) in enumerate(zip(before(row), readers, strict=True)):
            targets_C = following[start * _POSITIONS : (start + 1) * _POSITIONS]
            p_CV = one_CV[: len(targets_C)].float().log_softmax(-1)
            for each, other_CV in zip(sums, others, strict=True):
                q_CV = other_CV[: len(targets_C)].float().log_softmax(-1)
                each.add(p_CV, q_CV, targets_C[:, None])
        progress.add(len(row))
    return [each.divergence(text) for each in sums]


@final
class _Sums:
    """Numbers of each position."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._same: list[Tensor] = []
        self._nats: list[Tensor] = []

    def add(self, p_CV: Tensor, q_CV: Tensor, targets_C1: Tensor) -> None:
        self._kl.append((p_CV.exp() * (p_CV - q_CV)).sum(-1).double())
        self._same.append((p_CV.argmax(-1) == q_CV.argmax(-1)).double())
        both = [-each.gather(1, targets_C1)[:, 0].double() for each in (p_CV, q_CV)]
        self._nats.append(torch.stack(both))

    def divergence(self, text: str) -> Divergence:
        kl_M, nats = torch.cat(self._kl), torch.cat(self._nats, dim=1).mean(1)
        return Divergence(
            text=text, tokens=len(kl_M), perplexity_before=perplexity_of(float(nats[0])),
            perplexity=perplexity_of(float(nats[1])), kl_mean=float(kl_M.mean()),
            kl_p99=float(kl_M.quantile(0.99)), same=float(torch.cat(self._same).mean()),
        )  # fmt: skip


def by_torch(model: Transformer) -> Read:
    """With the weights as they are, activations in their type."""

    def read(tokens: Sequence[int]) -> Iterator[Tensor]:
        hidden_TD = model.hidden(torch.tensor([tokens]))[0]
        for part_CD in hidden_TD.split(_POSITIONS):
            yield model.logits(part_CD)

    return read


def by_packed(writer: PackedWriter, positions: int) -> Read:
    """As the packed decoder computes, activations in 8 bits, over the writer's kind of cache."""
    decoder = writer.decoder(positions, rows=_POSITIONS)
    cache = decoder.cache()

    def read(tokens: Sequence[int]) -> Iterator[Tensor]:
        for start in range(0, len(tokens), _POSITIONS):
            some = tokens[start : start + _POSITIONS]
            step = decoder.step([Run(cache, start, len(some))], some, range(len(some)))
            yield torch.from_numpy(step)

    return read
