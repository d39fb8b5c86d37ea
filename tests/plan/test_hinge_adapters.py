"""What a plan says of adapters and frozen parts equals what the real module has and does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from narrows.adapt.apply import apply
from narrows.kernels.load import available, load
from narrows.model.transformer import Transformer
from narrows.plan.layouts import Setting, Shapes
from narrows.plan.memory import saved_bytes
from narrows.plan.operations import step_operations
from narrows.plan.trained import Trained
from narrows.spec.adapter import Biases, Learning, LowRank
from narrows.spec.errors import BadInput
from narrows.spec.machine import KernelSet
from narrows.spec.model import GeGLU, ModelSpec, Window

from .test_hinge import CHUNK, DTYPES, MODELS, SEQUENCES, keeping, layouts

LEARNING = {
    "lora": Learning(adapter=LowRank(rank=4)),
    "dora": Learning(adapter=LowRank(rank=4, rule="dora")),
    "some": Learning(adapter=LowRank(rank=6, targets=("query", "value", "down"))),
    "some dora": Learning(adapter=LowRank(rank=4, rule="dora", targets=("key", "up"))),
    "int8": Learning(adapter=LowRank(rank=4, base="int8")),
    "nf4": Learning(adapter=LowRank(rank=4, base="nf4", targets=("out",))),
    "dropped": Learning(adapter=LowRank(rank=4, dropout=0.1)),
    "late": Learning(adapter=LowRank(rank=4), frozen=("layers.0",)),
    "biases": Learning(adapter=Biases()),
    "late biases": Learning(adapter=Biases(), frozen=("layers.0",)),
    "frozen embeddings": Learning(frozen=("embeddings",)),
    "frozen below": Learning(frozen=("embeddings", "layers.0")),
    "frozen above": Learning(frozen=("layers.1", "norms")),
}
every = pytest.mark.parametrize("learning", LEARNING.values(), ids=LEARNING.keys())
named = pytest.mark.parametrize("name", MODELS)
OTHERS: dict[str, ModelSpec] = {
    "gemma": msgspec.structs.replace(
        MODELS["llama grouped"], block_norms="both", query_norm="head", feed_forward=GeGLU(),
        window=Window(size=8), qkv_biases=True, tied_embeddings=False, sinks=True,
    ),
    "classes": msgspec.structs.replace(MODELS["llama untied"], classes=3),
    "bert": msgspec.structs.replace(
        MODELS["gpt2"], causal=False, token_types=2, embedding_norm=True, pooler=True,
        head_bias=True, block_norms="stream", final_norm=False,
    ),
}  # fmt: skip


def meta(spec: ModelSpec, learning: Learning, kernels: KernelSet = "torch") -> Transformer:
    with torch.device("meta"):
        model = Transformer(spec, load(kernels)).to(torch.bfloat16)
    apply(model, learning)
    return model


def possible(spec: ModelSpec, learning: Learning) -> None:
    try:
        learning.check(spec)
    except BadInput as error:
        pytest.skip(error.what)


@every
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_parameters_and_what_of_them_learns_are_the_module_s(name: str, learning: Learning) -> None:
    spec = (MODELS | OTHERS)[name]
    possible(spec, learning)
    expected = {n: (p.numel(), p.requires_grad) for n, p in meta(spec, learning).named_parameters()}
    trained = Trained(spec, learning)
    assert {p.name: (p.size, p.learns) for p in trained.parameters} == expected
    total = sum(p.nbytes for p in meta(spec, learning).parameters())
    assert trained.weight_bytes(2) == total


@every
@named
def test_products_are_those_that_torch_counts(name: str, learning: Learning) -> None:
    spec = MODELS[name]
    possible(spec, learning)

    def in_place(total: Any, left: Any, right: Any, **_: Any) -> int:
        return int(2 * left[0] * left[1] * right[1])

    model = meta(spec, learning)
    tokens_BT = torch.zeros(SEQUENCES, spec.context, dtype=torch.int64, device="meta")
    mapping = {torch.ops.aten.addmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model.loss(tokens_BT, tokens_BT, chunk=CHUNK, scale=1.0).backward()
    counted = {"gemm": 0, "forward": 0, "attention": 0}
    for operation, flop in counter.get_flop_counts()["Global"].items():
        counted["attention" if "bmm" in str(operation) else "gemm"] += flop
    shapes = Shapes.of([spec], learning=learning)
    planned = {"gemm": 0.0, "attention": 0.0}
    for one in step_operations(shapes, layouts()):
        if one.kind in planned:
            # On meta tensors torch writes all scores, and computes their gradient in four.
            written = 2.0 if spec.causal else 1.0
            share = {"forward": written, "backward": 4 / 5 * written}.get(one.phase, 1.0)
            share = share if one.kind == "attention" else 1.0
            planned[one.kind] += share * float((one.count * one.flop)[0, 0])
    assert planned["gemm"] == pytest.approx(counted["gemm"], rel=1e-12)
    assert planned["attention"] == pytest.approx(counted["attention"], rel=1e-12)


@every
@pytest.mark.parametrize("kernels", ["torch", "native"])
@named
def test_what_a_block_keeps_is_what_autograd_does(
    name: str, kernels: KernelSet, learning: Learning
) -> None:
    spec = msgspec.structs.replace(MODELS[name], layers=2)
    possible(spec, learning)
    if kernels not in available():
        pytest.skip(f"no {kernels} kernels here")
    setting = Setting(precision="bf16", kernels=kernels, compile=False)
    grown = []
    for layers in (2, 3):
        longer = msgspec.structs.replace(spec, layers=layers)
        # What is as large whatever the batch is, such as lengths, is no activation.
        once, twice = (_kept_bytes(longer, learning, kernels, times) for times in (1, 2))
        grown.append(twice - once)
    shapes = Shapes.of([msgspec.structs.replace(spec, layers=3)], learning=learning)
    last = shapes.trained.layers[-1]
    tokens = SEQUENCES * spec.context
    assert grown[1] - grown[0] == tokens * float(saved_bytes(shapes, setting, last)[0, 0])


def _kept_bytes(spec: ModelSpec, learning: Learning, kernels: KernelSet, times: int) -> int:
    model = Transformer(spec, load(kernels)).to(DTYPES["bf16"])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.02)
    apply(model, learning)
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    tokens_BT = torch.zeros(times * SEQUENCES, spec.context, dtype=torch.int64)
    with keeping() as storages:
        model.loss(tokens_BT, tokens_BT, chunk=CHUNK, scale=1.0)
    return sum(size for place, size in storages.items() if place not in own)
