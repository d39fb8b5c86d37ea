"""What a plan settles of an adapter, and what it says that one takes."""

from __future__ import annotations

from typing import Any

import pytest

from narrows.plan.plan import make_plan
from narrows.plan.render import text
from narrows.plan.trained import Trained
from narrows.spec import record
from narrows.spec.adapter import Biases, LowRank
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan

SMOL = ModelIntent(layers=8, width=512, heads=8, vocabulary=16_000, context=512)
LAYOUT = LayoutIntent(micro_batch=4, loss_chunk=512, recompute="none", kernels="native")


def planned(machine: Machine, layout: LayoutIntent = LAYOUT, **train: Any) -> Plan:
    intent = TrainIntent(steps=100, batch_sequences=8, **train)
    return make_plan(Job(name="smol", model=SMOL, train=intent, layout=layout), machine, None)


def test_what_nobody_said_is_settled_with_its_reason(machine: Machine, tmp_path: Any) -> None:
    plan = planned(machine, adapter=LowRank())
    assert plan.adapter == LowRank(
        rank=16, alpha=32.0, targets=("query", "key", "value", "out", "gate", "up", "down")
    )
    assert plan.optimizer.learning_rate == 2e-4
    assert {"adapter.rank", "adapter.alpha", "optimizer.learning_rate"} <= plan.why.keys()
    assert "of rank 16 beside query, key" in text(plan)
    record.save(plan, tmp_path / "plan.toml")
    assert record.load(Plan, tmp_path / "plan.toml") == plan
    asked = planned(machine, adapter=LowRank(rank=4, rule="rslora"), learning_rate=1e-3)
    assert isinstance(asked.adapter, LowRank) and asked.adapter.scale == 8.0 / 4**0.5
    assert asked.optimizer.learning_rate == 1e-3 and "adapter.rank" not in asked.why


def test_an_adapter_takes_less_time_and_memory_than_all_weights(machine: Machine) -> None:
    whole, low = planned(machine), planned(machine, adapter=LowRank())
    packed = planned(machine, adapter=LowRank(base="nf4"))
    late = planned(machine, adapter=LowRank(), frozen=("layers.0-3",))
    assert 0.6 < low.predicted.step_seconds / whole.predicted.step_seconds < 0.9
    assert low.predicted.step_seconds < packed.predicted.step_seconds
    assert late.predicted.step_seconds < 0.9 * low.predicted.step_seconds
    learned = Trained(low.model, low.learning).parameters_trained
    memory = low.predicted.memory
    assert (memory.masters, memory.optimizer) == (2 * learned, 8 * learned)
    assert packed.predicted.memory.weights < 0.6 * memory.weights
    flop = {plan.name: sum(row.flop for row in plan.predicted.rows) for plan in (whole,)}
    products = sum(row.flop for row in low.predicted.rows if row.operation != "adapter")
    # Of three products two are left, but for attention.
    assert 0.66 < products / flop["smol"] < 0.75


def test_several_processes_keep_what_is_frozen_whole_or_in_pieces(machine: Machine) -> None:
    several = {
        sharding: planned(
            machine,
            LayoutIntent(processes=2, data=2, micro_batch=4, kernels="torch", sharding=sharding),
            adapter=LowRank(),
        )
        for sharding in ("none", "parameters")
    }
    total = Trained(several["none"].model, several["none"].learning)
    frozen = 2 * (sum(each.size for each in total.parameters) - total.parameters_trained)
    sent = {}
    for sharding, plan in several.items():
        rows = plan.predicted.rows
        sent[sharding] = sum(row.network_bytes for row in rows if row.kind == "link")
    assert several["none"].predicted.memory.weights > frozen
    # Gradients of what learns alone, in fp32, around a ring of two.
    assert sent["none"] == pytest.approx(4 * total.parameters_trained, rel=0.01)
    assert sent["parameters"] > frozen / 2


@pytest.mark.parametrize(
    ("train", "layout", "match"),
    [
        ({"adapter": Biases()}, LAYOUT, "no biases"),
        ({"frozen": ("layers.7-9",)}, LAYOUT, "has 8 layers"),
        ({"frozen": ("embeddings",)}, LayoutIntent(tensor=2), "layout.tensor is 2"),
    ],
)
def test_what_cannot_be_is_refused_before_it_runs(
    train: dict[str, Any], layout: LayoutIntent, match: str, machine: Machine
) -> None:
    with pytest.raises(BadInput, match=match):
        planned(machine, layout, **train)
