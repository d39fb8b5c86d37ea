"""Texts to vectors, by an encoder that was trained for it, as its makers pool and normalise.

load(path) → Embedder;   Embedder.embed(texts as tokens) → vectors [N,D]

What sentence-transformers writes beside a model is followed: modules.json, the pooling's
config.json, and how many tokens it reads. Without these the mean of the last hidden states is
taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.data.published import Words, words
from narrows.infer.checkpoint import locate
from narrows.infer.generate import TooLong
from narrows.infer.loading import model_of, set_threads, words_of
from narrows.model.folder import CONFIG, PLAN
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.plan import Plan
from narrows.spec.record import load as load_record
from narrows.spec.record import read

Pooling = Literal["mean", "first", "last", "max"]
_MODULES, _SETTINGS = "modules.json", "sentence_bert_config.json"
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first",
    "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "last",
}  # fmt: skip
_KNOWN = ("Transformer", "Pooling", "Normalize")
_TOKENS_AT_ONCE = 4096
"""Of texts that are computed together."""


class Recipe(NamedTuple):
    """How hidden states become a text's vector, and how many tokens it may have."""

    pooling: Pooling
    normalised: bool
    tokens_max: int


class Embedder(NamedTuple):
    """The model, how it reads texts, and what it makes of them."""

    model: Transformer
    words: Words
    recipe: Recipe

    @property
    def width(self) -> int:
        """Of a vector."""
        return self.model.spec.width

    def tokens(self, text: str) -> list[int]:
        """Of a text, with what stands around every one."""
        tokenizer = self.words.tokenizer
        return [*tokenizer.begin, *tokenizer.encode(text), *tokenizer.close]

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """A vector for each text's tokens [N,D], fp32; each as if alone.

        Texts of one length are computed together, so that nothing is padded. Raises TooLong where
        one has more tokens than the model reads.
        """
        self.refuse_long(texts)
        found_ND = torch.empty(len(texts), self.width)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for length, group in groupby(order, key=lambda number: len(texts[number])):
            numbers = list(group)
            rows = max(1, _TOKENS_AT_ONCE // length)
            for first in range(0, len(numbers), rows):
                some = numbers[first : first + rows]
                tokens_BT = torch.tensor([texts[number] for number in some])
                found_ND[some] = self._vectors(tokens_BT.to(self.model.head_VD.device)).cpu()
        return found_ND

    def refuse_long(self, texts: Sequence[Sequence[int]]) -> None:
        """Raises TooLong where one has more tokens than the model reads, or none."""
        for number, tokens in enumerate(texts, 1):
            if not 1 <= len(tokens) <= self.recipe.tokens_max:
                what = f"text {number} is {len(tokens)} tokens long"
                raise TooLong(what, hint=f"the model reads 1 to {self.recipe.tokens_max}")

    def _vectors(self, tokens_BT: Tensor) -> Tensor:
        pooled_BD = _pooled(self.model.hidden(tokens_BT).float(), self.recipe.pooling)
        return F.normalize(pooled_BD, dim=-1) if self.recipe.normalised else pooled_BD


def is_encoder(path: Path) -> bool:
    """Whether the model at `path` reads both ways and writes nothing."""
    if (path / PLAN).is_file():
        spec = load_record(Plan, path / PLAN).model
        return not spec.causal and not spec.classes and not spec.encoder_layers
    if not (path / CONFIG).is_file():
        return False
    original = opened(path)
    spec = original.spec
    return not spec.causal and original.labels is None and not spec.encoder_layers


def load(path: Path, checkpoint: str | None = None) -> Embedder:
    """The encoder of a run, by default its best checkpoint, or of a published model's folder, in
    fp32; raises BadInput where its vectors are made by what is not known here.
    """
    set_threads()
    if (path / PLAN).is_file():
        plan = load_record(Plan, path / PLAN)
        model = model_of(plan, locate(path, checkpoint)).float()
        return Embedder(model, words_of(path), Recipe("mean", False, plan.model.context))
    if checkpoint is not None:
        raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
    original = opened(path)
    recipe = recipe_of(path, original.spec.context)
    model = build(original, torch.float32, torch.device("cpu"))
    spoken = words(original.path, original.facts)
    return Embedder(model.eval().requires_grad_(False), spoken, recipe)


def recipe_of(folder: Path, context: int) -> Recipe:
    """As the files beside the model say."""
    if not (folder / _MODULES).is_file():
        return Recipe("mean", False, context)
    modules = [(str(each["type"]).rpartition(".")[2], folder / str(each.get("path", "")))
               for each in _list(read(folder / _MODULES))]  # fmt: skip
    for kind, _ in modules:
        if kind not in _KNOWN:
            what = f"{folder}: vectors go through a module {kind}, which narrows does not compute"
            raise BadInput(what, hint="take an encoder of transformer, pooling and norm alone")
    pooled = [place for kind, place in modules if kind == "Pooling"]
    pooling = _pooling(read(pooled[0] / CONFIG), folder) if pooled else "mean"
    said = read(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    told = said.get("max_seq_length") if isinstance(said, dict) else None
    most = min(context, told) if type(told) is int and told > 0 else context
    return Recipe(pooling, any(kind == "Normalize" for kind, _ in modules), most)


def _pooling(said: Mapping[str, Any], folder: Path) -> Pooling:
    on = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or on[0] not in _POOLINGS:
        what = f"{folder}: hidden states are pooled by {' and '.join(on) or 'nothing'}"
        raise BadInput(what, hint=f"known: {', '.join(_POOLINGS)}, one of them")
    return _POOLINGS[on[0]]


def _pooled(hidden_BTD: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return hidden_BTD.mean(1)
    if pooling == "max":
        return hidden_BTD.amax(1)
    return hidden_BTD[:, 0 if pooling == "first" else -1]


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
