"""What training starts from, and who teaches: published models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from narrows.data import published, tokenizers
from narrows.model.folder import CONFIG, PLAN
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.spec.home import narrows_home
from narrows.spec.objective import Distil
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


def teacher(asked: Distil, plan: Plan, device: torch.device) -> Transformer:
    """A published model that another learns from: whole, and never changed.

    Raises BadInput where it cannot teach the plan's model.
    """
    original = opened(asked.teacher if plan.teacher is None else plan.teacher.path)
    asked.check(original.spec, plan.model, plan.context)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.layout.precision]
    return build(original, dtype, device, plan.layout.kernels).eval().requires_grad_(False)
