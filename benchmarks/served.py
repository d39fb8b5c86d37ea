"""Rows of published serving measurements as what the cost model is asked."""

from __future__ import annotations

import re
from typing import NamedTuple

from rows import Row, number, of_experts

from narrows.hardware.accelerators import accelerator
from narrows.hardware.fleet import fleet_of
from narrows.model.presets import preset
from narrows.plan.fleet.serving import Load, Replica, Served, serve
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

# Bits of a stored weight, scales included.
_BITS = {
    "fp8": 8.0, "fp4": 4.5, "bf16": 16.0, "F16": 16.0, "int8": 8.0, "int4": 4.5,
    "int4-g32": 5.0, "Q4_K_M": 4.85, "bnb.nf4": 4.5, "bnb.nf4-dq": 4.13,
}  # fmt: skip
_SUFFIX = re.compile(r"-(fp8|nvfp4|instruct|base|chat|bf16)(?=-|$)", re.IGNORECASE)
# Successors whose shape is their predecessor's.
_SAME = {"minimax-m2.5": "minimax-m2", "kimi-k2.5": "kimi-k2", "deepseek-v3.1": "deepseek-v3"}


class Question(NamedTuple):
    """A row as the model, the replica, its load and the devices."""

    work: Work
    replica: Replica
    load: Load
    fleet: Fleet

    def answer(self) -> Served:
        """What the cost model says."""
        return serve(self.work, self.replica, self.load, self.fleet)


def asked(row: Row) -> Question:
    """Where the row is silent: 128 tokens, one request, one device."""
    prompt, answer = number(row, "prompt_len") or 128.0, number(row, "gen_len") or 128.0
    spec = model_of(row)
    ranks = _ranks(row)
    known = accelerator(row["accelerator"])
    notes = row["notes"]
    groups = _told(notes, r"attn_dp=(\d+)")
    work = Work.of(spec, max(1, int(prompt)))
    bits = _BITS.get(row["quant"], 8.0 if "fp8" in row["model"].lower() else 16.0)
    replica = Replica(
        tensor=ranks, expert=max(1, _told(notes, r"moe_ep=(\d+)")),
        attention_data=max(1, min(groups, ranks)), weight_bits=bits,
    )  # fmt: skip
    load = Load(
        concurrency=_concurrency(row), prompt=prompt, answer=answer, apart="mode=disagg" in notes
    )  # fmt: skip
    return Question(work, replica, load, fleet_of(known, ranks, name=row["accelerator"]))


def impossible(question: Question, per_token: float) -> str | None:
    """Why the row cannot be right: a token would read more than the memory moves in its time."""
    own = question.work.spec
    if own.experts is not None or question.load.concurrency > 1:
        return None
    read = question.answer().weights_bytes
    most = float(question.fleet.memory_bandwidth.value) * per_token
    if read > 1.05 * most:
        return f"reads {read / 1e9:.1f} GB of weights a token, memory moves {most / 1e9:.1f} GB"
    return None


def model_of(row: Row) -> ModelSpec:
    """A preset, or what the name says of its size ("397B-A17B")."""
    name = _SUFFIX.sub("", row["model"].rpartition("/")[2])
    try:
        return preset(_SAME.get(name.lower(), name)).spec
    except BadInput:
        pass
    told = re.search(r"(\d+)B-A\d+B", name)
    if not told:
        return preset(name).spec
    return of_experts(1e9 * float(told[1]), 64, 4096, 32_768)


def _told(notes: str, pattern: str) -> int:
    found = re.search(pattern, notes)
    return int(found[1]) if found else 0


def _ranks(row: Row) -> int:
    decoding = _told(row["notes"], r"decode: bs=\d* workers=\d* tp=(\d+)")
    return max(1, int(number(row, "tp") or decoding or 1))


def _concurrency(row: Row) -> float:
    """Requests at a time on one replica of those that decode."""
    told = number(row, "batch_or_concurrency")
    if told is not None:
        return max(1.0, told)
    workers = max(1, _told(row["notes"], r"decode: bs=\d* workers=(\d+)"))
    return max(1.0, _told(row["notes"], r"silicon_concurrency=(\d+)") / workers)
