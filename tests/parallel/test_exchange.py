"""What a plan says that processes tell each other is what traced and real ones do."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.parallel.mesh import ranks_of
from narrows.parallel.recompute import recomputed
from narrows.parallel.running import Rows
from narrows.parallel.split import Making, Split, local, split
from narrows.parallel.trace import Counting, axes, trace, traffic
from narrows.plan.exchange import Message, exchange
from narrows.spec.exchange import EXACT, Bf16, GradientExchange, LocalSteps
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec
from narrows.spec.trace import Traffic

from .equality import CPU, MODELS, SEQUENCES, layout_of, tokens
from .kinds import few
from .processes import run

Counts = dict[tuple[str | None, str], list[float]]
KINDS = {
    "all_reduce": "sum", "all_gather": "gather", "reduce_scatter": "scatter",
    "all_to_all": "exchange", "send": "send", "shift": "send",
}  # fmt: skip
TRACED: dict[str, dict[str, Any]] = {
    "replicated": {"data": 2},
    "optimizer": {"data": 4, "sharding": "optimizer", "micro_batch": 1},
    "gradients": {"data": 2, "sharding": "gradients", "micro_batch": 1},
    "parameters": {"data": 4, "sharding": "parameters", "micro_batch": 1},
    "kept": {"data": 2, "sharding": "parameters", "reshard": False},
    "hybrid": {"data": 2, "replicas": 2, "sharding": "parameters", "micro_batch": 1},
    "tensor": {"tensor": 2, "sequence_parallel": False},
    "tensor again": {"tensor": 2, "sequence_parallel": False, "recompute": "full"},
    "sequence": {"tensor": 4},
    "both": {"tensor": 2, "data": 2, "sharding": "parameters"},
    "again": {"tensor": 2, "data": 2, "sharding": "gradients", "recompute": "full"},
}
RUN: dict[str, dict[str, Any]] = {
    "gpipe": {"pipeline": 2, "schedule": "gpipe"},
    "1f1b": {"pipeline": 2},
    "interleaved": {"pipeline": 2, "interleave": 2},
    "zero bubble": {"pipeline": 2, "schedule": "zero_bubble", "interleave": 2},
    "stages of sequences": {"pipeline": 2, "tensor": 2},
    "stages, sharded": {"pipeline": 2, "data": 2, "sharding": "parameters", "micro_batch": 1},
    "stages, kept": {
        "pipeline": 2, "data": 2, "sharding": "parameters", "micro_batch": 1, "reshard": False,
    },
    "stages, summed": {"pipeline": 2, "data": 2, "micro_batch": 1},
    "stages, scattered": {"pipeline": 2, "data": 2, "sharding": "gradients", "micro_batch": 1},
    "zero bubble, sharded": {
        "pipeline": 2, "schedule": "zero_bubble", "interleave": 2, "data": 2,
        "sharding": "parameters", "micro_batch": 1,
    },
    "ring": {"context": 2},
    "ring again": {"context": 2, "recompute": "full"},
    "heads": {"context": 2, "exchange": "all_to_all"},
    "heads again": {"context": 2, "exchange": "all_to_all", "recompute": "full"},
    "ring of tensors": {"context": 2, "tensor": 2},
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "experts": {"data": 2, "expert": 2},
    "experts again": {"data": 2, "expert": 2, "recompute": "full"},
    "experts, sharded": {"data": 4, "expert": 2, "sharding": "parameters", "micro_batch": 1},
    "experts of sequences": {"tensor": 2, "expert": 2},
    "experts of parts": {"context": 2, "expert": 2},
    "replicated": {"data": 2},
    "sequence": {"tensor": 2},
}  # fmt: skip


def counted(found: tuple[Traffic, ...]) -> Counts:
    return {(each.axis, each.kind): [each.count, each.bytes] for each in found}


def planned(
    spec: ModelSpec, layout: Layout, rank: int, gradients: GradientExchange = EXACT
) -> Counts:
    """By axis and kind, without what is told outside of losses and gradients."""
    sums: Counts = defaultdict(lambda: [0.0, 0.0])
    for each in exchange(spec, layout, rank, gradients):
        if each.axis is not None:
            entry = sums[_axis(layout, each), KINDS[each.kind]]
            entry[0] += each.calls
            entry[1] += each.sent
    return sums


def _axis(layout: Layout, message: Message) -> str | None:
    """Torch has one group of all processes, and it is called by the first axis that has it, of
    those along which there is such a message.
    """
    if message.ranks < layout.processes:
        return message.axis
    sizes = {
        "tensor": layout.tensor, "data": layout.replicas * layout.data * layout.context,
        "context": layout.context, "expert": layout.expert, "pipeline": layout.pipeline,
    }  # fmt: skip
    names = {"exchange": ("expert", "context"), "send": ("context", "pipeline")}
    told = names.get(KINDS[message.kind], ("tensor", "data", "context", "pipeline"))
    return next((name for name in told if sizes[name] == layout.processes), "data")


def really(layout: Layout, name: str, gradients: GradientExchange = EXACT) -> Counts:
    """Of a step among real processes, not the first: torch's stages tell each other shapes once."""
    ranks = ranks_of(layout, CPU, gradients)
    making = Making(load("torch"), recomputed(layout.recompute), CPU, torch.float32, gradients)
    mine = split(MODELS[name], layout, ranks, making, seed=3)
    first, count = mine.own(SEQUENCES)
    _step(mine, tokens()[first : first + count])
    counting = Counting(axes(ranks, layout))
    with counting:
        _step(mine, tokens()[first : first + count])
    return counted(traffic(counting.counts))


def _step(mine: Split, tokens_BT: Tensor) -> None:
    mine.run(Rows.of(tokens_BT), mine.layout.loss_chunk)
    parameters = mine.parameters()
    found = {name: each.grad for name, each in parameters.items() if each.grad is not None}
    mine.complete({name: local(gradient) for name, gradient in found.items()})
    for each in parameters.values():
        each.grad = None


def assert_same(planned: Counts, found: Counts) -> None:
    assert {key: each[0] for key, each in planned.items()} == {
        key: each[0] for key, each in found.items()
    }
    for key, (_, moved) in planned.items():
        assert moved == pytest.approx(found[key][1], rel=1e-9), key


@pytest.mark.parametrize("name", ["dense", pytest.param("gpt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", few(TRACED, "replicated", "parameters", "tensor", "both"))
def test_a_plan_sends_what_is_traced(kind: str, name: str) -> None:
    layout = layout_of(**TRACED[kind])
    for rank in {0, layout.processes - 1}:
        traced = trace(MODELS[name], layout, rank=rank).traffic
        assert_same(planned(MODELS[name], layout, rank), counted(traced))


@pytest.mark.dist
@pytest.mark.parametrize("name", ["dense", "gpt"])
@pytest.mark.parametrize("kind", RUN)
def test_a_plan_sends_what_processes_do(kind: str, name: str) -> None:
    layout = layout_of(**RUN[kind])
    found = run(layout.processes, really, layout, name)
    for rank, counts in enumerate(found):
        assert_same(planned(MODELS[name], layout, rank), counts)


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["replicated", "gradients", "hybrid"])
def test_a_plan_halves_what_bf16_does(kind: str) -> None:
    layout = layout_of(**TRACED[kind])
    for rank, counts in enumerate(run(layout.processes, really, layout, "dense", Bf16())):
        assert_same(planned(MODELS["dense"], layout, rank, Bf16()), counts)


@pytest.mark.dist
def test_islands_tell_each_other_nothing_but_when_they_meet() -> None:
    layout, local_steps = layout_of(**TRACED["hybrid"]), LocalSteps(every=7)
    found = run(layout.processes, really, layout, "dense", local_steps)
    for rank, counts in enumerate(found):
        mine = planned(MODELS["dense"], layout, rank, local_steps)
        calls, moved = mine.pop(("replicas", "sum"))
        assert calls == pytest.approx(1 / 7)
        # Half of the parameters in fp32, around a ring of two.
        assert moved == pytest.approx(4 * MODELS["dense"].parameters / 2 / 7, rel=0.01)
        assert_same(mine, counts)


@pytest.mark.dist
def test_pieces_in_turn_may_fetch_a_block_too_early() -> None:
    """Before a block goes backward torch asks for the one that went forward before it, which may be
    another piece's and dropped again before it is needed: not more than one a micro-batch.
    """
    given = {"pipeline": 2, "interleave": 2, "data": 2, "sharding": "parameters", "micro_batch": 1}
    layout = layout_of(**given)
    found = run(layout.processes, really, layout, "dense")
    for rank, counts in enumerate(found):
        mine, gathers = planned(MODELS["dense"], layout, rank), ("data", "gather")
        early = counts[gathers][0] - mine[gathers][0]
        assert 0 <= early <= layout.accumulation
        assert_same({**mine, gathers: counts[gathers]}, counts)


@pytest.mark.dist
@pytest.mark.parametrize("kind", EXPERTS)
def test_ranks_of_experts_send_as_much_in_all(kind: str) -> None:
    """Of rows to each expert a plan knows the mean."""
    layout = layout_of(**EXPERTS[kind])
    found = run(layout.processes, really, layout, "experts")
    sums: list[Counts] = [defaultdict(lambda: [0.0, 0.0]) for _ in range(2)]
    for rank, counts in enumerate(found):
        for total, each in zip(
            sums, (planned(MODELS["experts"], layout, rank), counts), strict=True
        ):
            for key, (count, moved) in each.items():
                total[key][0] += count
                total[key][1] += moved
    assert_same(*sums)
