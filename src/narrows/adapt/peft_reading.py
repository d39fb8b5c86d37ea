"""Adapters out of PEFT's format (see peft), and onto a model.

read_adapter(folder, spec, naming) → TheirAdapter;   put(model, theirs), or load_adapter for both
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from narrows.adapt.apply import Adapted, apply
from narrows.adapt.peft import (
    BEFORE,
    SAVED,
    Module,
    heads,
    modules,
    rows_of,
    sizes,
)
from narrows.model.folder import ADAPTER, ADAPTER_CONFIG
from narrows.model.hugging_face import TRANSPOSED
from narrows.model.naming import Naming
from narrows.model.safetensors import Safetensors, refuse_whole
from narrows.model.transformer import Transformer
from narrows.spec.adapter import Base, Learning, LowRank, Rule, inner_width
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.record import read

_KINDS = {
    ".lora_A.weight": "A", ".lora_A.default.weight": "A", ".lora_B.weight": "B",
    ".lora_B.default.weight": "B", ".lora_magnitude_vector": "length",
    ".lora_magnitude_vector.weight": "length", ".lora_magnitude_vector.default.weight": "length",
}  # fmt: skip
_UNKNOWN = (
    "target_parameters", "trainable_token_indices", "layer_replication",
    "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config",
)  # fmt: skip
"""What changes what is computed, and has no place here."""
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Those of `init_lora_weights` that leave the weights beneath as they are."""
_Rank = Annotated[int, msgspec.Meta(ge=1)]


class _Theirs(NamedTuple):
    """A module of theirs, its tensors by kind as ours lie, and what B A is multiplied by."""

    module: Module
    tensors: dict[str, Tensor]
    scale: float


class Part(NamedTuple):
    """Of a target: its layer and matrix, the rows that it is there, and A [R,D] and B [X,R], with
    what the product is multiplied by in B.
    """

    layer: int
    matrix: str
    rows: tuple[int, int]
    a_RD: Tensor
    b_XR: Tensor


class TheirAdapter(NamedTuple):
    """An adapter that fits a shape: what learns, its modules, all of which but for a factor are
    multiplied by `scale`, and a head for classes by our names.
    """

    spec: ModelSpec
    learning: Learning
    modules: tuple[_Theirs, ...]
    scale: float
    head: dict[str, Tensor]

    @property
    def low(self) -> LowRank:
        """How it is of low rank."""
        assert isinstance(self.learning.adapter, LowRank)
        return self.learning.adapter

    def parts(self) -> Iterator[Part]:
        """Of all targets, as they were read."""
        for module, tensors, scale in self.modules:
            start, a_RD, b_XR = module.span[0], tensors["A"], scale * tensors["B"]
            for first, last in module.rows.values():
                rows_XR = b_XR[first - start : last - start]
                yield Part(module.layer, module.matrix, (first, last), a_RD, rows_XR)


def load_adapter(
    model: Transformer, folder: Path, naming: Naming, *, base: Base | None = None
) -> Learning:
    """Put an adapter from a folder on a model that has memory and its weights; returns what learns
    of it then. `base`: frozen matrices in fewer bits.

    Raises BadInput, before anything is changed, as `read_adapter` does.
    """
    return put(model, read_adapter(folder, model.spec, naming), base=base)


def read_adapter(folder: Path, spec: ModelSpec, naming: Naming) -> TheirAdapter:
    """The adapter in a folder; raises BadInput where it is of another kind, or was made for another
    model.
    """
    told = _Told.of(folder)
    source = Safetensors([told.folder / ADAPTER])
    head = _head(told, spec, naming, source)
    found = _found(told, spec, naming, source, set(head.values()))
    scale, rank = found[0].scale, max(each.tensors["A"].shape[0] for each in found)
    targets = {target for each in found for target in each.module.rows}
    missing = set(range(spec.layers)) - {each.module.layer for each in found}
    alpha = scale * (rank**0.5 if told.rule == "rslora" else rank)
    adapter = LowRank(
        rank=rank, alpha=alpha, rule=told.rule, targets=tuple(sorted(targets)), dropout=told.dropout
    ).settled(spec)
    frozen = tuple(f"layers.{layer}" for layer in sorted(missing))
    learning = Learning(adapter=adapter, frozen=frozen)
    whole = {ours: _tensor(source, theirs) for ours, theirs in head.items()}
    return TheirAdapter(spec, learning, tuple(found), scale, whole)


@torch.no_grad()
def put(model: Transformer, theirs: TheirAdapter, *, base: Base | None = None) -> Learning:
    """Put an adapter that was read for its shape on a model; returns what learns of it then."""
    adapter = msgspec.structs.replace(theirs.low, base=base).settled(model.spec)
    learning = msgspec.structs.replace(theirs.learning, adapter=adapter)
    apply(model, learning)
    own_head = dict(model.named_parameters())
    for name, value in theirs.head.items():
        own_head[name].copy_(value)
    for each in theirs.modules:
        own = model.blocks[each.module.layer].get_submodule(each.module.matrix)
        assert isinstance(own, Adapted)
        _take(own, each, each.scale / theirs.scale)
    return learning


def _take(own: Adapted, theirs: _Theirs, factor: float) -> None:
    """Write a module of theirs to its targets of ours."""
    low, (start, _), tensors = own.low, theirs.module.span, theirs.tensors
    assert low is not None
    R, count = own.adapter.ranks, tensors["A"].shape[0]
    a_RD, b_XR = dict(zip(own.targets, low.a_PD.split(R), strict=True)), rows_of(own)
    lengths = {}
    if own.length is not None:
        lengths = dict(zip(own.targets, own.length.weight.split(sizes(own)), strict=True))
        norm_E = torch.linalg.vector_norm(own.frozen.whole(torch.float32).float(), dim=1)
    for target, (first, last) in theirs.module.rows.items():
        a_RD[target].zero_()
        a_RD[target][:count] = tensors["A"]
        b_XR[target].zero_()
        b_XR[target][:, :count] = factor * tensors["B"][first - start : last - start]
        if lengths:
            length = tensors["length"][first - start : last - start] / norm_E[first:last]
            lengths[target].copy_(length)


def _head(told: _Told, spec: ModelSpec, naming: Naming, source: Safetensors) -> dict[str, str]:
    """The tensors of a head for classes, by our names; raises BadInput where the model has another
    head, or the folder keeps something else whole.
    """
    known = heads(spec, naming) if told.whole else {}
    found = {ours: f"{BEFORE}{theirs}" for ours, theirs in known.items()}
    for ours, name in found.items():
        rows = spec.classes if ours.startswith("score.") else spec.width
        shape = (rows, spec.width)[: 2 if ours.endswith("weight") else 1]
        if name not in source.names() or tuple(source.shape(name)) != shape:
            raise BadInput(
                f"{told.folder} has no head for {spec.classes} classes: {name} of {list(shape)}",
                hint="take an adapter that was made for this model",
            )
    if told.whole and not found:
        raise BadInput(
            f"{told.folder} keeps {', '.join(told.whole)} whole, and the model says no classes",
            hint="merge it with PEFT, and take the merged model",
        )
    return found


def _found(
    told: _Told, spec: ModelSpec, naming: Naming, source: Safetensors, head: set[str]
) -> list[_Theirs]:
    """All modules that the folder has low-rank tensors of."""
    known = {naming.plain(each.name): each for each in modules(spec, naming)}
    found: dict[str, dict[str, Tensor]] = {}
    for name in (each for each in source.names() if each not in head):
        stem, kind = _parsed(name)
        place = naming.plain(stem)
        if place not in known:
            what = f"{told.folder} adapts {stem}, which is no matrix of the model's blocks"
            raise BadInput(what, hint="take an adapter that was made for this model")
        found.setdefault(place, {})[kind] = _tensor(source, name)
    if not found:
        raise BadInput(f"{told.folder / ADAPTER} is empty", hint="take another adapter")
    return [_checked(known[place], each, spec, told) for place, each in found.items()]


def _tensor(source: Safetensors, name: str) -> Tensor:
    refuse_whole(source, name)
    into = torch.empty(source.shape(name), dtype=torch.float32)
    source.read(name, into)
    return into


def _checked(
    module: Module, tensors: dict[str, Tensor], spec: ModelSpec, told: _Told
) -> _Theirs:  # fmt: skip
    (start, stop), rank = module.span, _matching(told.ranks, module.name, told.rank)
    shapes: dict[str, tuple[int, ...]] = {
        "A": (rank, inner_width(spec, module.matrix)), "B": (stop - start, rank)
    }  # fmt: skip
    if told.rule == "dora":
        shapes["length"] = (stop - start,)
    own: dict[str, Tensor] = {}
    for kind, shape in shapes.items():
        if kind not in tensors:
            what = f"{told.folder / ADAPTER} lacks the {kind} of {module.name}"
            raise BadInput(what, hint="fetch it again")
        # Lengths of convolutions are a row.
        found = tensors[kind].flatten() if kind == "length" else tensors[kind]
        if tuple(found.shape) != shape:
            raise BadInput(
                f"{told.folder} has the {kind} of {module.name} as {list(found.shape)}, and this "
                f"model with rank {rank} takes {list(shape)}",
                hint="take an adapter that was made for this model",
            )
        as_is = kind == "A" or module.lay is TRANSPOSED
        own[kind] = found if as_is else module.lay.ours(found, spec)
    alpha = _matching(told.alphas, module.name, told.alpha)
    return _Theirs(module, own, float(alpha / (rank**0.5 if told.root else rank)))


def _parsed(name: str) -> tuple[str, str]:
    """The module that a tensor is of, and its kind."""
    for ending, kind in _KINDS.items():
        if name.endswith(ending):
            return name.removeprefix(BEFORE).removesuffix(ending), kind
    raise BadInput(
        f"{name} is no part of a low-rank adapter that narrows knows",
        hint="merge it with PEFT, and take the merged model",
    )


def _matching(pattern: dict[str, Any], name: str, otherwise: Any) -> Any:
    """What a pattern says of a module, as PEFT matches it: by the end of its name."""
    for key, value in pattern.items():
        if _ending(key).fullmatch(name):
            return value
    return otherwise


def _ending(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})")


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a config says of all modules and of some."""

    folder: Path
    rank: int
    alpha: float
    rule: Rule
    dropout: float
    root: bool
    ranks: dict[str, int]
    alphas: dict[str, float]
    whole: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> _Told:
        """Raises BadInput where it is no LoRA's, or of a kind that computes otherwise."""
        place = folder / ADAPTER_CONFIG
        config = read(place)
        if not (folder / ADAPTER).is_file():
            raise BadInput(f"{folder} has no {ADAPTER}", hint="take an adapter in safetensors")
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            kind = config.get("peft_type") if isinstance(config, dict) else None
            what = f"{place} is of a {kind or 'nameless'} adapter, which narrows does not read"
            raise BadInput(what, hint="take a LoRA, rsLoRA or DoRA")
        wrong = [key for key in _UNKNOWN if config.get(key)]
        if config.get("bias", "none") != "none":
            wrong.append("bias")
        _refuse_moved(config, place)
        try:
            table = msgspec.convert(config, _Config)
        except msgspec.ValidationError as error:
            raise BadInput(f"{place}: {error}", hint="was it written by PEFT?") from None
        for key in (*table.rank_pattern, *table.alpha_pattern):
            try:
                _ending(key)
            except (re.error, RecursionError) as error:
                what = f'{place}: "{key:.60}" is no pattern of names: {error}'
                raise BadInput(what, hint="was it written by PEFT?") from None
        if not set(table.modules_to_save or ()) <= set(SAVED):
            wrong.append("modules_to_save")
        if wrong:
            what = f"{place} has {wrong[0]} = {config[wrong[0]]}, which narrows does not read"
            raise BadInput(what, hint="merge it with PEFT, and take the merged model")
        root = table.use_rslora
        rule: Rule = "dora" if table.use_dora else ("rslora" if root else "lora")
        return cls(
            folder=folder, rank=table.r, alpha=table.lora_alpha, rule=rule, root=root,
            dropout=table.lora_dropout, ranks=table.rank_pattern, alphas=table.alpha_pattern,
            whole=tuple(table.modules_to_save or ()),
        )  # fmt: skip


def _refuse_moved(config: dict[str, Any], place: Path) -> None:
    """PiSSA, OLoRA, CorDA and LoftQ begin by changing the weights that the adapter is put on: added
    to those of the published model, it is another model.
    """
    begun = config.get("init_lora_weights")
    if begun in _PLAIN_BEGINNINGS:
        return
    raise BadInput(
        f"{place} has init_lora_weights = {begun}, which changed the weights that it belongs to",
        hint="convert it: PEFT's save_pretrained(FOLDER, path_initial_model_for_weight_conversion="
        "FOLDER of the adapter as it began); LoftQ's: merge it with PEFT, and take that model",
    )


class _Config(msgspec.Struct):
    """What of adapter_config.json matters here."""

    r: _Rank
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, _Rank] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: list[str] | None = None
