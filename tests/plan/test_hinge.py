"""The plan's parameters, FLOP and saved bytes equal what torch counts on the real module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from narrows.hardware.find import compiler_path
from narrows.kernels.load import available, load
from narrows.model.transformer import Transformer
from narrows.plan.layouts import Layouts, Setting, Shapes
from narrows.plan.memory import saved_bytes
from narrows.plan.operations import step_operations
from narrows.plan.passes import Pass, pass_operations
from narrows.spec.layout import Layout
from narrows.spec.machine import KernelSet
from narrows.spec.model import ModelSpec, Rotary, gpt2, llama

SEQUENCES, CHUNK = 2, 24
GPT2 = gpt2(layers=2, width=64, heads=4, vocabulary=300, context=32)
SMOL = llama(layers=3, width=96, heads=6, kv_heads=2, vocabulary=200, context=48)
MODELS = {
    "gpt2": GPT2,
    "gpt2 wide": gpt2(layers=1, width=128, heads=2, vocabulary=500, context=16),
    "gpt2 with dropout": msgspec.structs.replace(GPT2, dropout=0.1),
    "llama grouped": SMOL,
    "llama one key": llama(layers=2, width=64, heads=4, kv_heads=1, vocabulary=100, context=32),
    "llama untied": msgspec.structs.replace(SMOL, tied_embeddings=False),
    "llama with biases": msgspec.structs.replace(SMOL, biases=True),
    "gpt2 both ways": msgspec.structs.replace(GPT2, causal=False),
    "gpt2 with a transform": msgspec.structs.replace(GPT2, causal=False, head_transform=True),
    "gpt2 turned": msgspec.structs.replace(GPT2, positions=Rotary()),
}
named = pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def layouts(recompute: Any = "none", kernels: KernelSet = "torch") -> Layouts:
    return Layouts.of(
        Layout(
            micro_batch=SEQUENCES, accumulation=1, precision="bf16", recompute=recompute,
            compile=False, kernels=kernels, threads=1, loss_chunk=CHUNK,
        )
    )  # fmt: skip


def planned_flop(spec: ModelSpec, kind: str, phase: str | None = None) -> float:
    operations = step_operations(Shapes.of([spec]), layouts())
    chosen = [o for o in operations if o.kind == kind and phase in (None, o.phase)]
    return sum(float((o.count * o.flop)[0, 0]) for o in chosen)


def counted_flop(spec: ModelSpec) -> dict[str, int]:
    """By torch's own counter on meta tensors, which compute nothing."""

    def in_place(total: Any, left: Any, right: Any, **_: Any) -> int:
        return int(2 * left[0] * left[1] * right[1])

    with torch.device("meta"):
        model = Transformer(spec, load("torch")).to(torch.bfloat16)
        tokens_BT = torch.zeros(SEQUENCES, spec.context, dtype=torch.int64)
    mapping = {torch.ops.aten.addmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model.loss(tokens_BT, tokens_BT, chunk=CHUNK, scale=1.0).backward()
    counts = counter.get_flop_counts()["Global"]
    sums = {"gemm": 0, "attention": 0}
    for operation, flop in counts.items():
        sums["attention" if "bmm" in str(operation) else "gemm"] += flop
    return sums


@named
def test_parameters_equal_the_modules(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    assert sum(p.numel() for p in model.parameters()) == spec.parameters


@named
def test_products_equal_what_torch_counts(spec: ModelSpec) -> None:
    assert planned_flop(spec, "gemm") == pytest.approx(counted_flop(spec)["gemm"], rel=1e-12)


@named
def test_attention_is_the_seen_part_of_what_torch_counts(spec: ModelSpec) -> None:
    """On meta tensors torch writes all scores, masked or not: two products forward, four back.
    Flash attention makes five of the latter and leaves out the masked half.
    """
    counted = counted_flop(spec)["attention"] / (2 if spec.causal else 1)
    assert planned_flop(spec, "attention", "forward") == counted * (2 / 6)
    assert planned_flop(spec, "attention", "backward") == counted * (5 / 6)


PASSES = {
    "prompt": Pass(sequences=SEQUENCES, queries=11),
    "token": Pass(sequences=SEQUENCES, queries=1, past=9),
}


WRITING = {name: spec for name, spec in MODELS.items() if spec.writes}


@pytest.mark.parametrize("each", PASSES.values(), ids=PASSES.keys())
@pytest.mark.parametrize("spec", WRITING.values(), ids=WRITING.keys())
def test_passes_of_an_answer_equal_what_torch_counts(spec: ModelSpec, each: Pass) -> None:
    """Products exactly; of a prompt's attention, the causal half of what torch counts."""
    with torch.device("meta"):
        model = Transformer(spec, load("torch")).eval()
        tokens_BT = torch.zeros(SEQUENCES, each.queries, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            caches = model.caches(SEQUENCES, spec.context)
            hidden_BTD = model.hidden(tokens_BT, caches, int(each.past))
            torch.nn.functional.linear(hidden_BTD[:, -1], model.head_VD)
    counted = {"gemm": 0, "attention": 0}
    for operation, flop in counter.get_flop_counts()["Global"].items():
        counted["gemm" if "mm" in str(operation) and "bmm" not in str(operation) else
                "attention"] += flop  # fmt: skip
    setting = Setting(precision="fp32", kernels="torch", compile=False)
    planned = {"gemm": 0.0, "attention": 0.0}
    for one in pass_operations(Shapes.of([spec]), each, setting):
        if one.kind in planned:
            planned[one.kind] += float((one.count * one.flop)[0, 0])
    assert planned["gemm"] == counted["gemm"]
    assert planned["attention"] == counted["attention"] / (1 if each.queries == 1 else 2)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kernels", ["torch", "native"])
@named
def test_saved_bytes_equal_what_autograd_keeps(
    spec: ModelSpec, kernels: KernelSet, precision: Any
) -> None:
    if kernels not in available() or (kernels, precision) == ("native", "fp32"):
        pytest.skip(f"no {kernels} kernels in {precision} here")
    setting = Setting(precision=precision, kernels=kernels, compile=False)
    # What one block more keeps is what a block keeps.
    kept = [
        kept_bytes(msgspec.structs.replace(spec, layers=layers), kernels, DTYPES[precision])
        for layers in (1, 2)
    ]
    tokens = SEQUENCES * spec.context
    assert kept[1] - kept[0] == tokens * float(saved_bytes(Shapes.of([spec]), setting)[0, 0])


@pytest.mark.slow
@pytest.mark.skipif(compiler_path() is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_saved_bytes_of_a_compiled_block_equal_what_is_alive(precision: Any) -> None:
    spec = llama(layers=1, width=128, heads=4, vocabulary=96, context=64)
    setting = Setting(precision=precision, kernels="torch", compile=True)
    alive = [
        alive_bytes(msgspec.structs.replace(spec, layers=layers), DTYPES[precision])
        for layers in (2, 3)
    ]
    tokens = SEQUENCES * spec.context
    assert alive[1] - alive[0] == tokens * float(saved_bytes(Shapes.of([spec]), setting)[0, 0])


def alive_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What compiled blocks leave behind of a forward pass, by the allocator."""
    model = Transformer(spec, load("torch"), wrap=lambda block: torch.compile(block, dynamic=False))
    model = model.to(dtype)
    tokens_BT = torch.zeros(SEQUENCES, spec.context, dtype=torch.int64)
    model.hidden(tokens_BT).sum().backward()  # compiles
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        hidden_BTD = model.hidden(tokens_BT)
    assert hidden_BTD.requires_grad
    events = profiled.profiler.kineto_results.events()
    return sum(each.nbytes() for each in events if each.name() == "[memory]")


def kept_bytes(spec: ModelSpec, kernels: KernelSet, dtype: torch.dtype) -> int:
    model = Transformer(spec, load(kernels)).to(dtype)
    tokens_BT = torch.zeros(SEQUENCES, spec.context, dtype=torch.int64)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with keeping() as storages:
        model.loss(tokens_BT, tokens_BT, chunk=CHUNK, scale=1.0)
    return sum(size for place, size in storages.items() if place not in own)


@contextmanager
def keeping() -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves, by its address; all stay alive meanwhile."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
