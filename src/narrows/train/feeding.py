"""What a plan's steps read: running text, text with masks, or packed examples."""

from __future__ import annotations

from pathlib import Path

from narrows.data import tokenizers
from narrows.data.loader import Loader
from narrows.data.masking import Masking
from narrows.data.packed import Packed
from narrows.data.staging import Split
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.objective import Masked
from narrows.spec.plan import Plan

Feed = Loader | Masking | Packed
_MASKS = ("[MASK]", "<mask>")


def feed(plan: Plan, dataset: Dataset, split: Split) -> Feed:
    """One split of the dataset, as the objective needs it."""
    if dataset.examples is not None:
        return Packed(dataset, split, plan.context, plan.seed)
    loader = Loader(dataset, split, plan.context, plan.seed)
    if isinstance(plan.objective, Masked):
        return Masking(loader, plan.objective.share, _mask(plan, dataset), plan.seed)
    return loader


def _mask(plan: Plan, dataset: Dataset) -> int:
    """The token that hides others: the model's own, else one more than the text has."""
    if plan.start is None:
        return dataset.vocabulary
    tokenizer = tokenizers.opened(Path(plan.start.words) / tokenizers.FILE)
    found = [tokenizer.token_to_id(each) for each in _MASKS]
    known = [each for each in found if each is not None]
    if not known:
        raise BadInput(
            f"the tokenizer of {plan.start.path} has no mask",
            hint="start from an encoder such as BERT, or from nothing",
        )
    return int(known[0])
