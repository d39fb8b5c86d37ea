"""What the plan knows of the text: from a prepared dataset, else from the intent alone."""

from __future__ import annotations

import msgspec

from narrows.spec.dataset import Dataset, Examples
from narrows.spec.errors import BadInput
from narrows.spec.job import Job
from narrows.spec.objective import Masked
from narrows.spec.plan import Start

# GPT-2's tokenizer (Radford et al. 2019).
_GPT2_VOCABULARY = 50257
_CONTEXT_LEAST = 8


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """Vocabulary and, once the corpus is prepared, how much of it there is."""

    vocabulary: int
    tokens_train: int | None
    tokens_validation: int | None
    examples: Examples | None = None

    @property
    def prepared(self) -> bool:
        """Whether there is one to be read."""
        return self.tokens_train is not None

    @property
    def said(self) -> float:
        """Share of the tokens whose successor is to be told, of running text all."""
        if self.examples is None or not self.tokens_train:
            return 1.0
        return self.examples.learned_train / self.tokens_train


def known_text(job: Job, dataset: Dataset | None, start: Start | None = None) -> Text:
    """Raises BadInput where the vocabulary is not known or too small for the dataset."""
    wanted = job.model.vocabulary
    if dataset is not None:
        if wanted is not None and wanted < dataset.vocabulary:
            raise BadInput(
                f"model.vocabulary is {wanted}, and {dataset.name} has {dataset.vocabulary} tokens",
                hint=f"--set model.vocabulary={dataset.vocabulary}, or leave it out",
            )
        # Of a text whose tokens are masked, one token more is the mask.
        masks = isinstance(job.train.objective, Masked)
        return Text(
            vocabulary=wanted or dataset.vocabulary + masks,
            tokens_train=dataset.tokens_train,
            tokens_validation=dataset.tokens_validation,
            examples=dataset.examples,
        )
    known = None if start is None else start.model.vocabulary
    vocabulary = wanted or known or _vocabulary_to_be(job)
    return Text(vocabulary=vocabulary, tokens_train=None, tokens_validation=None)


def check_context(context: int, text: Text) -> None:
    """Raises BadInput where no whole sequence can be cut from the text."""
    splits = (("training", text.tokens_train), ("validation", text.tokens_validation))
    for split, tokens in splits:
        if tokens is not None and tokens < context + 1:
            fits = _power_below(min(each for _, each in splits if each is not None))
            raise BadInput(
                f"a context of {context} is longer than the {split} text of {tokens} tokens",
                hint=f"--set model.context={fits}" if fits >= _CONTEXT_LEAST else "give more text",
            )


def _vocabulary_to_be(job: Job) -> int:
    if job.data is None:
        raise BadInput(
            "the job says neither which text nor which vocabulary",
            hint="give data.corpus, such as shakespeare, or model.vocabulary=50257",
        )
    tokenizer = job.data.tokenizer
    if tokenizer in ("bpe", "unigram"):
        return job.data.vocabulary
    if tokenizer == "gpt2":
        return _GPT2_VOCABULARY
    raise BadInput(
        f"the vocabulary of the {tokenizer} tokenizer is known once the text is prepared",
        hint="narrows train job.toml prepares it; or give model.vocabulary",
    )


def _power_below(tokens: int) -> int:
    return 1 << max(0, (tokens - 1).bit_length() - 1)
