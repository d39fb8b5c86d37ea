"""A model's matrices in groups of 4 or 8 bits, by a method; everything else as a file will have it.

weights, one at a time ── round, gptq, awq ──→ groups, and the values that they stand for
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from narrows.adapt import awq
from narrows.adapt.calibration import MATRICES, Calibration
from narrows.adapt.gptq import gptq
from narrows.adapt.method import AWQ, GPTQ, Method, Round, Type
from narrows.adapt.rounding import BY_NAME, clipped, rounded
from narrows.model.blocks import Groups, packed, unpack
from narrows.model.grouped import GROUP
from narrows.model.writing import parameters
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

Talk = Callable[[str], None]


class Rounding(NamedTuple):
    """To which type and how; the texts [B,T] that GPTQ and AWQ round by."""

    type: Type
    method: Method = Round()
    tokens_BT: Tensor | None = None


class Quantized(NamedTuple):
    """Matrices in groups, and all values as they will be read again, by our names."""

    groups: dict[str, Groups]
    weights: Mapping[str, Tensor]


@torch.no_grad()
def quantized(
    weights: Mapping[str, Tensor], spec: ModelSpec, rounding: Rounding, *,
    kept: Mapping[str, Groups], talk: Talk = lambda text: None,
) -> Quantized:  # fmt: skip
    """The model rounded so; `kept` are matrices that lie in the type already. GPTQ and AWQ see what
    the texts make of each block. Raises BadInput where they cannot be used.
    """
    type, method, tokens_BT = rounding
    groups, changed = dict(kept), dict[str, Tensor]()
    if not isinstance(method, Round):
        assert tokens_BT is not None, "nothing to calibrate with"
        refuse_narrow(spec)
        calibration = Calibration(spec, weights, tokens_BT)
        by_block = _by_gptq(calibration, type, method) if isinstance(method, GPTQ) else _by_awq(
            calibration, type, method)  # fmt: skip
        for layer, (found, other) in enumerate(by_block):
            groups |= {f"blocks.{layer}.{name}": each for name, each in found.items()}
            changed |= {f"blocks.{layer}.{name}": each for name, each in other.items()}
            talk(f"block {layer + 1} of {spec.layers}")
    for name, shape in parameters(spec).items():
        own = type_of(name, shape, type)
        if own is not None and name not in groups:
            groups[name] = rounded(weights[name], own)
    return Quantized(groups, _Written(weights, changed, groups, type))


def type_of(name: str, shape: tuple[int, ...], type: Type) -> Type | None:
    """What a parameter of ours is written in: table and head in 8 bits where others have 4; None
    for what is no matrix of a product, or whose rows are no whole number of groups.
    """
    place = name.partition(".")[0]
    within = place in ("tokens", "head", "blocks", "encoder") and not _small(name)
    if len(shape) != 2 or shape[1] % GROUP or not within:
        return None
    return "q8_0" if place in ("tokens", "head") else type


def bytes_of(spec: ModelSpec, type: Type) -> int:
    """What the weights take in that type."""
    total = 0
    for name, shape in parameters(spec).items():
        count, own = math.prod(shape), type_of(name, shape, type)
        if len(shape) == 1 or _small(name):
            total += 4 * count
        elif own is not None or len(shape) > 2 and shape[-1] % GROUP == 0:
            total += BY_NAME[own or type].bytes_of(count)
        else:
            total += 2 * count
    return total


def _small(name: str) -> bool:
    """What stays in fp32 whatever the type."""
    return ".router." in name or name.startswith("positions.")


def _by_gptq(
    calibration: Calibration, type: Type, method: GPTQ
) -> Iterator[tuple[dict[str, Groups], dict[str, Tensor]]]:
    """Each block's matrices in the order in which they are computed, so that each is rounded for
    the inputs that it will have.
    """
    for block in calibration.blocks():
        found = {}
        for name in MATRICES:
            weight_ND = getattr(block, name).weight
            inputs = calibration.inputs(block, [name])[name]
            found[f"{name}.weight"] = groups = gptq(weight_ND, inputs, type, method)
            weight_ND.copy_(groups.whole())
        yield found, {}


def _by_awq(
    calibration: Calibration, type: Type, method: AWQ
) -> Iterator[tuple[dict[str, Groups], dict[str, Tensor]]]:
    """Each block with its channels scaled; the next one is given what it gave before it."""
    awq.refuse_others(calibration.model.spec)
    for block in calibration.blocks():
        inputs = calibration.inputs(block, MATRICES)
        awq.fold(block, inputs, type, method)
        found = {
            f"{name}.weight": clipped(getattr(block, name).weight, type, each.curvature_GCC)
            for name, each in inputs.items()
        }
        rest = {name: each for name, each in block.named_parameters() if name not in found}
        yield found, {name: each.detach().clone() for name, each in rest.items()}


def refuse_narrow(spec: ModelSpec) -> None:
    """Raises BadInput where rows of a block's matrices are no whole number of groups."""
    widths = (spec.width, spec.heads * spec.value_width, spec.feed_forward_width)
    if any(width % GROUP for width in widths):
        shown = ", ".join(map(str, widths))
        what = f"rows of {shown} values are not all whole groups of {GROUP}"
        raise BadInput(what, hint="--method round, which leaves those in 16 bits")


@final
class _Written(Mapping[str, Tensor]):
    """Values as they will be read again."""

    def __init__(
        self, weights: Mapping[str, Tensor], changed: Mapping[str, Tensor],
        groups: Mapping[str, Groups], type: Type,
    ) -> None:  # fmt: skip
        self._weights, self._changed, self._groups, self._type = weights, changed, groups, type

    def __getitem__(self, name: str) -> Tensor:
        if name in self._groups:
            return self._groups[name].whole()
        weight = self._changed[name] if name in self._changed else self._weights[name]
        weight = weight.detach().float()
        if weight.ndim < 2 or _small(name):
            return weight
        if weight.shape[-1] % GROUP:
            return weight.half().float()
        # Of experts, which lie in one.
        block, found = BY_NAME[self._type], torch.empty_like(weight)
        bytes_n = torch.cat(list(packed(weight, block)))
        unpack(memoryview(bytes_n.numpy().data), block, found)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
