"""What training starts from, and who teaches: published models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from narrows.data import published, tokenizers
from narrows.kernels.load import load
from narrows.model.opening import CONFIG, PLAN, Original, build, opened
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.home import narrows_home
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan, Start
from narrows.train.earlier import Talk, laid_out


def started(path: Path, talk: Talk = lambda text: None) -> Start:
    """The published model at `path`, or what a run there has learned so far, its tokenizer and
    template laid out where training finds them.

    Raises BadInput where there is none that narrows knows.
    """
    path = path.expanduser()
    original = opened(laid_out(path, talk) if (path / PLAN).is_file() else path)
    digest = original.digest()
    words = narrows_home() / "words" / _named(digest, original.path)
    if not (words / tokenizers.FILE).is_file():
        found = published.words(original.path, original.facts)
        published.refuse_foreign(found.tokenizer, original.spec.vocabulary, path)
        words.mkdir(parents=True, exist_ok=True)
        published.save(found, words)
    return Start(
        path=str(original.path.resolve()), family=original.kind, digest=digest,
        model=original.spec, words=str(words),
    )  # fmt: skip


def _named(digest: str, path: Path) -> str:
    """A name for the words: that of the model, and of what beside its weights tells them."""
    said = hashlib.sha256(digest.encode())
    for name in (*published.FILES, CONFIG) if path.is_dir() else ():
        said.update((path / name).read_bytes() if (path / name).is_file() else b"\0")
    return said.hexdigest()[:24]


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
