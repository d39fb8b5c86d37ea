from __future__ import annotations

import pytest

from narrows.plan.layouts import Setting, Shapes
from narrows.plan.passes import Pass, pass_operations
from narrows.spec.model import ModelSpec, gpt2, llama

SETTING = Setting(precision="bf16", kernels="torch", compile=False)
SMOL = llama(layers=3, width=96, heads=6, kv_heads=2, vocabulary=200, context=48)


def total(each: Pass, name: str, what: str = "memory_bytes") -> float:
    return sum(
        float((one.count * getattr(one, what)).reshape(-1)[0])
        for one in pass_operations(Shapes.of([SMOL]), each, SETTING)
        if one.name == name
    )


def test_a_token_reads_the_cache_of_all_before_it() -> None:
    near = total(Pass(sequences=2, queries=1, past=9), "attention")
    far = total(Pass(sequences=2, queries=1, past=19), "attention")
    of_a_key = 2 * SMOL.kv_heads * SMOL.head_width * SETTING.value_bytes
    assert far - near == SMOL.layers * 2 * 10 * of_a_key


def test_the_head_reads_the_last_position_alone() -> None:
    short = total(Pass(sequences=2, queries=4), "head", "flop")
    assert short == 2 * 2 * SMOL.vocabulary * SMOL.width
    assert total(Pass(sequences=2, queries=40), "head", "flop") == short


def test_each_sequence_draws_its_own_token() -> None:
    drawn = [
        one for one in pass_operations(Shapes.of([SMOL]), Pass(sequences=5, queries=1), SETTING)
        if one.name == "draw"
    ]  # fmt: skip
    assert [float(one.count.reshape(-1)[0]) for one in drawn] == [5.0]


GPT2 = gpt2(layers=2, width=64, heads=4, vocabulary=300, context=32)


@pytest.mark.parametrize(
    ("spec", "own"), [(SMOL, {"rotary", "swiglu"}), (GPT2, {"positions", "gelu"})]
)
def test_operations_are_those_of_the_kind(spec: ModelSpec, own: set[str]) -> None:
    found = pass_operations(Shapes.of([spec]), Pass(sequences=1, queries=3), SETTING)
    alike = {"embedding", "norm", "qkv", "attention", "out", "up", "down", "head", "draw", "host"}
    assert {one.name for one in found} == alike | own
