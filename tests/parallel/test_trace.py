from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.kernels.interface import Kernels
from narrows.kernels.load import load
from narrows.model.feed_forward import Routed
from narrows.model.presets import preset
from narrows.parallel import trace as tracing
from narrows.parallel.counting import Counting, axes, traffic
from narrows.parallel.mesh import ranks_of
from narrows.parallel.recompute import recomputed
from narrows.parallel.split import Making, split
from narrows.parallel.trace import step, trace
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.ledger import MemoryPeak
from narrows.spec.trace import Traffic

from .equality import CPU, MODELS, layout_of
from .kinds import few
from .processes import run

LAYOUTS: dict[str, dict[str, Any]] = {
    "replicated": {"data": 2},
    "optimizer": {"data": 4, "sharding": "optimizer", "micro_batch": 1},
    "gradients": {"data": 2, "sharding": "gradients"},
    "parameters": {"data": 4, "sharding": "parameters", "micro_batch": 1},
    "kept": {"data": 2, "sharding": "parameters", "reshard": False},
    "hybrid": {"data": 2, "replicas": 2, "sharding": "parameters", "micro_batch": 1},
    "tensor": {"tensor": 2, "sequence_parallel": False},
    "sequence": {"tensor": 4},
    "both": {"tensor": 2, "data": 2, "sharding": "parameters"},
    "again": {"tensor": 2, "data": 2, "sharding": "gradients", "recompute": "full"},
    "ring": {"context": 2},
    "heads": {"context": 2, "exchange": "all_to_all", "recompute": "full"},
    "gpipe": {"pipeline": 2, "schedule": "gpipe"},
    "1f1b": {"pipeline": 2, "data": 2, "sharding": "parameters", "micro_batch": 1},
    "interleaved": {"pipeline": 2, "interleave": 2},
    "zero_bubble": {"pipeline": 2, "schedule": "zero_bubble", "interleave": 2},
}
# Of several kinds at once, in as many processes as tests may have.
COMBINED: dict[str, dict[str, Any]] = {
    "stages of contexts": {"pipeline": 2, "context": 2},
    "stages of tensors": {"pipeline": 2, "tensor": 2, "data": 2, "sharding": "optimizer",
                          "micro_batch": 1},
    "pieces": {"pipeline": 2, "interleave": 2, "data": 2, "sharding": "gradients",
               "micro_batch": 1},
    "a v": {"pipeline": 2, "interleave": 2, "schedule": "zero_bubble", "data": 2,
            "sharding": "parameters", "micro_batch": 1},
    "rings of tensors": {"context": 2, "tensor": 2, "data": 2, "sharding": "parameters"},
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "experts": {"data": 2, "expert": 2},
    "experts of tensors": {"data": 2, "tensor": 2, "expert": 4, "sharding": "parameters"},
    "experts of stages": {"pipeline": 2, "data": 2, "expert": 2, "micro_batch": 1},
    "experts of contexts": {"context": 2, "data": 2, "expert": 2, "sharding": "gradients",
                            "recompute": "full"},
}  # fmt: skip


def really(layout: Layout, name: str) -> tuple[float, float, tuple[Traffic, ...], MemoryPeak]:
    """The same counts of a process among real ones; of memory the least of three steps, each of a
    model of its own, as gloo's calls keep tensors now longer and now shorter.
    """
    ranks = ranks_of(layout, CPU)
    making = Making(load("torch"), recomputed(layout.recompute), CPU, torch.float32)
    peaks = []
    for _ in range(3):
        counting = Counting(axes(ranks, layout))
        mine = split(MODELS[name], layout, ranks, making, seed=3)
        for module in mine.model.modules():
            if isinstance(module, Routed):
                in_turn(module)
        counts = step(mine, counting, layout.accumulation)
        peaks.append(counting.kept.peak()[0])
    least = min(peaks, key=lambda each: each.peak)
    return counts["products"], counts["scores"], traffic(counts), least


def in_turn(routed: Routed) -> None:
    """Every expert is chosen as often, in place of those that the router chooses."""
    choice = routed.choice

    def others(kernels: Kernels, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        chosen_MC, weights_MC = choice(kernels, x_MD)
        return torch.arange(chosen_MC.numel()).view_as(chosen_MC) % 8, weights_MC

    routed.choice = others  # type: ignore[method-assign]


@pytest.mark.dist
@pytest.mark.parametrize("name", ["dense", pytest.param("gpt", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", few(LAYOUTS, "replicated", "parameters", "tensor", "ring", "1f1b", "zero_bubble")
)
def test_a_trace_counts_what_real_processes_do(kind: str, name: str) -> None:
    as_real(layout_of(**LAYOUTS[kind]), name)


@pytest.mark.dist
@pytest.mark.parametrize("kind", few(EXPERTS, "experts", "experts of stages"))
def test_experts_chosen_in_turn_are_traced_as_they_are(kind: str) -> None:
    as_real(layout_of(**EXPERTS[kind]), "experts")


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", ["dense", "gpt"])
@pytest.mark.parametrize("kind", COMBINED)
def test_a_trace_of_several_kinds_counts_what_real_processes_do(kind: str, name: str) -> None:
    as_real(layout_of(**COMBINED[kind]), name)


def as_real(layout: Layout, name: str) -> None:
    """FLOP, collectives and bytes of the first rank and the last are those of real processes."""
    found = run(layout.processes, really, layout, name)
    for rank in (0, layout.processes - 1):
        traced = trace(MODELS[name], layout, rank=rank)
        products, scores, moved, memory = found[rank]
        assert (traced.products, traced.scores, traced.traffic) == (products, scores, moved)
        # Gloo's calls keep their tensors until its threads are done: one more where cores are busy.
        running = traced.memory.peak - traced.memory.optimizer
        assert 0.98 * running < memory.peak < 1.15 * running


@pytest.mark.parametrize("kind", few(LAYOUTS, "sequence", "kept", "ring", "1f1b"))
def test_micro_batches_between_the_first_and_the_last_are_alike(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = msgspec.structs.replace(layout_of(**LAYOUTS[kind]), accumulation=8)
    short = trace(MODELS["dense"], layout)
    monkeypatch.setattr(tracing, "_RUN", 8)
    monkeypatch.setattr(tracing, "_full", lambda _: (7, 8))
    whole = trace(MODELS["dense"], layout)
    assert (short.products, short.scores) == (whole.products, whole.scores)
    assert [(each.axis, each.kind, each.count) for each in short.traffic] == [
        (each.axis, each.kind, each.count) for each in whole.traffic
    ]
    for one, other in zip(short.traffic, whole.traffic, strict=True):
        assert one.bytes == pytest.approx(other.bytes, rel=1e-12)
    # Its tokens apart, which are given whole.
    assert short.memory.peak == pytest.approx(whole.memory.peak, rel=0.008)


def test_a_thousand_ranks_send_what_eight_do_but_for_the_ring_s_share() -> None:
    given = layout_of(data=8, sharding="gradients", micro_batch=1)
    few, many = (
        trace(MODELS["dense"], msgspec.structs.replace(given, data=data)) for data in (8, 1024)
    )
    assert few.products == many.products > 0.0
    for one, other in zip(few.traffic, many.traffic, strict=True):
        assert other.count == one.count
        # Pieces of 64 rows among 1,024 are padded to a row each.
        assert other.bytes >= one.bytes


def test_what_parallel_does_not_run_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot be divided among 3"):
        trace(MODELS["dense"], layout_of(tensor=3))
    spec = msgspec.structs.replace(MODELS["dense"], encoder_layers=2)
    with pytest.raises(BadInput, match="encoder"):
        trace(spec, layout_of(data=2))


PROGRAM = """
import json, resource, sys, time
import msgspec
from narrows.model.presets import preset
from narrows.parallel.trace import trace
from narrows.spec.layout import Layout
name, given = sys.argv[1], json.loads(sys.argv[2])
spec = msgspec.structs.replace(preset(name).spec, context=8192)
found = trace(spec, msgspec.convert(given, Layout))
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([found.products, time.process_time(), most]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("llama-3.1-8b", {"data": 128, "tensor": 8, "sharding": "parameters"}),
        ("llama-3.1-70b", {"data": 128, "tensor": 8, "sharding": "parameters"}),
        ("llama-3.1-8b", {"data": 32, "tensor": 8, "pipeline": 4, "sharding": "parameters"}),
    ],
)
def test_models_of_billions_on_1024_ranks_take_seconds(name: str, given: dict[str, Any]) -> None:
    """Seconds of the processor: 40 for 8B, and as much more as there are layers."""
    usual = msgspec.to_builtins(layout_of())
    layout = {**usual, "micro_batch": 1, "accumulation": 4, "precision": "bf16",
              "loss_chunk": 8192, **given}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, json.dumps(layout)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    products, seconds, most = json.loads(done.stdout)
    spec = msgspec.structs.replace(preset(name).spec, context=8192)
    tokens = 4 * 8192
    if "pipeline" not in given:
        assert products == pytest.approx(6 * tokens * spec.product_parameters_active / 8, rel=1e-9)
    assert seconds < 40.0 * spec.layers / 32
    assert most < 1e9
