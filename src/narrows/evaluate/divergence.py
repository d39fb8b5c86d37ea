"""How far two models' next tokens are apart on a text: perplexity, KL, the likeliest token.

KL is of what the second says from what the first does, Σ p log(p / q) in nats, at each position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from narrows.data.windows import Rows
from narrows.evaluate.progress import Progress, Talk
from narrows.infer.packed import PackedWriter
from narrows.kernels.decoder import PackedDecoder, Run
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
def divergence(before: Read, after: Read, rows_BT: Rows, text: str, talk: Talk) -> Divergence:
    """What two readers make of the same rows; the first token of each is not foretold."""
    kl, same, nats_before, nats = [], [], [], []
    progress = Progress(talk, "tokens compared", rows_BT.size)
    for row in rows_BT.tolist():
        at = 0
        for one_CV, other_CV in zip(before(row), after(row), strict=True):
            p_CV, q_CV = (each.float().log_softmax(-1) for each in (one_CV, other_CV))
            targets_C = torch.tensor(row[at + 1 : at + 1 + len(p_CV)])
            at += len(p_CV)
            p_CV, q_CV = p_CV[: len(targets_C)], q_CV[: len(targets_C)]
            kl.append((p_CV.exp() * (p_CV - q_CV)).sum(-1).double())
            same.append(p_CV.argmax(-1) == q_CV.argmax(-1))
            nats_before.append(-p_CV.gather(1, targets_C[:, None])[:, 0].double())
            nats.append(-q_CV.gather(1, targets_C[:, None])[:, 0].double())
        progress.add(len(row))
    kl_M = torch.cat(kl)
    return Divergence(
        text=text, tokens=len(kl_M),
        perplexity_before=math.exp(torch.cat(nats_before).mean()),
        perplexity=math.exp(torch.cat(nats).mean()),
        kl_mean=float(kl_M.mean()), kl_p99=float(kl_M.quantile(0.99)),
        same=float(torch.cat(same).double().mean()),
    )  # fmt: skip


def by_torch(model: Transformer) -> Read:
    """With the weights as they are, activations in their type."""

    def read(tokens: Sequence[int]) -> Iterator[Tensor]:
        hidden_TD = model.hidden(torch.tensor([tokens]))[0]
        for part_CD in hidden_TD.split(_POSITIONS):
            yield model.logits(part_CD)

    return read


def by_packed(writer: PackedWriter, positions: int) -> Read:
    """As the packed decoder computes, activations in 8 bits."""
    decoder = PackedDecoder(
        writer.model, room=positions, rows=_POSITIONS, threads=torch.get_num_threads()
    )
    cache = decoder.cache()

    def read(tokens: Sequence[int]) -> Iterator[Tensor]:
        for start in range(0, len(tokens), _POSITIONS):
            some = tokens[start : start + _POSITIONS]
            yield decoder.step([Run(cache, start, len(some))], some, range(len(some)))

    return read
