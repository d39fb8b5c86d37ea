"""What a plan's objective is to a step: how its loss is taken, what counts, and what it gets right.

Plan.objective, rows → loss;   the one loop knows nothing of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.kernels.loss import (
    Head,
    Targets,
    Teacher,
    distillation,
    token_losses,
    weighted_cross_entropy,
)
from narrows.model.transformer import Transformer
from narrows.parallel.running import Loss, Objective, Rows, Tokens
from narrows.spec import objective as wanted
from narrows.spec.errors import BadInput
from narrows.spec.plan import Plan
from narrows.train.start import teacher


def objective(plan: Plan, device: torch.device) -> Objective:
    """That of the plan; raises BadInput where the plan's model or layout cannot follow it."""
    asked = plan.objective
    _check(plan)
    match asked:
        case wanted.Classify():
            return Classes(asked.smoothing)
        case wanted.Regress():
            return Numbers()
        case wanted.Distil():
            return Taught(teacher(asked, plan, device), asked.temperature, asked.share)
        case wanted.Prefer():
            return Preferred(asked.beta)
        case _:
            return Tokens(some=not isinstance(asked, wanted.NextToken))


class Classes:
    """The cross entropy of each document's class, while it learns with a share of `smoothing`."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing, self._right = smoothing, 0

    def count(self, rows: Rows) -> int:
        """Documents."""
        return sum(map(len, rows.values or ()))

    def loss(self, model: Transformer, rows: Rows, loss: Loss) -> Tensor:
        """As Objective says."""
        return _of_each(model, rows, partial(self._loss, rows, loss.scale))

    def _loss(self, rows: Rows, scale: float, scores_NC: Tensor) -> Tensor:
        classes_N = values_of(rows, scores_NC).long()
        learns = torch.is_grad_enabled()
        if not learns:
            self._right = int((scores_NC.argmax(dim=-1) == classes_N).sum())
        share = self.smoothing if learns else 0.0
        return F.cross_entropy(scores_NC, classes_N, reduction="sum", label_smoothing=share) * scale

    def right(self) -> int:
        """Documents whose class is the likeliest."""
        return self._right


class Numbers:
    """The squared error of each document's number."""

    def count(self, rows: Rows) -> int:
        """Documents."""
        return sum(map(len, rows.values or ()))

    def loss(self, model: Transformer, rows: Rows, loss: Loss) -> Tensor:
        """As Objective says."""
        return _of_each(model, rows, partial(self._loss, rows, loss.scale))

    def _loss(self, rows: Rows, scale: float, scores_N1: Tensor) -> Tensor:
        return (scores_N1[:, 0] - values_of(rows, scores_N1)).square().sum() * scale

    def right(self) -> None:
        """Not asked of numbers."""


class Taught(NamedTuple):
    """The divergence from what a teacher says of the next token, and the cross entropy."""

    teacher: Transformer
    temperature: float
    share: float

    def count(self, rows: Rows) -> int:
        """Tokens that are to be said."""
        return int((rows.targets_BT >= 0).sum())

    def loss(self, model: Transformer, rows: Rows, loss: Loss) -> Tensor:
        """As Objective says."""
        with torch.no_grad():
            taught_BTD = self.teacher.hidden(rows.inputs_BT, documents=rows.documents)
        teacher = Teacher(
            self.teacher.scaled(taught_BTD).flatten(0, 1), head_of(self.teacher), self.temperature,
            self.share,
        )  # fmt: skip

        def judge(x_BTD: Tensor) -> Tensor:
            x_MD = model.scaled(x_BTD).flatten(0, 1)
            return distillation(
                x_MD, head_of(model), teacher, rows.targets_BT.flatten(), chunk=loss.chunk,
                scale=loss.scale,
            )  # fmt: skip

        return model.judged(rows.inputs_BT, rows.documents, judge)

    def right(self) -> None:
        """Not asked."""


class Preferred:
    """DPO (arXiv:2305.18290, equation 7): documents come in pairs, the chosen one first; a value is
    the logarithm of the probability that a document had at first.

    Its gradient is that of the documents' cross entropies, weighted by how far the pair is from
    settled: logits need not exist whole.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._right = 0

    def count(self, rows: Rows) -> int:
        """Pairs."""
        return sum(map(len, rows.values or ())) // 2

    def loss(self, model: Transformer, rows: Rows, loss: Loss) -> Tensor:
        """As Objective says."""

        def judge(x_BTD: Tensor) -> Tensor:
            x_MD, targets_M = model.scaled(x_BTD).flatten(0, 1), rows.targets_BT.flatten()
            losses_M = token_losses(
                x_MD.detach(), head_of(model), targets_M, kernels=model.kernels, chunk=loss.chunk
            )
            margins_P = self.margins(losses_M, rows)
            if not torch.is_grad_enabled():
                self._right = int((margins_P > 0.0).sum())
            pull_P = self.beta * (-self.beta * margins_P).sigmoid()
            weights_M = spread(torch.stack([pull_P, -pull_P], dim=1).flatten(), rows)
            pulled = weighted_cross_entropy(
                x_MD, head_of(model), Targets(targets_M, weights_M), kernels=model.kernels,
                chunk=loss.chunk, scale=loss.scale,
            )  # fmt: skip
            told = -F.logsigmoid(self.beta * margins_P).sum() * loss.scale
            # The value is DPO's, the gradient that of the weighted cross entropies.
            return pulled + (told - pulled).detach()

        return model.judged(rows.inputs_BT, rows.documents, judge)

    def right(self) -> int:
        """Pairs whose chosen document has become the likelier one."""
        return self._right

    def margins(self, losses_M: Tensor, rows: Rows) -> Tensor:
        """By how much more than at first each chosen document is likelier than the rejected [P]."""
        log_N = -totals(losses_M, rows) - values_of(rows, losses_M)
        return log_N[0::2] - log_N[1::2]


def log_probabilities(model: Transformer, rows: Rows, chunk: int) -> Tensor:
    """The logarithm of each document's probability, of what is to be said of it [N], fp32."""

    def judge(x_BTD: Tensor) -> Tensor:
        x_MD = model.scaled(x_BTD).flatten(0, 1)
        return token_losses(
            x_MD, head_of(model), rows.targets_BT.flatten(), kernels=model.kernels, chunk=chunk
        )

    return -totals(model.judged(rows.inputs_BT, rows.documents, judge), rows)


def head_of(model: Transformer) -> Head:
    """What makes a model's logits."""
    return Head(model.head_VD, model.head_bias, model.spec.logit_cap)


def values_of(rows: Rows, like: Tensor) -> Tensor:
    """Of each document, in order [N], fp32."""
    flat = [value for row in rows.values or () for value in row]
    return torch.tensor(flat, dtype=torch.float32, device=like.device)


def totals(losses_M: Tensor, rows: Rows) -> Tensor:
    """The sum of the losses within each document [N]."""
    own_M = torch.tensor(_owners(rows), device=losses_M.device)
    sums_N = losses_M.new_zeros(1 + sum(map(len, rows.values or ())))
    return sums_N.index_add(0, own_M, losses_M)[:-1]


def spread(weights_N: Tensor, rows: Rows) -> Tensor:
    """Each document's number at each of its tokens [M]; zero where nothing stands."""
    own_M = torch.tensor(_owners(rows), device=weights_N.device)
    return torch.cat([weights_N, weights_N.new_zeros(1)])[own_M]


def _owners(rows: Rows) -> list[int]:
    """Of each place the document's number; where none stands, one more than the last."""
    assert rows.documents is not None and rows.values is not None
    none, count, owners = sum(map(len, rows.values)), 0, []
    for sizes, values in zip(rows.documents, rows.values, strict=True):
        for at, size in enumerate(sizes):
            owners += [count + at if at < len(values) else none] * size
        count += len(values)
    return owners


def _of_each(model: Transformer, rows: Rows, judge: Callable[[Tensor], Tensor]) -> Tensor:
    """What `judge` makes of the scores of all documents [N,C]."""

    def scored(x_BTD: Tensor) -> Tensor:
        return judge(model.scores(torch.stack(list(_summaries(model, x_BTD, rows)))))

    return model.judged(rows.inputs_BT, rows.documents, scored)


def _summaries(model: Transformer, x_BTD: Tensor, rows: Rows) -> Iterator[Tensor]:
    """Of each document, what stands for it [D]."""
    assert rows.documents is not None and rows.values is not None
    for x_TD, sizes, values in zip(x_BTD, rows.documents, rows.values, strict=True):
        for x_SD in x_TD.split(list(sizes))[: len(values)]:
            yield model.summary(x_SD)


def _check(plan: Plan) -> None:
    asked, layout = plan.objective, plan.layout
    wanted.refuse_unable(asked, plan.model)
    plain = isinstance(asked, wanted.NextToken | wanted.Masked)
    if not plain and max(layout.tensor, layout.pipeline, layout.context) > 1:
        raise BadInput(
            f"the objective {type(asked).__name__.lower()} is taught to whole models: data ranks "
            "and shards of parameters are what it can be laid out over",
            hint="--set layout.data=N with layout.tensor, layout.pipeline and layout.context left "
            "out",
        )
    if isinstance(asked, wanted.OF_EXAMPLES) and layout.compile:
        raise BadInput(
            "rows of examples have other documents each time, which a compiled block is not for",
            hint="--set layout.compile=false",
        )
