"""A model that says one thing of a text: one of its classes, or a number.

load(run) → Classifier;   Classifier.answer(text) → what it says
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from narrows.data.tokenizers import Tokenizer
from narrows.infer.checkpoint import locate
from narrows.infer.loading import PLAN, model_of, words_of
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.objective import Classify
from narrows.spec.plan import Plan
from narrows.spec.record import load as load_record


class Said(NamedTuple):
    """A class and how likely it is; or a number, without either."""

    label: str | None
    share: float | None
    number: float | None = None


class Classifier(NamedTuple):
    """The model, its tokenizer, and its classes; none where it says a number."""

    model: Transformer
    tokenizer: Tokenizer
    labels: tuple[str, ...]

    @torch.inference_mode()
    def answer(self, text: str) -> list[Said]:
        """What it says of a text: every class, the likeliest first, or one number.

        Raises BadInput where the text is longer than the model's context.
        """
        tokenizer, context = self.tokenizer, self.model.spec.context
        close = tokenizer.close or (tokenizer.end_of_document,)
        tokens = [*tokenizer.begin, *tokenizer.encode(text), *close]
        if len(tokens) > context:
            raise BadInput(
                f"the text is {len(tokens)} tokens long, the model reads {context}",
                hint="shorten the text",
            )
        hidden_BTD = self.model.hidden(torch.tensor([tokens], device=self.model.head_VD.device))
        scores_C = self.model.scores(self.model.summary(hidden_BTD[0]).unsqueeze(0))[0]
        if not self.labels:
            return [Said(None, None, float(scores_C[0]))]
        shares = scores_C.softmax(0).tolist()
        found = [Said(*each) for each in zip(self.labels, shares, strict=True)]
        return sorted(found, key=lambda each: -(each.share or 0.0))


def is_one(path: Path) -> bool:
    """Whether the run at `path` trained a model that says one thing of a text."""
    plan = path / PLAN
    return plan.is_file() and load_record(Plan, plan).model.classes > 0


def load(run: Path, checkpoint: str | None = None) -> Classifier:
    """The run's model, by default its best checkpoint."""
    plan = load_record(Plan, run / PLAN)
    labels = plan.objective.labels if isinstance(plan.objective, Classify) else ()
    model = model_of(plan, locate(run, checkpoint))
    return Classifier(model, words_of(run).tokenizer, labels)
