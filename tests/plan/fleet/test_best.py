from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest

import narrows.plan.fleet.best as module
from narrows.hardware.fleet import fleet as named
from narrows.model.presets import preset
from narrows.plan.fleet.best import best_alone
from narrows.plan.fleet.search import Goal, evaluate, search
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]
BATCH = 64
WANTED = (
    Wanted(), Wanted(recompute="full"), Wanted(sharding="parameters"), Wanted(tensor=2),
    Wanted(schedule="zero_bubble", interleave=2), Wanted(offload="host"), Wanted(precision="fp8"),
    Wanted(sequence_parallel=False), Wanted(trained=0.01, reached=1.0), Wanted(expert=1),
)  # fmt: skip
REAL = (
    ("llama-3.1-8b", "8xh100-sxm", 512), ("llama-3.1-70b", "64xh100-sxm", 512),
    ("llama-3.1-405b", "8192xh100-sxm", 512), ("deepseek-v3", "512xh800", 512),
    ("mixtral-8x7b", "32xa100-80gb-sxm", 128), ("gpt2-xl", "8xrtx-3090", 64),
    ("t5-11b", "16xtpu-v5p", 512),
)  # fmt: skip


def same(work: Work, fleet: Fleet, batch: int, wanted: Wanted, goal: Goal) -> None:
    """The best of fewer layouts is the best of all, bit for bit; else the leanest is."""
    whole = search(work, fleet, batch, wanted, goal)
    part = best_alone(work, fleet, batch, wanted, goal)
    all_best, best = whole.best(goal), part.best(goal)
    if all_best is None:
        assert best is None and float(part.bytes.min()) == float(whole.bytes.min())
        return
    assert best is not None
    assert part.option(best) == whole.option(all_best)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(
    ("goal", "gigabytes"), list(itertools.product(("time", "energy", "memory"), (1.0, 7.0, 40.0)))
)
def test_the_best_is_that_of_the_whole_search(
    goal: Goal, gigabytes: float, wanted: Wanted, sparse: ModelSpec, small: ModelSpec,
    make_fleet: MakeFleet,
) -> None:  # fmt: skip
    for model in (small, sparse):
        work = Work.of(model, model.context)
        for devices in (1, 16):
            fleet = make_fleet(devices=devices, gigabytes=gigabytes)
            try:
                same(work, fleet, BATCH, wanted, goal)
            except BadInput as refusal:
                with pytest.raises(BadInput) as caught:
                    best_alone(work, fleet, BATCH, wanted, goal)
                assert caught.value.what == refusal.what


@pytest.mark.parametrize("goal", ["time", "energy"])
@pytest.mark.parametrize(("model", "machine", "batch"), REAL)
def test_it_is_for_real_models_on_real_machines(
    model: str, machine: str, batch: int, goal: Goal
) -> None:
    spec = preset(model).spec
    spec = msgspec.structs.replace(spec, context=min(8192, spec.context))
    same(Work.of(spec, spec.context), named(machine), batch, Wanted(), goal)


def test_what_cannot_be_the_best_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def counting(work: Work, spreads: module.Spreads, fleet: Fleet) -> module.Found:
        counted.append(spreads.size)
        return evaluate(work, spreads, fleet)

    monkeypatch.setattr(module, "evaluate", counting)
    spec = msgspec.structs.replace(preset("llama-3.1-70b").spec, context=8192)
    work, fleet = Work.of(spec, 8192), named("16x8xh100-sxm")
    best_alone(work, fleet, 512, Wanted())
    whole = search(work, fleet, 512, Wanted())
    assert 0 < sum(counted) < whole.spreads.size / 5
