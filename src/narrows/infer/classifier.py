"""A model that says one thing of a text: one of its classes, or a number.

load(run) → Classifier;   Classifier.answer(text) → what it says
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from narrows.data.published import Words, words
from narrows.infer.checkpoint import locate
from narrows.infer.loading import model_of, words_of
from narrows.model.folder import CONFIG, PLAN
from narrows.model.opening import Original, build, opened
from narrows.model.transformer import Transformer
from narrows.plan.layouts import TrainingPrecision
from narrows.spec.errors import BadInput
from narrows.spec.objective import Classify, Regress
from narrows.spec.plan import Plan
from narrows.spec.record import load as load_record


class Said(NamedTuple):
    """A class and how likely it is; or a number, without either."""

    label: str | None
    share: float | None
    number: float | None = None


class Classifier(NamedTuple):
    """The model, how it reads texts, and what it was taught to say of them."""

    model: Transformer
    words: Words
    objective: Classify | Regress

    @property
    def labels(self) -> tuple[str, ...]:
        """Its classes; none where it says a number."""
        return self.objective.labels if isinstance(self.objective, Classify) else ()

    @torch.inference_mode()
    def answer(self, text: str) -> list[Said]:
        """What it says of a text: every class, the likeliest first, or one number.

        Raises BadInput where the text is longer than the model's context.
        """
        tokenizer, context = self.words.tokenizer, self.model.spec.context
        close = tokenizer.close or (tokenizer.end_of_document,)
        tokens = [*tokenizer.begin, *tokenizer.encode(text), *close]
        if len(tokens) > context:
            raise BadInput(
                f"the text is {len(tokens)} tokens long, the model reads {context}",
                hint="shorten the text",
            )
        scores_C = self.scores([tokens])[0]
        if not self.labels:
            return [Said(None, None, float(scores_C[0]))]
        shares = scores_C.softmax(0).tolist()
        found = [Said(*each) for each in zip(self.labels, shares, strict=True)]
        return sorted(found, key=lambda each: -(each.share or 0.0))

    @torch.inference_mode()
    def scores(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """What it says of each text's tokens, all read at once, each as if alone [N,C], fp32."""
        model, longest = self.model, max(map(len, texts))
        padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in texts]
        inside = tuple(
            (len(tokens), *([longest - len(tokens)] if len(tokens) < longest else []))
            for tokens in texts
        )
        tokens_BT = torch.tensor(padded, device=model.head_VD.device)
        x_BTD = model.hidden(tokens_BT, documents=inside)
        own = [model.summary(x_TD[: len(t)]) for x_TD, t in zip(x_BTD, texts, strict=True)]
        return model.scores(torch.stack(own)).float()


def is_one(path: Path) -> bool:
    """Whether the run at `path` trained a model that says one thing of a text, or the published
    model there is one.
    """
    if (path / PLAN).is_file():
        return load_record(Plan, path / PLAN).model.classes > 0
    return (path / CONFIG).is_file() and opened(path).labels is not None


def load(
    run: Path, checkpoint: str | None = None, precision: TrainingPrecision | None = None
) -> Classifier:
    """The run's model, by default its best checkpoint, in the precision it was trained in; or the
    published one, by default in fp32.
    """
    if not (run / PLAN).is_file():
        return _published(opened(run), precision)
    plan = load_record(Plan, run / PLAN)
    assert isinstance(plan.objective, Classify | Regress)
    model = model_of(plan, locate(run, checkpoint), precision)
    return Classifier(model, words_of(run), plan.objective)


def _published(original: Original, precision: TrainingPrecision | None) -> Classifier:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build(original, dtype, torch.device("cpu")).eval().requires_grad_(False)
    said = Classify(labels=original.labels) if original.labels else Regress()
    return Classifier(model, words(original.path, original.facts), said)
