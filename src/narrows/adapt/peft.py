"""Adapters in PEFT's format: adapter_config.json beside adapter_model.safetensors.

write_adapter(folder, model, naming);   peft_reading.load_adapter is the way back

PEFT sets A and B beside modules as the family has them. Where one of theirs is several targets of
ours (GPT-2's c_attn, Phi-3's gate_up_proj), theirs has the ranks of all: A below one another, B in
blocks; and read, each of ours has all of their rank. A head for classes, new with the task, is kept
whole beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from narrows.adapt.apply import Adapted
from narrows.adapt.experts import AdaptedExperts
from narrows.adapt.low_rank import spread
from narrows.model.folder import ADAPTER, ADAPTER_CONFIG
from narrows.model.hugging_face import TRANSPOSED
from narrows.model.naming import Lay, Naming
from narrows.model.transformer import Transformer
from narrows.spec.adapter import EXPERTS, LowRank, Target, target_rows
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.record import write_atomically

BEFORE = "base_model.model."
SAVED = ("classifier", "score")
"""What PEFT keeps whole of a model for classes, whichever it has."""


class Module(NamedTuple):
    """A module of theirs: its name, the rows of a block's matrix that it is, and our targets in
    them.
    """

    name: str
    layer: int
    matrix: str
    rows: dict[Target, tuple[int, int]]
    lay: Lay

    @property
    def span(self) -> tuple[int, int]:
        """Its first row and the one behind its last."""
        return next(iter(self.rows.values()))[0], list(self.rows.values())[-1][1]


def write_adapter(
    folder: Path, model: Transformer, naming: Naming, *, base: str | None = None
) -> None:
    """Write the adapter of a model; `base` is what it was tuned from, a path or a name of the hub.
    Raises BadInput where it has none, or the family has no such modules.
    """
    tensors = _head(model, naming)
    ranks: dict[str, int] = {}
    adapter, names, layers = None, dict[str, None](), set[int]()
    every = list(modules(model.spec, naming))
    _refuse_experts(model)
    for module in every:
        own = model.blocks[module.layer].get_submodule(module.matrix)
        if not isinstance(own, Adapted) or own.low is None:
            continue
        adapter = own.adapter
        found = _theirs(own, module, model.spec)
        if found is None:
            continue
        names[_short(module.name, every)] = None
        layers.add(module.layer)
        ranks[_short(module.name, every)] = found["lora_A.weight"].shape[0]
        tensors |= {f"{BEFORE}{module.name}.{kind}": each for kind, each in found.items()}
    if adapter is None:
        raise BadInput("the model has no low-rank adapter to write", hint="write its weights")
    config = {**_config(adapter, list(names), ranks, base), **_task(model.spec)}
    config["fan_in_fan_out"] = any(module.lay is TRANSPOSED for module in every)
    if len(layers) < model.spec.layers:
        config["layers_to_transform"] = sorted(layers)
    folder.mkdir(parents=True, exist_ok=True)
    _save(tensors, folder / ADAPTER)
    write_atomically(folder / ADAPTER_CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def modules(spec: ModelSpec, naming: Naming) -> Iterator[Module]:
    """Theirs of all blocks' matrices; raises BadInput where a family has none for one."""
    for layer in range(spec.layers):
        for matrix, rows in target_rows(spec, layer).items():
            if matrix.startswith(EXPERTS):
                continue
            pieces = naming.pieces(f"blocks.{layer}.{matrix}.weight", spec)
            if len(pieces) not in (1, len(rows)):
                raise BadInput(
                    f"the family has no modules that could be adapted for {matrix}",
                    hint="merge the adapter and write the whole model",
                )
            groups = [rows] if len(pieces) == 1 else [{key: rows[key]} for key in rows]
            for piece, own in zip(pieces, groups, strict=True):
                name = piece.name.removesuffix(".weight")
                yield Module(name, layer, matrix, own, piece.lay)


def _refuse_experts(model: Transformer) -> None:
    """PEFT takes every gate, up and down of a model with experts for those of all experts
    (0.21, transformers_weight_conversion.py).
    """
    if model.spec.experts is None:
        return
    for name, each in model.named_modules():
        attention = any(part in ("qkv", "out") for part in name.split("."))
        if isinstance(each, (Adapted, AdaptedExperts)) and not attention:
            raise BadInput(
                f"PEFT would take what stands beside {name} for something of all experts",
                hint="adapt attention alone (train.adapter.targets), or merge the adapter and "
                "write the whole model: narrows export RUN --to FOLDER",
            )


def heads(spec: ModelSpec, naming: Naming) -> dict[str, str]:
    """What files call the weights of a head for classes, by our names; raises BadInput where the
    family's own head computes something else.
    """
    if not spec.classes:
        return {}
    alike = spec.pooling == "last" if spec.causal else spec.pooling == "first" and spec.pooler
    found = {}
    for kind in ("weight", "bias")[: 1 + spec.classes_biased]:
        pieces = naming.pieces(f"score.{kind}", spec)
        if not pieces or not alike:
            raise BadInput(
                f"the family's own head does not read the {spec.pooling} of a text's states",
                hint="train with model.pooling = last, or of a BERT with a pooler, first",
            )
        found[f"score.{kind}"] = pieces[0].name
    for kind in ("weight", "bias") if spec.pooler else ():
        (pooler,) = naming.pieces(f"pooler.{kind}", spec)
        # Of one module, which PEFT keeps as a whole.
        if pooler.name.partition(".")[0] == found["score.weight"].partition(".")[0]:
            found[f"pooler.{kind}"] = pooler.name
    return found


def _head(model: Transformer, naming: Naming) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    return {
        f"{BEFORE}{theirs}": own[name].detach().float().contiguous()
        for name, theirs in heads(model.spec, naming).items()
    }


def _task(spec: ModelSpec) -> dict[str, Any]:
    """What PEFT calls the model's task; it has no name for masked tokens."""
    if spec.classes:
        return {"task_type": "SEQ_CLS", "modules_to_save": list(SAVED)}
    return {"task_type": "CAUSAL_LM" if spec.causal else None}


def _theirs(own: Adapted, module: Module, spec: ModelSpec) -> dict[str, Tensor] | None:
    """A, B and lengths of one module of theirs; None where nothing of it is adapted."""
    low, R = own.low, own.adapter.ranks
    assert low is not None
    mine = [each for each in module.rows if each in own.targets]
    if not mine:
        return None
    start, stop = module.span
    a_RD, b_XR = dict(zip(own.targets, low.a_PD.detach().split(R), strict=True)), rows_of(own)
    rows = tuple((module.rows[t][0] - start, module.rows[t][1] - start) for t in mine)
    b_EP = spread(torch.cat([b_XR[t] for t in mine]), rows, stop - start)
    found = {
        "lora_A.weight": torch.cat([a_RD[t] for t in mine]),
        "lora_B.weight": _turned(b_EP, module, spec),
    }
    if own.length is not None:
        whole_ED = own.frozen.whole(torch.float32).float()
        length_E = torch.linalg.vector_norm(whole_ED, dim=1)
        at = 0
        for first, last in own.rows:
            length_E[first:last] *= own.length.weight[at : at + last - first].detach()
            at += last - first
        found["lora_magnitude_vector"] = _turned(length_E[start:stop], module, spec)
    return {kind: each.float().contiguous() for kind, each in found.items()}


def rows_of(own: Adapted) -> dict[Target, Tensor]:
    """B of each target, a view of its rows."""
    assert own.b is not None
    return dict(zip(own.targets, own.b.detach().split(sizes(own)), strict=True))


def sizes(own: Adapted) -> list[int]:
    """How many rows each of its targets has."""
    return [stop - start for start, stop in own.rows]


def _turned(rows: Tensor, module: Module, spec: ModelSpec) -> Tensor:
    """Rows of ours in their order. A transposed matrix has A and B as any other."""
    return rows if module.lay is TRANSPOSED else module.lay.theirs(rows, spec)


def _short(name: str, every: list[Module]) -> str:
    """What PEFT is told of a module: its own name, with its parent's where others share it."""
    parent, leaf = name.split(".")[-2:]
    alike = {each.name.split(".")[-2] for each in every if each.name.split(".")[-1] == leaf}
    return leaf if len(alike) == 1 else f"{parent}.{leaf}"


def _config(
    adapter: LowRank, names: list[str], ranks: dict[str, int], base: str | None
) -> dict[str, Any]:
    def alpha(rank: int) -> float:
        return adapter.scale * (rank**0.5 if adapter.rule == "rslora" else rank)

    other = {name: rank for name, rank in ranks.items() if rank != adapter.ranks}
    return {
        "peft_type": "LORA", "base_model_name_or_path": base,
        "r": adapter.ranks, "lora_alpha": alpha(adapter.ranks), "lora_dropout": adapter.dropout,
        "target_modules": names, "rank_pattern": other,
        "alpha_pattern": {name: alpha(rank) for name, rank in other.items()},
        "use_rslora": adapter.rule == "rslora", "use_dora": adapter.rule == "dora",
        "bias": "none", "modules_to_save": None, "inference_mode": True,
        "init_lora_weights": True, "layers_to_transform": None, "layers_pattern": None,
    }  # fmt: skip


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save

    write_atomically(path, save(tensors, {"format": "pt"}))
