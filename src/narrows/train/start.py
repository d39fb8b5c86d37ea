"""What training starts from, and who teaches: published models."""

from __future__ import annotations

from pathlib import Path

import torch

from narrows.data import tokenizers
from narrows.data.published import save
from narrows.data.published import words as published_words
from narrows.kernels.load import load
from narrows.model.opening import Original, build, opened
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.home import narrows_home
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan, Start


def started(path: Path) -> Start:
    """The published model at `path`, its tokenizer and template laid out where training finds them.

    Raises BadInput where there is none that narrows knows.
    """
    original = opened(path)
    digest = original.digest()
    words = narrows_home() / "words" / digest
    if not (words / tokenizers.FILE).is_file():
        words.mkdir(parents=True, exist_ok=True)
        save(published_words(original.path, original.facts), words)
    return Start(
        path=str(original.path.resolve()), family=original.kind, digest=digest,
        model=original.spec, words=str(words),
    )  # fmt: skip


def teacher(path: str, plan: Plan, device: torch.device) -> Transformer:
    """A published model that another learns from: whole, and never changed.

    Raises BadInput where it reads other tokens.
    """
    original = opened(path)
    _same_tokens(original, path, plan.model)
    with torch.device("meta"):
        model = Transformer(original.spec, load("torch"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.layout.precision]
    return build(original, model, dtype, device).eval().requires_grad_(False)


def _same_tokens(original: Original, path: str | Path, spec: ModelSpec) -> None:
    if original.spec.vocabulary != spec.vocabulary:
        raise BadInput(
            f"the teacher {path} knows {original.spec.vocabulary} tokens, and the model "
            f"{spec.vocabulary}: they do not read the same text",
            hint="start from a model with the teacher's tokenizer (model.start), or train one with "
            "data.tokenizer = the teacher's tokenizer.json",
        )
