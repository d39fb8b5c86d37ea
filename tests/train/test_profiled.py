"""Rows of a measured step are those of the plan."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from narrows.kernels.load import available
from narrows.plan.predict import Run, predict
from narrows.plan.recipe import Cadence
from narrows.spec.layout import Layout
from narrows.spec.ledger import Row
from narrows.spec.machine import KernelSet
from narrows.spec.plan import Checkpointing, Evaluation, Plan
from narrows.train.profiled import profiled_rows
from narrows.train.step import Trainer
from tests.parallel.processes import run as processes

from .conftest import RandomBatches, layout, plan, tiny_machine

CPU = torch.device("cpu")
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"data": 2, "micro_batch": 1, "accumulation": 2},
    "sharded": {"data": 2, "micro_batch": 1, "accumulation": 2, "sharding": "parameters"},
    "tensor": {"tensor": 2, "micro_batch": 2, "accumulation": 2},
    "stages": {"pipeline": 2, "micro_batch": 1, "accumulation": 4},
}


def predicted(given: Layout) -> Plan:
    whole = plan(layout=given)
    cadence = Cadence(
        evaluation=Evaluation(every=1, sequences=1), checkpoints=Checkpointing(every=1, keep=1),
        seconds_evaluating=0.0, seconds_saving=0.0,
    )  # fmt: skip
    run = Run(steps=1, batch_sequences=4, seconds_start=0.0, cadence=cadence)
    ledger = predict(whole.model, given, tiny_machine(), run)
    return msgspec.structs.replace(whole, predicted=ledger)


def rows(whole: Plan) -> tuple[Row, ...]:
    trainer = Trainer(whole, CPU)
    trainer.step(0, RandomBatches())
    return profiled_rows(trainer, lambda: trainer.step(1, RandomBatches()))


@pytest.mark.dist
@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_processes_tell_each_other_has_the_rows_of_the_plan(kind: str) -> None:
    whole = predicted(layout(**LAYOUTS[kind]))
    found = processes(2, rows, whole)[0]
    assert sum(row.seconds for row in found) == pytest.approx(1.0)
    links = {(row.operation, row.phase): row for row in found if row.kind == "link"}
    expected = {
        (row.operation, row.phase): row for row in whole.predicted.rows if row.kind == "link"
    }
    assert expected.keys() <= links.keys()
    for key, row in expected.items():
        assert links[key].seconds > 0.0
        assert (links[key].count, links[key].network_bytes) == (row.count, row.network_bytes)
    products = {row.operation for row in found if row.kind == "gemm"}
    assert {"qkv", "out", "up", "down"} <= products and "adapter" not in products
    waiting = "FSDP", "gloo", "PP:", "_Gathered", "_Scattered"
    assert not [row.operation for row in found if row.operation.startswith(waiting)]


@pytest.mark.parametrize("kernels", [*available()])
def test_the_loss_and_its_products_have_rows_of_the_plan(kernels: KernelSet) -> None:
    whole = plan(layout=layout(
        kernels=kernels, precision="bf16", micro_batch=2, accumulation=2, loss_chunk=24
    ))  # fmt: skip
    found = {(row.operation, row.phase): row for row in rows(whole)}
    assert found["cross_entropy", "forward"].kind == "loss"
    for key in (("cross_entropy", "forward"), ("head", "forward"), ("head", "backward")):
        assert found[key].seconds > 0.0, key
    products = {row.operation for row in found.values() if row.kind == "gemm"}
    assert products == {"head", "qkv", "out", "up", "down"}
    assert not [name for name, _ in found if "Judged" in name]
