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
Target = Literal["query", "key", "value", "out", "gate", "up", "down"]
Base = Literal["int8", "nf4"]
"""What frozen matrices are kept as: 8 bits with a scale a row, or one of 16 quantiles of a normal
distribution with a scale for each 64 (arXiv:2305.14314).
"""
MATRICES: dict[str, tuple[Target, ...]] = {
    "qkv": ("query", "key", "value"), "out": ("out",), "up": ("gate", "up"), "down": ("down",),
}  # fmt: skip
"""A block's matrices, and what lies in the rows of each."""
RANK, BLOCK = 16, 64
_PLACE = "train.adapter"
_PATTERN = re.compile(r"embeddings|head|norms|biases|layers\.(\d+)(?:-(\d+))?")
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
        known = [target for rows in target_rows(spec).values() for target in rows]
        for target in self.targets or ():
            if target not in known:
                raise BadInput(
                    f"{_PLACE}.targets has {target}, which the model has not",
                    hint=f"use some of: {', '.join(known)}",
                )
        targets = tuple(each for each in known if self.targets is None or each in self.targets)
        alpha = 2.0 * self.ranks if self.alpha is None else self.alpha
        return msgspec.structs.replace(self, rank=self.ranks, alpha=alpha, targets=targets)

    def of(self, matrix: str) -> tuple[Target, ...]:
        """Those of its targets that are rows of a block's matrix."""
        return tuple(
            each for each in MATRICES[matrix] if self.targets is None or each in self.targets
        )


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


def target_rows(spec: ModelSpec) -> dict[str, dict[Target, tuple[int, int]]]:
    """Of each of a block's matrices, the first row and the one behind the last of every target."""
    N, K, H, F = spec.heads, spec.kv_heads, spec.head_width, spec.feed_forward_width
    sizes: dict[str, dict[Target, int]] = {
        "qkv": {"query": N * H, "key": K * H, "value": K * H},
        "out": {"out": spec.width},
        "up": {"gate": F, "up": F} if spec.gated else {"up": F},
        "down": {"down": spec.width},
    }
    found: dict[str, dict[Target, tuple[int, int]]] = {}
    for matrix, parts in sizes.items():
        found[matrix], at = {}, 0
        for target, size in parts.items():
            found[matrix][target] = (at, at + size)
            at += size
    return found


def inner_width(spec: ModelSpec, matrix: str) -> int:
    """Columns of a block's matrix."""
    if matrix == "out":
        return spec.heads * spec.value_width
    return spec.feed_forward_width if matrix == "down" else spec.width


def _is(name: str, pattern: str) -> bool:
    """Whether a parameter is of those that a pattern names."""
    *_, owner, kind = ["", *name.split(".")]
    if pattern == "embeddings":
        return name.split(".")[0] in _ENDS
    if pattern == "head":
        return name.split(".")[0] in ("head", "head_bias")
    if pattern == "norms":
        return owner.startswith("norm") or ".query_norms." in name
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
    reasons = {
        "experts": spec.experts is not None,
        "latent attention": spec.latent is not None,
        "an encoder beside the decoder": spec.encoder_layers > 0,
    }
    for reason, there in reasons.items():
        if there:
            raise BadInput(
                f"a model with {reason} is trained whole: adapters and frozen parts do not know it",
                hint="leave out train.adapter and train.frozen",
            )


EVERYTHING = Learning()
"""What there is without a word about it."""
