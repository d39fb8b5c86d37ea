"""What the plan says of an optimizer's bytes is what a trainer keeps and a checkpoint holds."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from narrows.plan.heap import GLIBC, POOL, Heap
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.memory import memory_bytes
from narrows.plan.operations import step_operations
from narrows.plan.optimizer import able, checkpoint_bytes, state_bytes, whole_state_bytes
from narrows.plan.plan import make_plan
from narrows.plan.render import text
from narrows.plan.share import Share
from narrows.spec.errors import BadInput
from narrows.spec.exchange import EXACT
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.optimizer import RULES, AdamW, Muon, Optimizer
from narrows.train.state import contents
from narrows.train.step import Trainer
from tests.layouts import layout_of
from tests.train.conftest import plan as training

CPU = torch.device("cpu")
MODELS = {
    "gpt2": gpt2(layers=2, width=128, heads=4, vocabulary=300, context=32),
    "llama": llama(layers=3, width=96, heads=6, kv_heads=2, vocabulary=200, context=48),
    "untied": msgspec.structs.replace(
        llama(layers=1, width=64, heads=4, vocabulary=100, context=32), tied_embeddings=False
    ),
}
NARROW = [(name, bits) for name in RULES if name not in ("adafactor", "schedule_free")
          for bits in (16, 8)]  # fmt: skip
KEPT = [*((name, 32) for name in RULES), *NARROW]


def optimizer(name: str = "adamw", bits: Any = 32, **changes: Any) -> Optimizer:
    return Optimizer(rule=RULES[name](), learning_rate=1e-3, state_bits=bits, **changes)


def trainer(spec: ModelSpec, settings: Optimizer, **layout: Any) -> Trainer:
    chosen = training(
        model=spec, optimizer=settings, context=spec.context, layout=layout_of(**layout)
    )
    return Trainer(chosen, CPU)


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize(("name", "bits"), KEPT)
def test_state_bytes_equal_what_a_trainer_keeps(name: str, bits: int, spec: ModelSpec) -> None:
    settings = optimizer(name, bits, ema=None if name == "schedule_free" else 0.99)
    kept = trainer(spec, settings, precision="bf16").optimizer.state()
    measured = sum(each.nbytes for key, each in kept.items() if not key.startswith("rest."))
    assert float(whole_state_bytes(Shapes.of([spec]), settings)[0, 0]) == measured


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "bits", "ema"), [
    ("adamw", 32, None), ("adamw", 8, 0.9), ("schedule_free", 32, None), ("adafactor", 32, 0.9),
])  # fmt: skip
def test_a_checkpoint_has_the_planned_bytes(
    name: str, bits: int, ema: float | None, precision: str
) -> None:
    spec, settings = MODELS["llama"], optimizer(name, bits, ema=ema)
    found = contents(trainer(spec, settings, precision=precision))
    tensors = (*found.weights.values(), *found.optimizer.values(), *found.average.values())
    planned = checkpoint_bytes(Shapes.of([spec]), 2 if precision == "bf16" else 4, settings)
    assert planned == sum(each.nbytes for each in tensors)


def test_a_checkpoint_of_the_usual_kind_takes_twelve_bytes_a_parameter() -> None:
    spec = MODELS["gpt2"]
    shapes = Shapes.of([spec])
    assert checkpoint_bytes(shapes, 2, optimizer()) == 12 * spec.parameters
    assert checkpoint_bytes(shapes, 4, optimizer()) == 12 * spec.parameters


@pytest.mark.parametrize("spread", [
    {"data": 2}, {"data": 2, "sharding": "parameters"}, {"tensor": 2}, {"pipeline": 2},
])  # fmt: skip
def test_a_share_keeps_its_own_parts_states(spread: dict[str, Any]) -> None:
    spec = MODELS["gpt2"]
    layout = layout_of(micro_batch=2, **spread)
    share = Share.of(spec, layout)
    assert state_bytes(share, optimizer()) == 8.0 * share.kept
    assert state_bytes(share, optimizer("lion")) == 4.0 * share.kept


def layouts(settings: Optimizer, **changes: Any) -> Layouts:
    return Layouts.of(layout_of(precision="bf16", **changes), EXACT, settings)


def test_fewer_bits_take_fewer_bytes_and_the_rest_stays() -> None:
    shapes = Shapes.of([gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)])
    wide, narrow = (memory_bytes(shapes, layouts(optimizer(bits=bits))) for bits in (32, 8))
    assert narrow.optimizer[0, 0] == pytest.approx(
        wide.optimizer[0, 0] * (1 + 4 / 256) / 4, rel=5e-3
    )
    assert narrow.activations == wide.activations and narrow.masters == wide.masters


def test_within_the_backward_pass_gradients_never_stand_together() -> None:
    """Of many layers and few tokens, where gradients make the peak: 2 bytes a parameter go, but for
    the largest parameter's; and its holes with them, where the heap has any.
    """
    spec = gpt2(layers=24, width=512, heads=8, vocabulary=256, context=16)

    def saved(heap: Heap) -> float:
        """By a parameter."""
        apart, within = (
            memory_bytes(Shapes.of([spec]), layouts(optimizer(clip=0.0, fused=fused)), heap)
            for fused in (False, True)
        )
        return float((apart.peak - within.peak)[0, 0]) / spec.parameters

    assert 1.9 < saved(POOL) < 2.0 < saved(GLIBC) < 3.0


def moved(settings: Optimizer) -> float:
    found = step_operations(Shapes.of([MODELS["gpt2"]]), layouts(settings))
    rows = [each for each in found if each.name == settings.operation]
    return float(sum((each.count * each.memory_bytes)[0, 0] for each in rows))


def test_adamw_moves_less_in_fewer_bits_and_an_average_more() -> None:
    P = MODELS["gpt2"].parameters
    assert moved(optimizer()) == 26 * P
    assert moved(optimizer(ema=0.9)) == 38 * P
    assert moved(optimizer("sgd")) != moved(optimizer())


def test_muon_multiplies_its_matrices_and_adamw_nothing() -> None:
    """By hand, of a matrix m by n with m <= n: 5 iterations of 2 m²n, 2 m³ and 2 m²n."""
    spec = MODELS["gpt2"]
    found = step_operations(Shapes.of([spec]), layouts(Optimizer(rule=Muon(), learning_rate=1e-3)))
    flop = sum(float((e.count * e.flop)[0, 0]) for e in found if e.phase == "optimizer")
    D, F = spec.width, spec.feed_forward_width
    expected = 0.0
    for m, n in ((D, 3 * D), (D, D), (D, F), (D, F)):
        expected += 5 * (2 * m * m * n * 2 + 2 * m**3)
    assert flop == spec.layers * expected
    usual = step_operations(Shapes.of([spec]), layouts(optimizer()))
    assert sum(float(e.flop.sum()) for e in usual if e.phase == "optimizer") == 0.0


def candidates(*accumulation: int, **spread: Any) -> Layouts:
    base = Layouts.of(layout_of(**spread))
    count = np.array([float(each) for each in accumulation])
    return Layouts(
        setting=base.setting, micro_batch=8 / count, accumulation=count,
        recompute=0 * count, threads=1 + 0 * count, loss_chunk=64 + 0 * count, spread=base.spread,
    )  # fmt: skip


def test_of_candidates_those_stay_that_an_optimizer_can_have() -> None:
    sharded = candidates(1, 2, data=2, sharding="parameters")
    both = [candidates(1, 2, 4), sharded]
    assert len(able(both, optimizer(), EXACT, "stop")) == 2
    (whole,) = able(both, optimizer("muon"), EXACT, "stop")
    assert whole.spread is None and whole.optimizer.rule == Muon()
    (single,) = able(both, optimizer(clip=0.0, fused=True), EXACT, "stop")
    assert single.accumulation.tolist() == [1.0] and single.micro_batch.tolist() == [8.0]


@pytest.mark.parametrize(
    ("settings", "found", "message"),
    [
        (optimizer("adafactor"), {"data": 2, "sharding": "parameters"}, "parameters are sharded"),
        (optimizer(clip=0.0, fused=True), {"accumulation": 2}, "micro-batches are added up"),
        (Optimizer(rule=Muon(iterations=100), learning_rate=1e-3), {}, "fewer than 100"),
    ],
)
def test_none_that_can_be_had_is_refused_with_the_reason(
    settings: Optimizer, found: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        able([Layouts.of(layout_of(**found))], settings, EXACT, "stop")


def job(train: dict[str, Any], **layout: Any) -> Job:
    return Job(
        name="x", model=ModelIntent(layers=2, width=128, vocabulary=512, context=128),
        train=TrainIntent(steps=50, batch_sequences=8, **train), layout=LayoutIntent(**layout),
    )  # fmt: skip


def test_a_plan_has_the_rule_its_rate_and_what_it_takes(machine: Machine) -> None:
    usual = make_plan(job({}), machine, None)
    lion = make_plan(job({"optimizer": "lion", "state_bits": 8, "ema": 0.99}), machine, None)
    assert usual.optimizer.rule == AdamW() and usual.optimizer.clip == 1.0
    assert lion.optimizer.learning_rate == pytest.approx(0.2 * usual.optimizer.learning_rate)
    assert "for lion" in lion.why["optimizer.learning_rate"]
    assert lion.predicted.memory.optimizer < usual.predicted.memory.optimizer
    assert {row.operation for row in lion.predicted.rows if row.phase == "optimizer"} >= {"lion_8"}
    assert "Lion at 0.0008, states in 8 bits, weights averaged by 0.99" in " ".join(
        text(lion).split()
    )


def test_a_fused_plan_has_one_micro_batch_and_no_clip(machine: Machine) -> None:
    found = make_plan(job({"fused": True}), machine, None)
    assert found.layout.accumulation == 1 and found.optimizer.clip == 0.0
    with pytest.raises(BadInput, match="norm of all gradients"):
        make_plan(job({"fused": True, "clip": 1.0}), machine, None)


def test_a_rule_that_averages_its_steps_keeps_its_rate(machine: Machine) -> None:
    assert (
        make_plan(job({"optimizer": "schedule_free"}), machine, None).schedule.shape == "constant"
    )
    with pytest.raises(BadInput, match="takes the place of a schedule"):
        make_plan(job({"optimizer": "schedule_free", "schedule": "wsd"}), machine, None)
    with pytest.raises(BadInput, match="cosines come in cycles"):
        make_plan(job({"schedule": "linear", "cycles": 2}), machine, None)
