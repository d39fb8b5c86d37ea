"""Rows of published serving measurements as what the cost model is asked.

Only a row's own facts are read: never its outcome, and never the name of its source.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import NamedTuple

from cells import Row, number
from msgspec.structs import replace
from shapes import of_experts

from narrows.hardware.accelerators import Accelerator, accelerator
from narrows.hardware.fleet import fleet_of
from narrows.model.presets import preset
from narrows.plan.fleet.constants import ENGINES, SERVING_BATCHED, SERVING_HELD
from narrows.plan.fleet.passes import (
    Prompt,
    Replica,
    decode_seconds,
    prefill_seconds,
    weights_bytes,
)
from narrows.plan.fleet.serving import Apart, Load, Served, Speculation, serve
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.model import Experts, Latent, ModelSpec, Window, llama

# Bits of a stored weight, scales included.
_BITS = {
    "fp8": 8.0, "fp4": 4.5, "bf16": 16.0, "F16": 16.0, "int8": 8.0, "int4": 4.5,
    "int4-g32": 5.0, "Q4_K_M": 4.85, "bnb.nf4": 4.5, "bnb.nf4-dq": 4.13,
}  # fmt: skip
_SUFFIX = re.compile(r"-(fp8|nvfp4|instruct|base|chat|bf16)(?=-|$)", re.IGNORECASE)
# Successors whose shape is their predecessor's.
_SAME = {"minimax-m2.5": "minimax-m2", "kimi-k2.5": "kimi-k2", "deepseek-v3.1": "deepseek-v3",
         "phi-1.5 1.3 b": "phi-1.5"}  # fmt: skip


_AT_ONCE = "batch_or_concurrency"
# What runs a model without a server.
_LOOPS = ("llama.cpp", "gpt-fast", "litgpt")
# Load generators draw lengths evenly from 0.8 to 1 of what is told, and send ten times as many
# requests as run at a time, the first of them at once (SemiAnalysis, InferenceMAX, 2025).
_DRAWN, _ROUNDS = 0.9, 10.0
# Where a row keeps silent on how many sets of devices decode: requests of a device, beyond how many
# of a device each attends to its own, and the share of the time that those for prompts are busy.
_REQUESTS, _OWN, _BUSY = 128.0, 16.0, 1.0


# Nor does such a row tell whether tokens are guessed, as most do where few requests are on a
# device, with the block for a second token that their models have (DeepSeek-V3, arXiv:2412.19437,
# section 5.4.3: 85 to 90 % of those are right).
_GUESSED = Speculation(accept=0.8, ahead=2)


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
    served = _engine(row) != "bare"
    if served:
        prompt, answer = _DRAWN * prompt, _DRAWN * answer
    spec = model_of(row)
    notes = row["notes"]
    ranks, groups = _ranks(row, spec)
    work = Work.of(spec, max(1, int(prompt)))
    bits = _BITS.get(row["quant"], 8.0 if "fp8" in row["model"].lower() else 16.0)
    # Formats of the tensor cores come with keys and values of 8 bits.
    narrow = row["quant"] in ("fp8", "fp4") or "fp8" in row["model"].lower()
    replica = Replica(
        tensor=ranks, attention_data=groups, weight_bits=bits, cache_bytes=1.0 if narrow else 2.0,
        compute_bits=None if narrow else 16.0, captured="eager" not in row["engine"],
    )  # fmt: skip
    load = Load(
        concurrency=_concurrency(row, groups), prompt=prompt, answer=answer,
        rounds=_ROUNDS if served else None,
        engine=_engine(row),
    )  # fmt: skip
    fleet = fleet_of(_accelerator(row["accelerator"]), ranks, name=row["accelerator"])
    question = Question(work, replica, load, fleet)
    if "mode=disagg" in notes:
        question = question._replace(load=replace(load, apart=_apart(row, question)))
        if "workers= " in notes and groups == 1 and spec.experts:
            question = question._replace(load=replace(question.load, speculation=_GUESSED))
    elif spec.heads % ranks:
        # Experts over more ranks than divide the heads: such servers compute prompts on a set of
        # devices of their own (DeepSeek-V3, arXiv:2412.19437, section 3.4).
        question = question._replace(load=replace(load, apart=Apart(replica=replica)))
    return question


def _apart(row: Row, question: Question) -> Apart:
    """The devices that compute prompts. Where a row does not tell how many sets, or fewer devices
    than hold the model, there are as many as hold it and keep up with those that decode.
    """
    work, replica, load, fleet = question
    notes = row["notes"]
    told = ranks = max(1, _told(notes, r"prefill: bs=\d* workers=\d* tp=(\d+)"))
    room = SERVING_HELD * float(fleet.memory_capacity.value)
    while weights_bytes(work, own := replace(replica, tensor=ranks, attention_data=1)) > room:
        ranks *= 2
    workers = _told(notes, r"prefill: bs=\d* workers=(\d+)")
    sets = max(1, workers) / _decoders(row)
    if not workers or ranks > told:
        past = load.prompt + load.answer / 2.0
        writing = load.answer * decode_seconds(work, replica, load.concurrency, past, fleet)
        busy = load.concurrency * prefill_seconds(
            work, own, Prompt(load.prompt, beside=SERVING_BATCHED), fleet
        )
        sets = max(sets, busy / writing / _BUSY)
    return Apart(replica=own, sets=sets)


@cache
def _accelerator(name: str) -> Accelerator:
    """By its name, or by its name without how many cores of it are switched on."""
    try:
        return accelerator(name)
    except BadInput:
        return accelerator(re.sub(r"\s+\d+\W?core gpu.*", "", name, flags=re.IGNORECASE))


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
    """A preset, what a configuration says, or the name of its size ("397B-A17B")."""
    name = _SUFFIX.sub("", row["model"].rpartition("/")[2])
    if name.lower() in _TOLD:
        return _TOLD[name.lower()]
    try:
        return _preset(_SAME.get(name.lower(), name))
    except BadInput:
        pass
    told = re.search(r"(\d+)B-A\d+B", name)
    if not told:
        return _preset(name)
    return of_experts(1e9 * float(told[1]), 64, 4096, context=32_768)


@cache
def _preset(name: str) -> ModelSpec:
    return preset(name).spec


def _glm_5() -> ModelSpec:
    """zai-org/GLM-5, config.json, 2026-02."""
    plain = llama(layers=78, width=6144, heads=64, kv_heads=64, vocabulary=154_880,
                  context=202_752, feed_forward_width=12_288, tied_embeddings=False)  # fmt: skip
    return replace(
        plain, head_width=192,
        latent=Latent(kv_rank=512, rope_width=64, value_width=256, query_rank=2048),
        experts=Experts(count=256, chosen=8, width=2048, shared=1, dense_layers=3),
    )  # fmt: skip


def _qwen_3_5() -> ModelSpec:
    """Qwen/Qwen3.5-397B-A17B, config.json, 2026-02: three of four layers keep a state instead of
    keys and values, as large as some 2,048 tokens' of the fourth.
    """
    plain = llama(layers=60, width=4096, heads=32, kv_heads=2, vocabulary=248_320,
                  context=262_144, tied_embeddings=False)  # fmt: skip
    return replace(
        plain, head_width=256, window=Window(size=2048, full_every=4),
        experts=Experts(count=512, chosen=10, width=1024, shared=1),
    )  # fmt: skip


def _stablelm() -> ModelSpec:
    """stabilityai/stablelm-base-alpha-3b, config.json."""
    return llama(layers=16, width=4096, heads=32, kv_heads=32, vocabulary=50_688, context=4096,
                 feed_forward_width=10_923, tied_embeddings=False)  # fmt: skip


_TOLD = {"glm-5": _glm_5(), "qwen3.5-397b-a17b": _qwen_3_5(), "stablelm alpha 3 b": _stablelm()}


def _told(notes: str, pattern: str) -> int:
    found = re.search(pattern, notes)
    return int(found[1]) if found else 0


def _ranks(row: Row, spec: ModelSpec) -> tuple[int, int]:
    """Devices of one replica, and groups of them that attend to different requests."""
    notes = row["notes"]
    decoding = _told(notes, r"decode: bs=\d* workers=\d* tp=(\d+)")
    groups = max(1, _told(notes, r"attn_dp=(\d+)"))
    ranks = max(1, int(number(row, "tp") or decoding or 1)) * groups
    if decoding and "workers= " not in notes:
        # Each worker's requests by ranks that hold `bs` of them.
        at_once = _told(notes, r"decode: bs=(\d+)") * _decoders(row)
        together = _together(row)
        groups = max(1, round(together / at_once)) if at_once else 1
        ranks = decoding * groups
    elif "mode=disagg" in notes:
        at_once = _together(row) / _decoders(row)
        groups = ranks if at_once > _OWN * ranks else 1
    elif spec.experts and "attn_dp= " in notes:
        # All ranks' requests by those of one group of them.
        groups = math.gcd(ranks, max(1, round(_together(row) / (number(row, _AT_ONCE) or 1.0))))
    experts, halves = _told(notes, r"moe_ep=(\d+)"), _told(notes, r"moe_tp=(\d+)")
    # Such tables name k ranks both k-way tensor and k-way expert, and multiply them.
    twice = "attn_dp= " not in notes and 1 < experts == halves and experts**2 == ranks
    if twice or (halves == 1 and groups > 1 and groups**2 == ranks == experts):
        ranks = round(ranks**0.5)
    groups = min(groups, ranks)
    if spec.heads % (ranks // groups):
        groups = ranks
    return ranks, groups


def _engine(row: Row) -> str:
    """What serves, where it is a server that the model knows."""
    name = row["engine"].split(" ")[0]
    if name in ENGINES:
        return name
    return "bare" if name in _LOOPS else "vllm"


def _decoders(row: Row) -> float:
    """Sets of devices that decode; where none is told, as many as one would take."""
    notes = row["notes"]
    told = _told(notes, r"decode: bs=\d* workers=(\d+)")
    if told or "mode=disagg" not in notes:
        return max(1, told)
    ranks = max(1, _told(notes, r"decode: bs=\d* workers=\d* tp=(\d+)"))
    return max(1.0, _together(row) / (_REQUESTS * ranks))


def _together(row: Row) -> int:
    """Requests at a time in all; 0 where it is not told."""
    return _told(row["notes"], r"silicon_concurrency=(\d+)")


def _concurrency(row: Row, groups: int) -> float:
    """Requests at a time on one replica of those that decode."""
    told = number(row, _AT_ONCE)
    if told is None:
        return max(1.0, _together(row) / _decoders(row))
    if "attn_dp= " not in row["notes"]:
        groups = max(1, _told(row["notes"], r"attn_dp=(\d+)"))
    return max(1.0, told) * groups
