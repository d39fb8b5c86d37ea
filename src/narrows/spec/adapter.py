"""What of a model is trained: all of it, a few directions beside it, its biases, or some layers.

The names here are those of parameters in `model`; what learns is said once, for the plan that
counts it and for `adapt`, which makes it so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.record import Record, at_least

Rule = Literal["lora", "rslora", "dora"]
"""What a low-rank product is multiplied by: alpha / rank (arXiv:2106.09685); alpha / √rank, so that
large ranks learn as fast (arXiv:2312.03732); or that of lora, with the length of each row of the
sum a parameter of its own (arXiv:2402.09353).
"""
Target = Literal[
    "query", "key", "value", "out", "gate", "up", "down",
    "query_down", "query_up", "key_value_down", "key_value_up", "experts",
]  # fmt: skip
"""Of latent attention queries, keys and values are made down and up. In a layer with experts gate,
up and down are those of the experts that all tokens share, and `experts` every other's, where gate
and up are one: as PEFT has it, and as there, only where they are asked for.
"""
Base = Literal["int8", "nf4"]
"""What frozen matrices are kept as: 8 bits with a scale a row, or one of 16 quantiles of a normal
distribution with a scale for each 64 (arXiv:2305.14314).
"""
MATRICES: dict[str, tuple[Target, ...]] = {
    "qkv": ("query", "key", "value"), "qkv.query": ("query",), "qkv.query_down": ("query_down",),
    "qkv.query_up": ("query_up",), "qkv.key_value_down": ("key_value_down",),
    "qkv.key_value_up": ("key_value_up",), "out": ("out",), "up": ("gate", "up"),
    "down": ("down",), "experts.shared_up": ("gate", "up"), "experts.shared_down": ("down",),
    "experts.each.up": ("experts",), "experts.each.down": ("experts",),
}  # fmt: skip
"""Matrices that blocks may have, and what lies in the rows of each."""
EXPERTS = "experts.each."
RANK, BLOCK = 16, 64
_PLACE = "train.adapter"
_PATTERN = re.compile(r"embeddings|head|norms|biases|layers\.(\d+)(?:-(\d+))?")
_HEAD = ("transform", "norm_transform", "head", "head_bias")
_ENDS = ("tokens", "positions", "types", "norm_embedding", "relative")


class LowRank(Record, tag="lora", tag_field="type"):
    """Beside each target W of every layer a product scale · B A of `rank`; the plan fills in what
    is absent. A share `dropout` of what A reads is dropped. `base` None: frozen matrices in the
    layout's precision.
    """

    rank: int | None = None
    alpha: float | None = None
    rule: Rule = "lora"
    targets: tuple[Target, ...] | None = None
    dropout: float = 0.0
    base: Base | None = None

    def __post_init__(self) -> None:
        at_least(1, self, _PLACE, "rank", otherwise=", or leave it out")
        if self.alpha is not None and not 0.0 < self.alpha < math.inf:
            raise BadInput(f"{_PLACE}.alpha is {self.alpha}", hint="such as twice the rank")
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"{_PLACE}.dropout is {self.dropout}", hint="use 0 <= dropout < 1")
        if self.targets is not None and not self.targets:
            raise BadInput(f"{_PLACE}.targets is empty", hint="leave it out for all matrices")

    @property
    def ranks(self) -> int:
        """The rank, by habit 16."""
        return self.rank or RANK

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        alpha = 2.0 * self.ranks if self.alpha is None else self.alpha
        return alpha / (self.ranks**0.5 if self.rule == "rslora" else self.ranks)

    def settled(self, spec: ModelSpec) -> LowRank:
        """The same with all values, for a model of this shape; raises BadInput where the model has
        not what it wants.
        """
        _refuse(spec)
        if self.base is not None and spec.experts is not None:
            raise BadInput(
                f"{_PLACE}.base is {self.base}, and experts' matrices are not kept in fewer bits",
                hint=f"leave out {_PLACE}.base",
            )
        if "experts" in (self.targets or ()) and (self.rule == "dora" or self.dropout):
            raise BadInput(
                "experts' matrices have low-rank products alone: no lengths of rows, no dropout",
                hint=f'--set {_PLACE}.rule="lora" --set {_PLACE}.dropout=0, or leave experts out '
                f"of {_PLACE}.targets",
            )
        layers = (0, spec.layers - 1)
        known = list(dict.fromkeys(
            target for layer in layers for rows in target_rows(spec, layer).values()
            for target in rows
        ))  # fmt: skip
        for target in self.targets or ():
            if target not in known:
                raise BadInput(
                    f"{_PLACE}.targets has {target}, which the model has not",
                    hint=f"use some of: {', '.join(known)}",
                )
        targets = tuple(each for each in known if self._wants(each))
        alpha = 2.0 * self.ranks if self.alpha is None else self.alpha
        return msgspec.structs.replace(self, rank=self.ranks, alpha=alpha, targets=targets)

    def of(self, matrix: str) -> tuple[Target, ...]:
        """Those of its targets that are rows of a block's matrix."""
        return tuple(each for each in MATRICES[matrix] if self._wants(each))

    def _wants(self, target: Target) -> bool:
        return target != "experts" if self.targets is None else target in self.targets


class Biases(Record, tag="biases", tag_field="type"):
    """Every bias, and nothing else (BitFit, arXiv:2106.10199)."""


Adapter = LowRank | Biases


class Learning(Record):
    """What of a model learns: an `adapter`, or all, but for what is `frozen`: "embeddings", "head",
    "norms", "biases", "layers.3" or "layers.0-11".
    """

    adapter: Adapter | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_patterns(self.frozen)

    @property
    def everything(self) -> bool:
        """Whether nothing is frozen."""
        return self.adapter is None and not self.frozen

    def learns(self, name: str) -> bool:
        """Whether a parameter of the model does, by its name. A head for classes is new with the
        task, and always learns.
        """
        kind = name.rpartition(".")[2]
        if name.startswith("score."):
            return True
        if isinstance(self.adapter, LowRank):
            return False
        if isinstance(self.adapter, Biases) and kind not in ("bias", "head_bias"):
            return False
        return not self._frozen(name)

    def adapts(self, layer: int) -> bool:
        """Whether the layer's matrices have low-rank products beside them."""
        return isinstance(self.adapter, LowRank) and not self._frozen(f"blocks.{layer}.")

    def check(self, spec: ModelSpec) -> None:
        """Raises BadInput where the model has not what this names, or nothing would learn."""
        if self.everything:
            return
        _refuse(spec)
        for pattern in self.frozen:
            _, last = _layers(pattern)
            if last >= spec.layers:
                what = f"train.frozen has {pattern}, and the model has {spec.layers} layers"
                raise BadInput(what, hint=f'"layers.0-{spec.layers - 1}" are all of them')
            if pattern == "head" and spec.tied_embeddings and not spec.head_bias:
                raise BadInput(
                    "train.frozen has head, which is the model's table of embeddings",
                    hint='freeze "embeddings" instead',
                )
        layers = range(spec.layers)
        if isinstance(self.adapter, LowRank) and not any(map(self.adapts, layers)):
            raise BadInput("every layer is frozen: nothing would learn", hint="freeze fewer")
        biased = spec.biases or spec.qkv_biases or spec.head_bias
        if isinstance(self.adapter, Biases) and not biased:
            raise BadInput(
                "the model has no biases that could be trained",
                hint='--set train.adapter.type="lora"',
            )

    def _frozen(self, name: str) -> bool:
        return any(_is(name, pattern) for pattern in self.frozen)


def check_patterns(frozen: Iterable[str]) -> None:
    """Raises BadInput where one of them names nothing."""
    for pattern in frozen:
        if not _PATTERN.fullmatch(pattern):
            what = f'train.frozen has "{pattern}", which names no parameters'
            hint = 'use "embeddings", "head", "norms", "biases", "layers.3" or "layers.0-11"'
            raise BadInput(what, hint=hint)
        first, last = _layers(pattern)
        if first > last >= 0:
            raise BadInput(f'train.frozen has "{pattern}"', hint=f'"layers.{last}-{first}"')


def target_rows(spec: ModelSpec, layer: int = 0) -> dict[str, dict[Target, tuple[int, int]]]:
    """Of each of a block's matrices, the first row and the one behind the last of every target; of
    experts' matrices, those of each expert.
    """
    sizes: dict[str, dict[Target, int]] = {
        **_attention(spec), "out": {"out": spec.width}, **_feed_forward(spec, layer)
    }  # fmt: skip
    found: dict[str, dict[Target, tuple[int, int]]] = {}
    for matrix, parts in sizes.items():
        found[matrix], at = {}, 0
        for target, size in parts.items():
            found[matrix][target] = (at, at + size)
            at += size
    return found


def inner_width(spec: ModelSpec, matrix: str) -> int:
    """Columns of a block's matrix."""
    latent, experts = spec.latent, spec.experts
    match matrix:
        case "out":
            return spec.heads * spec.value_width
        case "down":
            return spec.feed_forward_width
        case "qkv.query_up" if latent is not None and latent.query_rank is not None:
            return latent.query_rank
        case "qkv.key_value_up" if latent is not None:
            return latent.kv_rank
        case "experts.shared_down" if experts is not None:
            return experts.shared_total
        case "experts.each.down" if experts is not None:
            return experts.width
        case _:
            return spec.width


def _attention(spec: ModelSpec) -> dict[str, dict[Target, int]]:
    N, K, H, latent = spec.heads, spec.kv_heads, spec.head_width, spec.latent
    if latent is None:
        return {"qkv": {"query": N * H, "key": K * H, "value": K * H}}
    wide, rank = N * spec.score_width, latent.query_rank
    queries: dict[str, dict[Target, int]] = {"qkv.query": {"query": wide}}
    if rank is not None:
        queries = {"qkv.query_down": {"query_down": rank}, "qkv.query_up": {"query_up": wide}}
    return {
        **queries,
        "qkv.key_value_down": {"key_value_down": latent.kv_rank + latent.rope_width},
        "qkv.key_value_up": {"key_value_up": N * (H + latent.value_width)},
    }


def _feed_forward(spec: ModelSpec, layer: int) -> dict[str, dict[Target, int]]:
    def both(before: str, F: int) -> dict[str, dict[Target, int]]:
        up: dict[Target, int] = {"gate": F, "up": F} if spec.gated else {"up": F}
        return {f"{before}up": up, f"{before}down": {"down": spec.width}}

    experts = spec.experts
    if experts is None or layer < experts.dense_layers:
        return both("", spec.feed_forward_width)
    shared = both("experts.shared_", experts.shared_total) if experts.shared_total else {}
    up = experts.width * (2 if spec.gated else 1)
    own: dict[str, dict[Target, int]] = {
        f"{EXPERTS}up": {"experts": up}, f"{EXPERTS}down": {"experts": spec.width}
    }  # fmt: skip
    return {**shared, **own}


def _is(name: str, pattern: str) -> bool:
    """Whether a parameter is of those that a pattern names."""
    *_, owner, kind = ["", *name.split(".")]
    if pattern == "embeddings":
        return name.split(".")[0] in _ENDS
    if pattern == "head":
        return name.split(".")[0] in _HEAD
    if pattern == "norms":
        return owner.startswith("norm") or owner.endswith("_norm") or ".query_norms." in name
    if pattern == "biases":
        return kind in ("bias", "head_bias")
    first, last = _layers(pattern)
    found = re.match(r"blocks\.(\d+)\.", name)
    return found is not None and first <= int(found[1]) <= last


def _layers(pattern: str) -> tuple[int, int]:
    """The first and the last layer that a pattern names; none: 0 and -1."""
    found = _PATTERN.fullmatch(pattern)
    if found is None or found[1] is None:
        return 0, -1
    return int(found[1]), int(found[2] or found[1])


def _refuse(spec: ModelSpec) -> None:
    if spec.encoder_layers > 0:
        raise BadInput(
            "a model with an encoder beside the decoder is trained whole: adapters and frozen "
            "parts do not know it",
            hint="leave out train.adapter and train.frozen",
        )


EVERYTHING = Learning()
"""What there is without a word about it."""
