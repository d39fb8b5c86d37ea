"""PowerSGD over real processes, and sums in bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from narrows.parallel.compressed import Compressed, compressed
from narrows.parallel.mesh import ranks_of
from narrows.plan.gradients import gradient_bytes
from narrows.spec.exchange import Bf16, PowerSGD

from .equality import CPU, MODELS, alone, layout_of, one_step, together
from .processes import run

pytestmark = pytest.mark.dist
SHAPES = {"table": (40, 12), "square": (16, 16), "bias": (16,), "again": (16, 16)}
WHOLE = PowerSGD(rank=64, start_step=2, least_saving=0.0)
THIN = PowerSGD(rank=2, start_step=2)


def gradients(rank: int, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def summed(step: int, ranks: int = 2) -> dict[str, Tensor]:
    each = [gradients(rank, step) for rank in range(ranks)]
    return {name: sum((g[name] for g in each), torch.zeros(())) for name in SHAPES}


def made(settings: PowerSGD) -> Compressed:
    ranks = ranks_of(layout_of(data=2), CPU, settings)
    found = compressed(settings, ranks.shared_mesh)
    assert found is not None
    return found


def added(settings: PowerSGD, steps: list[int]) -> list[dict[str, Tensor]]:
    """What comes of the gradients of each step in turn."""
    mine = made(settings)
    found = []
    for step in steps:
        own = gradients(mine.rank, step)
        mine.add_up(own)
        mine.settle(True)
        found.append(own)
    return found


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name in SHAPES:
        error = float((found[name] - wanted[name]).norm() / wanted[name].norm())
        assert error < tolerance, f"{name}: {error:.2e}"


def test_factors_of_full_rank_lose_nothing() -> None:
    for found in run(2, added, WHOLE, [0, 1, 2, 3, 4]):
        for step, each in enumerate(found):
            assert_close(each, summed(step), 1e-5)


def test_before_its_first_step_nothing_is_compressed() -> None:
    one, other = run(2, added, THIN, [0, 1, 2])
    for step in (0, 1):
        assert_close(one[step], summed(step), 1e-6)
    thin = one[2]["square"]
    assert int(torch.linalg.matrix_rank(thin, rtol=1e-4)) == 2
    assert_close({**summed(2), "bias": one[2]["bias"]}, summed(2), 1e-6)
    assert all(torch.equal(one[2][name], other[2][name]) for name in SHAPES)


def counted() -> list[float]:
    """Bytes that torch counts for a compressed step, and that the plan does."""
    mine = made(THIN)
    for step in range(3):
        mine.add_up(gradients(mine.rank, step))
    _, _, sent = mine._hook.compression_stats()
    return [4.0 * sent, gradient_bytes(THIN, SHAPES.values())]


def test_a_plan_counts_the_values_that_torch_does() -> None:
    for torchs, plans in run(2, counted):
        assert torchs == plans


def test_what_was_left_out_comes_later() -> None:
    """The mean of what comes of the same gradients nears the gradient as 1/steps."""

    def distance(steps: int) -> float:
        found = run(2, added, THIN, [0, 0] + [0] * steps)[0][2:]
        mean = torch.stack([each["square"] for each in found]).mean(0)
        return float((mean - summed(0)["square"]).norm() / summed(0)["square"].norm())

    few, many = distance(8), distance(64)
    assert many < few / 4 < 0.2


def refused() -> tuple[bool, bool]:
    """Whether a step that is not taken leaves all as it was, and one that is taken does not."""
    mine = made(THIN)
    for step in range(4):
        mine.add_up(gradients(mine.rank, step))
        mine.settle(True)
    before = {n: t.clone() for n, t in (mine.own() | mine.alike()).items() if n != "steps"}

    def same() -> bool:
        after = mine.own() | mine.alike()
        return all(torch.equal(before[name], after[name]) for name in before)

    broken = gradients(mine.rank, 4)
    broken["square"][0, 0] = torch.nan
    mine.add_up(broken)
    mine.settle(False)
    kept = same()
    mine.add_up(gradients(mine.rank, 5))
    mine.settle(True)
    return kept, same()


def test_a_step_that_is_not_taken_leaves_no_error_behind() -> None:
    assert run(2, refused) == [(True, False)] * 2


@pytest.mark.parametrize(
    "change",
    [
        {}, {"sharding": "optimizer"}, {"sharding": "gradients"}, {"sharding": "parameters"},
        {"sharding": "parameters", "replicas": 2, "micro_batch": 1}, {"tensor": 2},
    ],
)  # fmt: skip
def test_sums_in_bf16_are_as_near_as_its_digits(change: dict[str, Any]) -> None:
    _, exact = alone(MODELS["dense"])
    _, found = together(MODELS["dense"], layout_of(data=2, **change), Bf16())
    errors = [float((found[n] - g).norm() / g.norm()) for n, g in exact.items()]
    # Of eight digits half a unit of the last is 2^-9 at most: in each addend, and in each sum.
    assert 1e-4 < max(errors) < 2.0**-7


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sharding": "parameters"}, "parameters are sharded"),
        ({"tensor": 2}, "layout.tensor is 2"),
        ({"pipeline": 2}, "layout.pipeline is 2"),
    ],
)
def test_powersgd_needs_the_whole_model(change: dict[str, Any], what: str) -> None:
    layout = layout_of(data=2, **change)
    with pytest.raises(AssertionError, match=what):
        run(layout.processes, one_step, MODELS["dense"], layout, THIN)


def test_one_rank_has_nothing_to_compress() -> None:
    loss, found = one_step(MODELS["dense"], layout_of(), WHOLE)
    assert loss == alone(MODELS["dense"])[0]
    assert found.keys() == alone(MODELS["dense"])[1].keys()
