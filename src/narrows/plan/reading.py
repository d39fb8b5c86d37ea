"""What it takes to read sequences whole and score their tokens: nothing is kept of a pass."""

from __future__ import annotations

import msgspec
import numpy as np

from narrows.plan.answer import Question, answer_memory
from narrows.plan.cost import evaluation_seconds
from narrows.plan.heap import Heap
from narrows.plan.layouts import Layouts, Setting, Shapes, TrainingPrecision
from narrows.spec.ledger import MemoryPeak
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec

LOGITS = 1 << 24
"""Logits that exist at once: 64 MB of fp32."""
_FP32 = 4


def reading_seconds(
    model: ModelSpec, sequences: int, positions: int, precision: TrainingPrecision, machine: Machine
) -> float:
    """Of one pass over `sequences` of `positions` tokens, by torch's kernels. What training taught
    the machine's record is of training, and left out.
    """
    machine = msgspec.structs.replace(machine, calibration={})
    shapes = Shapes.of([msgspec.structs.replace(model, context=positions)])
    one = np.ones(1)
    layouts = Layouts(
        setting=Setting(precision=precision, kernels="torch", compile=False),
        micro_batch=sequences * one, accumulation=one, recompute=0.0 * one,
        threads=machine.device.threads * one,
        loss_chunk=one * min(sequences * positions, max(1, LOGITS // model.vocabulary)),
    )  # fmt: skip
    return float(evaluation_seconds(shapes, layouts, machine)[0, 0])


def reading_memory(
    model: ModelSpec, sequences: int, positions: int, precision: TrainingPrecision, machine: Machine
) -> MemoryPeak:
    """Peak bytes by kind, of a process that has just read the model."""
    asked = Question(
        prompt=positions, tokens=0, precision=precision, sequences=sequences, fresh=True
    )  # fmt: skip
    found = answer_memory(model, asked, Heap.of(machine))
    scored = 0 if model.classes else sequences * positions * model.vocabulary
    count = min(LOGITS, scored)
    # Their exponentials, and bf16 ones, lie where the last block's activations did.
    beside = count * (_FP32 if precision == "fp32" else _FP32 + asked.setting.value_bytes)
    logits = _FP32 * count + max(0.0, beside - found.activations)
    return msgspec.structs.replace(
        found, cache=0.0, logits=logits, peak=found.peak - found.cache - found.logits + logits
    )
