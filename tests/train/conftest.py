"""A small plan and a random corpus: enough to train for real in a second."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.data.prepare import prepare
from narrows.spec.dataset import Dataset
from narrows.spec.job import Cleaning, DataSpec
from narrows.spec.ledger import Ledger, MemoryPeak, Total
from narrows.spec.machine import (
    Compiler,
    Device,
    Disk,
    Electricity,
    Fact,
    Machine,
    MatmulCurve,
    Memory,
    Processor,
)
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.optimizer import Optimizer
from narrows.spec.plan import Checkpointing, Data, Evaluation, Plan, Provenance, Schedule
from narrows.spec.units import (
    Bytes,
    BytesPerSecond,
    DollarsPerHour,
    FlopPerSecond,
    GramsPerKilowattHour,
    Seconds,
    Watts,
)
from tests.layouts import layout_of

VOCABULARY, CONTEXT = 96, 64
SPEECH = (
    "The quality of this line {n} is not strained; it droppeth as a number, {m}, from heaven.\n"
)


layout = partial(layout_of, micro_batch=4)


class RandomBatches:
    """Sequences drawn from a seed and their place, as a loader would give them."""

    def sequences(self, first: int, count: int) -> np.ndarray:
        rows = [
            np.random.default_rng(index).integers(0, VOCABULARY, CONTEXT + 1)
            for index in range(first, first + count)
        ]
        return np.stack(rows).astype(np.int64)


def model(kind: str = "gpt2", **changes: object) -> ModelSpec:
    shape = {"layers": 2, "width": 64, "heads": 4, "vocabulary": VOCABULARY, "context": CONTEXT}
    spec = gpt2(**shape) if kind == "gpt2" else llama(**shape, kv_heads=2)  # type: ignore[arg-type]
    return msgspec.structs.replace(spec, **changes)


def plan(**changes: object) -> Plan:
    nothing = Ledger(
        basis="predicted", energy_basis="estimated", rows=(), step_seconds=1.0, step_tokens=256.0,
        mfu=0.1, memory=MemoryPeak(peak=1e8),
        total=Total(
            steps=10, tokens=2560.0, seconds=10.0, seconds_training=10.0, seconds_start=0.0,
            seconds_evaluating=0.0, seconds_saving=0.0, joules=100.0, dollars=0.0,
            carbon_grams=0.0,
        ),
    )  # fmt: skip
    values: dict[str, object] = {
        "name": "tiny", "seed": 1, "model": model(), "layout": layout(),
        "optimizer": Optimizer(learning_rate=3e-3),
        "schedule": Schedule(shape="cosine", warmup_steps=2, decay_steps=8, floor=0.1),
        "batch_sequences": 4, "context": CONTEXT, "steps": 10,
        "evaluation": Evaluation(every=5, sequences=4),
        "checkpoints": Checkpointing(every=4, keep=2), "data": None, "power_watts": 50.0,
        "peak_flop_per_s": 1e11, "why": {},
        "made_from": Provenance(
            job="0", machine="0", machine_name="test", dataset=None, narrows="0"
        ),
        "bottleneck": "compute", "doubling": (), "alternatives": (), "predicted": nothing,
    }  # fmt: skip
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def batches() -> RandomBatches:
    return RandomBatches()


def tiny_machine() -> Machine:
    def fact(value: object) -> Fact[Any]:
        return Fact(value=value, basis="assumed", source="a test")

    memory = Memory(
        capacity=fact(Bytes(8e9)), free=fact(Bytes(6e9)), copy=fact(BytesPerSecond(1e10))
    )
    return Machine(
        name="test", fingerprint="0", probed_at="2026-01-01", torch="2.13.0",
        processor=Processor(
            name="test", architecture="x86_64", instruction_sets=(), cores_present=1,
            cores_allowed=1, threads_per_core=1, numa_nodes=1,
        ),
        device=Device(
            kind="cpu", name="test", threads=1, memory=memory, power_idle=fact(Watts(5.0)),
            power_full=fact(Watts(25.0)),
            matmul=(
                MatmulCurve(
                    precision="fp32", peak=fact(FlopPerSecond(1e11)), half_m=20.0, half_n=20.0,
                    half_k=20.0, launch=Seconds(1e-6), error=0.05, points=(),
                ),
            ),
        ),
        devices=1,
        disk=Disk(
            path="/", free=fact(Bytes(1e9)), write=fact(BytesPerSecond(1e9)),
            read=fact(BytesPerSecond(1e9)),
        ),
        electricity=Electricity(
            price=fact(DollarsPerHour(0.1)), carbon=fact(GramsPerKilowattHour(400.0)),
            overhead=fact(1.2),
        ),
        compiler=Compiler(available=False, reason="a test"),
        kernel_sets=("torch",),
    )  # fmt: skip


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("text")
    text = "".join(SPEECH.format(n=n, m=n * n % 97) for n in range(400))
    (folder / "speech.txt").write_text(text)
    cleaning = Cleaning(repetition_max=1.0, duplicates="keep")
    spec = DataSpec(corpus=str(folder), tokenizer="character", validation=0.2, cleaning=cleaning)
    before = os.environ.get("NARROWS_HOME")
    os.environ["NARROWS_HOME"] = str(tmp_path_factory.mktemp("home"))
    try:
        return prepare(spec, talk=lambda said: None)
    finally:
        if before is None:
            del os.environ["NARROWS_HOME"]
        else:
            os.environ["NARROWS_HOME"] = before


def with_text(dataset: Dataset, **changes: object) -> Plan:
    """A dozen steps over the text, saved each third."""
    usual: dict[str, object] = {
        "model": model("llama", vocabulary=dataset.vocabulary),
        "steps": 12,
        "evaluation": Evaluation(every=5, sequences=4),
        "checkpoints": Checkpointing(every=3, keep=2),
        "data": Data(
            folder=dataset.folder, digest=dataset.digest, tokens_train=dataset.tokens_train,
            tokens_validation=dataset.tokens_validation, bytes_per_token=dataset.bytes_per_token,
        ),
    }  # fmt: skip
    return plan(**{**usual, **changes})
