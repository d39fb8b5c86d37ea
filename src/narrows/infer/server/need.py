"""What serving takes of the memory, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from narrows.hardware.find import memory_free
from narrows.infer.generate import ServingPrecision
from narrows.infer.ready import Model
from narrows.model.folder import ADAPTER, PLAN
from narrows.plan.answer import cache_bytes
from narrows.plan.fleet.constants import SERVING_RUNTIME_HERE
from narrows.plan.packed import GROUP_BITS, packed_room
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.machine import CachePrecision
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.spec.units import Bytes

_OTHER_BYTES = 400e6
"""Python, torch, and what a step holds: SmolLM2-135M with 8 slots of 2,048 tokens, 646 MB of
weights and cache, was resident at 989 MB after a dozen requests.
"""

_VALUE_BYTES = {"bf16": 2, "fp32": 4}
_PACKED_BITS = {"int8": 8, "int4": 4}


class Sizes(NamedTuple):
    """A model's shape, the bytes of its weights, those of a value in the caches where they are not
    in int8, whether the packed decoder computes it, and what else there is.
    """

    spec: ModelSpec
    weights: float
    value_bytes: int
    is_packed: bool
    other: float = _OTHER_BYTES


class Need(NamedTuple):
    """Bytes by what holds them; `context` positions for each slot."""

    weights: float
    slot: float
    slots: int
    context: int
    adapters: float = 0.0
    other: float = _OTHER_BYTES

    @property
    def total(self) -> float:
        """All of it."""
        return self.fixed + self.slot * self.slots

    @property
    def fixed(self) -> float:
        """All but the caches."""
        return self.weights + self.adapters + self.other

    def __str__(self) -> str:
        cache = Bytes(self.slot * self.slots).text()
        slots = f"{self.slots} slot{'s'[: self.slots > 1]} of {self.context} tokens"
        weights, other = Bytes(self.weights).text(), Bytes(self.other).text()
        if self.adapters:
            weights += f", adapters {Bytes(self.adapters).text()}"
        return f"weights {weights}, cache {cache} ({slots}), other {other}"


def sizes(model: Model) -> Sizes:
    """What is known of a model before it is read; raises BadInput where it is none."""
    if model.laid:
        laid = model.laid
        weights = float(laid.model.nbytes)
        return Sizes(laid.about.model, weights, _VALUE_BYTES["bf16"], True, SERVING_RUNTIME_HERE)
    return _read(model.path, model.precision)


def need(
    model: Sizes, slots: int, context: int | None = None, cache: CachePrecision | None = None,
    adapters: Iterable[Path] = (),
) -> Need:  # fmt: skip
    """What the model takes, with adapters in folders beside it; raises BadInput where its context
    is shorter, or a folder has none.
    """
    spec = model.spec
    if context is not None and not 2 <= context <= spec.context:
        what = f"the context is {context}, the model knows 2 to {spec.context}"
        raise BadInput(what, hint=f"--context {spec.context}")
    context = context or spec.context
    room = packed_room(context) if model.is_packed else context
    slot = cache_bytes(spec, room, model.value_bytes, cache)
    beside = sum(map(_adapter_bytes, adapters))
    return Need(model.weights, float(slot), slots, context, float(beside), model.other)


def refuse_too_large(found: Need, path: Path) -> None:
    """Raises DoesNotFit, with as many slots or as long a context as would."""
    free = float(memory_free().value)
    if found.total <= free:
        return
    left = free - found.fixed
    slots, context = int(left // found.slot), int(left // (found.slot / found.context))
    hint = "a smaller model, or one with fewer bits"
    if slots >= 1:
        hint = f"narrows serve {path} --slots {slots}"
    elif context >= 256:
        hint = f"narrows serve {path} --slots 1 --context {context}"
    raise DoesNotFit(
        f"the server does not fit: {Bytes(found.total).text()} needed, {Bytes(free).text()} free",
        causes=[str(found)], hint=hint,
    )  # fmt: skip


def _adapter_bytes(folder: Path) -> int:
    """Of its file: in memory it is in the model's precision, its rank filled up to fours."""
    if not (folder / ADAPTER).is_file():
        what = f"{folder} is no adapter: it has no {ADAPTER}"
        raise BadInput(what, hint="give a folder as PEFT writes them, in safetensors")
    return (folder / ADAPTER).stat().st_size


def _read(path: Path, precision: ServingPrecision | None) -> Sizes:
    """By its plan, or by torch's reader."""
    from narrows.infer.loading import computes_bf16
    from narrows.infer.packing import packs, packs_bf16
    from narrows.model.opening import opened

    whole: ServingPrecision = "bf16" if computes_bf16() else "fp32"
    if (path / PLAN).is_file():
        plan = load(Plan, path / PLAN)
        spec, trained = plan.model, plan.layout.precision
    else:
        original = opened(path)
        spec, trained = original.spec, "bf16"
        if precision is None and packs(original):
            return Sizes(spec, float(original.path.stat().st_size), _VALUE_BYTES["bf16"], True)
    asked: ServingPrecision = precision or ("fp32" if trained == "fp32" else "bf16")
    packed_bf16 = asked == "bf16" and packs_bf16(spec)
    if precision is None and asked == "bf16" and not packed_bf16:
        asked = whole
    return _sizes(spec, asked, packed_bf16=packed_bf16)


def _sizes(spec: ModelSpec, precision: ServingPrecision, *, packed_bf16: bool) -> Sizes:
    if precision in ("int8", "int4"):
        weights = spec.parameters * GROUP_BITS[_PACKED_BITS[precision]] / 8
        return Sizes(spec, weights, _VALUE_BYTES["bf16"], True)
    size = _VALUE_BYTES[precision]
    return Sizes(spec, float(spec.parameters * size), size, packed_bf16)
