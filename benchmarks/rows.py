"""Rows of published measurements as what the cost model is asked: a model, a layout, a fleet.

Only a row's own facts are read: never its outcome, and never the name of its source.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import msgspec
import numpy as np
from cells import Row, number, size
from shapes import model_of

from narrows.hardware.accelerators import Accelerator, accelerator, accelerators
from narrows.hardware.fleet import fleet_of
from narrows.plan.fleet.memory import memory
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import step
from narrows.plan.fleet.work import Work, adapter_share
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet, Fusion, Recompute, Sharding, Spread
from narrows.spec.model import ModelSpec

# What fits may be predicted to need a little more than there is: the memory model errs by as much.
_FITS = 1.2
_RANK = 16
# Bytes a second of a host of Google Cloud's A3 with eight H100s: four ports of 200 Gbit/s
# (Google, A3 supercomputers, 2023-05).
_A3_NETWORK = 4 * 25e9
_SIZES = {"n_layers": "L", "d_model": "d", "n_heads": "heads", "vocab": "vocab"}
_FLAGGED = ("fsdp", "compile", "flash_attention", "sequence_parallel", "recompute")
_FLAGS = {
    "yes": "y", "true": "y", "1": "y", "1.0": "y", "full_shard": "y", "hybrid_shard": "y",
    "hsdp": "y", "fsdp": "y", "no": "n", "false": "n", "0": "n", "0.0": "n", "none": "n",
}  # fmt: skip
# What names of hosts and packages say of the devices in them; and what stands for a device that
# nothing is known of, the commonest of published runs.
_HOSTS = {"dgx-2h": "V100-32GB", "dgx-2": "V100-32GB", "dgx-1": "V100", "v100-sxm3": "V100-32GB"}
_UNKNOWN = "A100-80GB"
_ALIKE = 0.6
_COLUMNS = (
    "source", "model", "accelerator", "notes", "precision", "recompute", "flash_attention", "cp",
    "tp", "pp", "dp", "zero_stage", "n_kv_heads", "d_ff", "ffn_kind", "ep", "vpp", "fsdp",
    "sequence_parallel", "compile", "inferred", "step_time_s", "tokens_per_s_per_device",
    "model_tflops_per_device", "unit_printed", "n_devices", "seq_len", "micro_batch",
    "global_batch", "params_B",
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
    positions = int(size(row, "seq_len") or model.context)
    devices = _devices(row)
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
    chosen = choices[int(order[0])]
    if len({each.recompute for each in choices}) > 1:
        chosen = _in_part(work, chosen, fleet)
    return Asked(model, positions, chosen, fleet)


def _in_part(work: Work, spread: Spread, fleet: Fleet) -> Spread:
    """Who recomputes because memory lacks does no more blocks again than must be."""
    if spread.recompute == "none":
        return spread
    none, full = (
        float(memory(work, Spreads.of([msgspec.structs.replace(spread, recompute=kind)])).peak[0])
        for kind in ("none", "full")
    )
    limit = _FITS * float(fleet.memory_capacity.value)
    share = min(1.0, max(0.0, (none - limit) / max(none - full, 1.0)))
    return msgspec.structs.replace(spread, recompute="full", recomputed=share)


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
    if stages > 1 and number(row, "vpp") is None and not _pipelined_by_deepspeed(row):
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


def measured_seconds(row: Row, question: Asked) -> float | None:
    """The step that was measured, or what the printed rate makes of it."""
    seconds, devices = size(row, "step_time_s"), float(question.fleet.devices)
    if seconds is not None:
        return seconds
    model, tokens = question.model, question.positions * _batch(row, int(devices))
    rate = size(row, "tokens_per_s_per_device")
    if rate is not None:
        return tokens / devices / rate
    teraflops = size(row, "model_tflops_per_device")
    if teraflops is None:
        return None
    attention = 12.0 * model.layers * model.heads * model.head_width * question.positions
    flop = 6.0 * model.product_parameters_active + attention
    return flop * tokens / devices / (teraflops * 1e12)


def _device(name: str) -> Accelerator:
    """The accelerator of that name, of its first or last words, or whose name is most alike."""
    told = re.sub(r"^\s*\d+\s*x\s*|\b[hd]gx\b[\s-]*(?=\w{3})", "", name, flags=re.IGNORECASE)
    for host, device in _HOSTS.items():
        if name.lower().replace(" ", "-").startswith(host):
            told = device
    words = re.split(r"[\s()]+", told)
    spellings = [" ".join(words[:count]) for count in range(len(words), 0, -1)]
    spellings += [spelt.rsplit("-", 1)[0] for spelt in spellings]
    for spelt in (each for part in spellings if part for each in (part, "TPU " + part)):
        try:
            return accelerator(spelt)
        except BadInput:
            continue
    alike = get_close_matches(told.lower(), accelerators(), 1, _ALIKE)
    return accelerator(alike[0] if alike else _UNKNOWN)


def _fleet(row: Row, devices: int) -> Fleet:
    known = _device(row["accelerator"])
    told = re.search(r"(\d+)\s*x\s*(\d+)\s*Gb", row["notes"])
    network = None
    if told:
        network = float(told[1]) * float(told[2]) * 1e9 / 8 / known.devices_per_node
    elif re.search(r"\bA3\b", row["notes"]):
        network = _A3_NETWORK / known.devices_per_node
    fleet = fleet_of(known, devices, name=row["accelerator"], network=network)
    if _format(row) == "tf32" and "tf32" in fleet.peak:
        fleet = msgspec.structs.replace(fleet, peak={**fleet.peak, "fp32": fleet.peak["tf32"]})
    return fleet


def _devices(row: Row) -> int:
    """As told, or those of the layout."""
    return int(size(row, "n_devices") or _ranks(row) * (size(row, "dp") or 1.0)) or 1


def _batch(row: Row, devices: int) -> float:
    ranks = max(1.0, devices / _ranks(row))
    stages = size(row, "pp") or 1.0
    # A pipeline that is not told of otherwise, or not for certain, is kept busy.
    often = 4.0 * stages if stages > 1 else 1.0
    told = None if "GBS as uncertain" in row["notes"] else size(row, "global_batch")
    return told or ranks * often * (size(row, "micro_batch") or 1.0)


def _ranks(row: Row) -> float:
    """Devices of one replica of the model as tensor, pipeline and context parallelism cut it."""
    product = 1.0
    for column in ("tp", "pp", "cp"):
        product *= size(row, column) or 1.0
    return product


def _format(row: Row) -> str:
    told = row["precision"].lower()
    return next((name for part, name in _PRECISIONS if part in told), "bf16")


def _precision(row: Row, fleet: Fleet) -> str:
    """What the device computes in: of a format that it lacks, the next wider one that it has."""
    told = {"tf32": "fp32"}.get(_format(row), _format(row))
    wider = {"fp4": ("fp4", "fp8", "bf16", "fp16"), "fp8": ("fp8", "bf16", "fp16")}
    wanted = wider.get(told, (told, "bf16", "fp16"))
    return next((name for name in wanted if name in fleet.peak), "bf16")


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
    parallel = any((size(row, column) or 1.0) > 1 for column in ("tp", "pp", "ep", "cp"))
    narrow = _precision(row, fleet) in ("fp8", "fp4")
    # Who shards gradients or weights, and nothing else, runs a stack of launched kernels.
    alone = not parallel and (row["fsdp"] == "y" or (number(row, "zero_stage") or 0.0) >= 2.0)
    told = parallel or row["fsdp"] == "n" or narrow
    return "fused" if told and not alone else "eager"


def _spread(row: Row, devices: int, model: ModelSpec, fleet: Fleet) -> Spread:
    ranks = max(1, round(devices / _ranks(row)))
    stage = number(row, "zero_stage")
    sharded = row["fsdp"] == "y"
    data = int(size(row, "dp") or ranks)
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
    micro = max(1, round(size(row, "micro_batch") or 1.0))
    batch = _batch(row, devices)
    pipeline = min(int(size(row, "pp") or 1), model.layers + model.encoder_layers)
    return Spread(
        data=data,
        replicas=replicas,
        tensor=int(size(row, "tp") or 1),
        pipeline=pipeline,
        interleave=int(size(row, "vpp") or 1),
        context=int(size(row, "cp") or 1),
        expert=int(size(row, "ep") or 1),
        micro_batch=micro,
        accumulation=max(1, round(batch / (data * replicas * micro))),
        sharding=sharding,
        sequence_parallel=_sequence_parallel(row),
        precision=_precision(row, fleet),
        flash_attention=row["flash_attention"] != "n",
        kernels=_kernels(row, fleet),
        recompute=_recompute(row),
        **_stack(row),
        **_finetuning(row, model),
    )  # type: ignore[arg-type]


def _stack(row: Row) -> dict[str, object]:
    """What DeepSpeed's pipeline does otherwise: it waits for its host, and beside the sums of
    gradients in fp32 keeps those in bf16 (deepspeed/runtime/bf16_optimizer.py).
    """
    if not _pipelined_by_deepspeed(row):
        return {}
    return {"waits_for_host": True, "gradient_bytes": 6.0 if _format(row) == "bf16" else 4.0}


def _pipelined_by_deepspeed(row: Row) -> bool:
    """Its pipeline takes no sharded gradients or weights (deepspeed/runtime/pipe/engine.py)."""
    return "deepspeed" in row["notes"].lower() and (number(row, "zero_stage") or 0.0) < 2.0


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
    offloaded = re.search(r"\boffload\b(?!=False)", row["notes"])
    found["offload"] = "host" if offloaded else "none"
    found["chunked_loss"] = "Liger" in row["notes"]
    return found
