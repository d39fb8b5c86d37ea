"""Rows of published measurements as what the cost model is asked: a model, a layout, a fleet.

Only a row's own facts are read: never its outcome, and never the name of its source.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from narrows.hardware.accelerators import Accelerator, accelerator
from narrows.hardware.fleet import fleet_of
from narrows.model.presets import preset
from narrows.plan.fleet.memory import memory
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import step
from narrows.plan.fleet.work import Work, adapter_share
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Fusion, Recompute, Sharding, Spread
from narrows.spec.model import Alibi, Experts, ModelSpec, gpt2, llama

Row = dict[str, str]
_VOCABULARY = 50304
# Hybrids of attention and state space as experts of as many parameters: billions in all, layers
# and width (NVIDIA, Nemotron 3 white paper, 2025-12). State space itself is not modelled.
_HYBRIDS = {
    "nemotron_3_nano": (31.6, 52, 2688), "nemotron_3_super": (120.0, 88, 4096),
    "nemotron_3_ultra": (500.0, 108, 8192),
}  # fmt: skip
# What fits may be predicted to need a little more than there is: the memory model errs by as much.
_FITS = 1.2
# Models that are tuned often and no presets: layers, width, heads, vocabulary, feed-forward width
# (their configurations on Hugging Face).
_TUNED = {
    "stablelm-alpha-3b": (16, 4096, 32, 50688, 16384),
    "stablelm-alpha-7b": (16, 6144, 48, 50432, 24576),
    "pythia-1b": (16, 2048, 8, 50304, 8192), "pythia-2.8b": (32, 2560, 32, 50304, 10240),
    "pythia-6.9b": (32, 4096, 32, 50432, 16384), "pythia-12b": (36, 5120, 40, 50688, 20480),
    "gpt-j-6b": (28, 4096, 16, 50400, 16384), "gpt-neox-20b": (44, 6144, 64, 50432, 24576),
    "tinyllama-1.1b": (22, 2048, 32, 32000, 5632),
}  # fmt: skip
_RANK = 16
# Bytes a second of a host of Google Cloud's A3 with eight H100s: four ports of 200 Gbit/s
# (Google, A3 supercomputers, 2023-05).
_A3_NETWORK = 4 * 25e9
_SIZES = {"n_layers": "L", "d_model": "d", "n_heads": "heads", "vocab": "vocab"}
_FLAGGED = ("fsdp", "compile", "flash_attention", "sequence_parallel", "recompute")
_FLAGS = {"yes": "y", "true": "y", "1": "y", "no": "n", "false": "n", "0": "n"}
_COLUMNS = (
    "source", "model", "accelerator", "notes", "precision", "recompute", "flash_attention", "cp",
    "tp", "pp", "dp", "zero_stage", "n_kv_heads", "d_ff", "ffn_kind", "ep", "vpp", "fsdp",
    "sequence_parallel", "compile", "inferred", "step_time_s", "tokens_per_s_per_device",
    "model_tflops_per_device", "unit_printed",
)  # fmt: skip
# Names of formats, as they are found in the wild; the first that is in a row's counts.
_PRECISIONS = (
    ("bnb", "bf16"), ("nf4", "bf16"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp4", "fp4"),
    ("fp8", "fp8"), ("float8", "fp8"), ("e4m3", "fp8"), ("fp16", "fp16"), ("float16", "fp16"),
    ("half", "fp16"), ("16", "fp16"), ("tf32", "tf32"), ("32", "fp32"),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A row as a question."""

    model: ModelSpec
    positions: int
    spread: Spread
    fleet: Fleet

    @property
    def work(self) -> Work:
        """The model's work on the row's sequences."""
        return Work.of(self.model, self.positions)


def read_rows(path: Path) -> list[Row]:
    """All rows of a table; what only its notes say of a model's sizes stands in the columns too."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_completed(row) for row in csv.DictReader(file)]


def _completed(row: Row) -> Row:
    row = {column: (cell or "").strip() for column, cell in row.items() if column}
    row.update({column: _FLAGS.get(row[column].lower(), row[column].lower())
                for column in _FLAGGED if column in row})  # fmt: skip
    row["recompute"] = {"y": "full", "n": "none"}.get(
        row.get("recompute", ""), row.get("recompute", "")
    )
    sizes = dict(re.findall(r"\b(L|d|heads|vocab)=(\d+)", row.get("notes", "")))
    told = {name: sizes.get(short, "") for name, short in _SIZES.items()}
    return {
        **dict.fromkeys(_COLUMNS, ""),
        **told,
        **{k: v for k, v in row.items() if v or k not in told},
    }


def asked(row: Row) -> Asked:
    """What the row says was run; where it is silent, what one would choose: the quickest that fits
    with the least done again.
    """
    model = model_of(row)
    positions = int(number(row, "seq_len") or model.context)
    devices = int(number(row, "n_devices") or 1)
    fleet = _fleet(row, devices)
    work = Work.of(model, positions)
    spread = _adapted(row, work, _spread(row, devices, model, fleet), fleet)
    choices = _where_silent(row, work, spread)
    many = Spreads.of(choices)
    peaks = memory(work, many).peak
    fits = peaks < _FITS * float(fleet.memory_capacity.value)
    if not fits.any():
        return Asked(model, positions, choices[int(np.argmin(peaks))], fleet)
    # Of those that fit, the least recomputed, then the quickest.
    seconds = step(work, many, fleet).seconds
    order = np.lexsort((seconds, many.recompute, ~fits))
    return Asked(model, positions, choices[int(order[0])], fleet)


def _where_silent(row: Row, work: Work, spread: Spread) -> list[Spread]:
    """Every choice that the row leaves open."""
    recomputes: tuple[Recompute, ...] = ("none", "selective", "full")
    if row["recompute"].startswith(recomputes):
        recomputes = (spread.recompute,)
    elif row.get("kind") == "finetune" and spread.sharding == "parameters":
        # Who shards weights to tune adapters on one host lacks memory.
        recomputes = ("full",)
    pieces, micro = [spread.interleave], [spread.micro_batch]
    stages = spread.pipeline
    if stages > 1 and number(row, "vpp") is None and "deepspeed" not in row["notes"].lower():
        each = int(work.layers) // stages
        pieces = [v for v in (1, 2, 3, 4, 6, 8) if v <= each and each % v == 0]
    sequences = spread.micro_batch * spread.accumulation
    if number(row, "micro_batch") is None and number(row, "global_batch") is not None:
        micro = [size for size in (1, 2, 4, 8, 16) if sequences % size == 0]
    return [
        msgspec.structs.replace(spread, recompute=recompute, interleave=v, micro_batch=size,
                                accumulation=max(1, sequences // size))
        for recompute in recomputes for v in pieces for size in micro
    ]  # fmt: skip


def _adapted(row: Row, work: Work, spread: Spread, fleet: Fleet) -> Spread:
    """Adapters where the row says so; where it says either, where training all does not fit."""
    if "lora" not in row["notes"].lower() or spread.trained < 1.0:
        return spread
    whole = msgspec.structs.replace(spread, recompute="full")
    fits = memory(work, Spreads.of([whole])).peak[0] < float(fleet.memory_capacity.value)
    if "SFT" in row["notes"] and fits:
        return spread
    return msgspec.structs.replace(spread, trained=adapter_share(work, _RANK))


def model_of(row: Row) -> ModelSpec:
    """The model by its name where it is a known one, else by the sizes that the row gives."""
    context = int(number(row, "seq_len") or 2048)
    name = row["model"]
    if row.get("kind") in ("finetune", "inference") and not re.search(r"\d[bm]\b", name.lower()):
        name += f"-{row['params_B']}b"
    try:
        known = preset(name).spec
        same = (number(row, "n_layers") or known.layers) == known.layers
        if same and (number(row, "d_model") or known.width) == known.width:
            vocabulary = int(number(row, "vocab") or known.vocabulary)
            return msgspec.structs.replace(known, context=context, vocabulary=vocabulary)
    except BadInput:
        pass
    if hybrid := _HYBRIDS.get(row["model"].lower()):
        billions, layers_known, width_known = hybrid
        return of_experts(1e9 * billions, layers_known, width_known, context)
    layers, width = number(row, "n_layers"), number(row, "d_model")
    if layers is None and (sizes := _TUNED.get(re.sub(r"\W+", "-", name.lower()))):
        names = ("n_layers", "d_model", "n_heads", "vocab", "d_ff")
        row = {**row, **dict(zip(names, map(str, sizes), strict=True))}
        layers, width = sizes[:2]
    gated = "glu" in row["ffn_kind"] or "llama" in row["model"].lower()
    if layers is None or width is None:
        named = re.search(r"(\d+(?:\.\d+)?)\s*[bB]\b", row["model"])
        size = number(row, "params_B") or (float(named[1]) if named else None)
        if size is None:
            raise BadInput(
                f"{row['model']} is not among the presets, and the row gives no sizes",
                hint="add n_layers and d_model, or params_B",
            )
        # Of a model known by its size alone: 12 L D² parameters, 128 of width for each layer.
        layers = round((1e9 * size / 12 / 128**2) ** (1 / 3))
        width = 128 * layers
    told = re.search(r"n_heads (\d+) unless", row.get("inferred", ""))
    heads = number(row, "n_heads") or (float(told[1]) if told else max(1, round(width / 128)))
    feed = number(row, "d_ff") or (4 * width if not gated else 8 / 3 * width)
    make = llama if gated else gpt2
    model = make(
        layers=int(layers), width=int(width), heads=int(heads),
        vocabulary=int(number(row, "vocab") or _VOCABULARY), context=context,
    )  # fmt: skip
    changes: dict[str, object] = {
        "kv_heads": int(number(row, "n_kv_heads") or heads), "feed_forward_width": int(feed),
    }  # fmt: skip
    if row["model"].lower().startswith(("mpt", "bloom")):
        changes["positions"] = Alibi()
    experts = re.search(r"moe(\d+)top(\d+)(?:\+(\d+)sh)?", row["ffn_kind"])
    if experts:
        changes["experts"] = Experts(
            count=int(experts[1]), chosen=int(experts[2]), width=int(feed),
            shared=int(experts[3] or 0),
        )  # fmt: skip
    return msgspec.structs.replace(model, **changes)


def of_experts(parameters: float, layers: int, width: int, context: int) -> ModelSpec:
    """A model of 128 experts of which 8 are chosen, known by its size alone."""
    common = llama(
        layers=layers, width=width, heads=max(1, width // 128), kv_heads=1,
        vocabulary=131_072, context=context, tied_embeddings=False,
    )  # fmt: skip
    attention = 2 * width * width * layers
    routed = parameters - attention - common.embedding_parameters
    each = max(64, round(routed / layers / 128 / (3 * width)))
    return msgspec.structs.replace(common, experts=Experts(count=128, chosen=8, width=each))


def measured_seconds(row: Row, model: ModelSpec) -> float | None:
    """The step that was measured, or what the printed rate makes of it."""
    seconds, devices = number(row, "step_time_s"), number(row, "n_devices") or 1.0
    if seconds is not None:
        return seconds
    tokens = (number(row, "seq_len") or 0.0) * _batch(row, int(devices))
    rate = number(row, "tokens_per_s_per_device")
    if rate is not None:
        return tokens / devices / rate
    teraflops = number(row, "model_tflops_per_device")
    if teraflops is None:
        return None
    attention = 12.0 * model.layers * model.heads * model.head_width * (number(row, "seq_len") or 0)
    flop = 6.0 * model.product_parameters_active + attention
    return flop * tokens / devices / (teraflops * 1e12)


def number(row: Row, column: str) -> float | None:
    """A cell as a number, or None."""
    try:
        return float(row.get(column, ""))
    except ValueError:
        return None


def _device(name: str) -> Accelerator:
    """The accelerator of that name, or of its first words."""
    words = name.split()
    for count in range(len(words), 0, -1):
        for spelt in (" ".join(words[:count]), "TPU " + " ".join(words[:count])):
            try:
                return accelerator(spelt)
            except BadInput:
                continue
    return accelerator(name)


def _fleet(row: Row, devices: int) -> Fleet:
    known = _device(row["accelerator"])
    told = re.search(r"(\d+)\s*x\s*(\d+)\s*Gb", row["notes"])
    network = None
    if told:
        network = float(told[1]) * float(told[2]) * 1e9 / 8 / known.devices_per_node
    elif re.search(r"\bA3\b", row["notes"]):
        network = _A3_NETWORK / known.devices_per_node
    fleet = fleet_of(known, devices, name=row["accelerator"], network=network)
    if _precision(row) == "tf32" and "tf32" in fleet.peak:
        fleet = msgspec.structs.replace(fleet, peak={**fleet.peak, "fp32": fleet.peak["tf32"]})
    return fleet


def _batch(row: Row, devices: int) -> float:
    ranks = devices / _ranks(row)
    stages = number(row, "pp") or 1.0
    # A pipeline that is not told of otherwise is kept busy.
    often = 4.0 * stages if stages > 1 else 1.0
    return number(row, "global_batch") or ranks * often * (number(row, "micro_batch") or 1.0)


def _ranks(row: Row) -> float:
    """Devices of one replica of the model as tensor, pipeline and context parallelism cut it."""
    product = 1.0
    for column in ("tp", "pp", "cp"):
        product *= number(row, column) or 1.0
    return product


def _precision(row: Row) -> str:
    told = row["precision"].lower()
    return next((name for part, name in _PRECISIONS if part in told), "bf16")


def _recompute(row: Row) -> Recompute:
    found = re.match("selective|full", row["recompute"])
    return "none" if found is None else found[0]  # type: ignore[return-value]


def _sequence_parallel(row: Row) -> bool:
    """As told; a layout that is told of otherwise, and without it, has none."""
    told = row["sequence_parallel"]
    if told or "seqpar" in row["recompute"]:
        return told != "n"
    return row["flash_attention"] != "n"


def _kernels(row: Row, fleet: Fleet) -> Fusion:
    """Compiled as told or where the device has no other way; fused by hand where the layout, the
    sharding or the format is one that only stacks with such kernels offer.
    """
    if row["compile"] == "y" or fleet.kind in ("tpu", "hpu"):
        return "compiled"
    parallel = any((number(row, column) or 1.0) > 1 for column in ("tp", "pp", "ep", "cp"))
    narrow = _precision(row) in ("fp8", "fp4")
    alone = row["fsdp"] == "y" and not parallel
    return "fused" if parallel or row["fsdp"] == "n" or (narrow and not alone) else "eager"


def _spread(row: Row, devices: int, model: ModelSpec, fleet: Fleet) -> Spread:
    ranks = max(1, round(devices / _ranks(row)))
    stage = number(row, "zero_stage")
    sharded = row["fsdp"] == "y"
    data = int(number(row, "dp") or ranks)
    replicas = 1
    if sharded and data < ranks:
        # What is not said to be replicated is sharded.
        replicas, data = data, ranks // data
    data = min(data, ranks)
    sharding: Sharding = "optimizer"
    told = any(row.get(column) for column in ("tp", "pp", "dp", "fsdp", "zero_stage"))
    if devices > 1 and not told:
        # Nothing is told of the layout: what shards all is what runs anywhere.
        sharding = "parameters"
    elif stage == 3 or (sharded and stage is None):
        sharding = "parameters"
    elif stage == 2:
        sharding = "gradients"
    elif stage == 0:
        sharding = "none"
    micro = int(number(row, "micro_batch") or 1)
    batch = _batch(row, devices)
    expert = int(number(row, "ep") or 1)
    return Spread(
        data=data,
        replicas=replicas,
        tensor=int(number(row, "tp") or 1),
        pipeline=int(number(row, "pp") or 1),
        interleave=int(number(row, "vpp") or 1),
        context=int(number(row, "cp") or 1),
        expert=expert,
        micro_batch=micro,
        accumulation=max(1, round(batch / (data * replicas * micro))),
        sharding=sharding,
        sequence_parallel=_sequence_parallel(row),
        precision="fp32" if _precision(row) == "tf32" else _precision(row),
        flash_attention=row["flash_attention"] != "n",
        kernels=_kernels(row, fleet),
        recompute=_recompute(row),
        **_stack(row),
        **_finetuning(row, model),
    )  # type: ignore[arg-type]


def _stack(row: Row) -> dict[str, object]:
    """What DeepSpeed's pipeline does otherwise: whole activations between stages, and beside the
    sums of gradients in fp32 those in bf16 (deepspeed/runtime/bf16_optimizer.py).
    """
    if "deepspeed" not in row["notes"].lower():
        return {}
    return {"scattered": False, "gradient_bytes": 6.0 if _precision(row) == "bf16" else 4.0}


def _finetuning(row: Row, model: ModelSpec) -> dict[str, object]:
    """What of the weights is trained, how the rest is stored, and what is kept elsewhere."""
    found: dict[str, object] = {}
    trainable = re.search(r"trainable=([\d,]+)", row["notes"])
    if trainable:
        found["trained"] = int(trainable[1].replace(",", "")) / model.parameters
    if row.get("kind") == "inference":
        found["trained"] = 0.0
    if "nf4" in row["precision"]:
        # 4 bits and a scale of 32 (or, quantized again, about 8) bits for each 64 weights.
        found["stored_bits"] = 4.127 if row["precision"].endswith("dq") else 4.5
    offloaded = "offload" in row["notes"] and "offload=False" not in row["notes"]
    found["offload"] = "host" if offloaded else "none"
    found["chunked_loss"] = "Liger" in row["notes"]
    return found
