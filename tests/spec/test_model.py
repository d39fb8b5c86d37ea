from __future__ import annotations

import pytest

from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec, gpt2, llama


def smollm2_135m(context: int = 2048) -> ModelSpec:
    return llama(
        layers=30, width=576, heads=9, kv_heads=3, feed_forward_width=1536,
        vocabulary=49152, context=context, tied_embeddings=True,
    )  # fmt: skip


def test_counts_the_parameters_of_gpt2() -> None:
    spec = gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)
    assert spec.parameters == 124_439_808


def test_counts_the_parameters_of_gpt2_xl() -> None:
    spec = gpt2(layers=48, width=1600, heads=25, vocabulary=50257, context=1024)
    assert spec.parameters == 1_557_611_200


def test_counts_the_parameters_of_smollm2() -> None:
    assert smollm2_135m().parameters == 134_515_008


def test_counts_the_parameters_of_llama_3_8b() -> None:
    spec = llama(
        layers=32, width=4096, heads=32, kv_heads=8, feed_forward_width=14336,
        vocabulary=128256, context=8192, tied_embeddings=False,
    )  # fmt: skip
    assert spec.parameters == 8_030_261_248


def test_context_costs_parameters_with_learned_positions_alone() -> None:
    assert smollm2_135m(1024).parameters == smollm2_135m(4096).parameters
    short, long = (
        gpt2(layers=2, width=64, heads=2, vocabulary=256, context=context) for context in (64, 128)
    )
    assert long.parameters - short.parameters == 64 * 64


def test_flop_are_six_per_weight_in_a_product_plus_causal_attention() -> None:
    spec = gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)
    weights = 12 * 12 * 768 * 768 + 50257 * 768
    assert spec.flop_per_token == 6 * weights + 6 * 12 * 768 * 1024


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"layers": 0}, "model.layers is 0"),
        ({"layers": 1_000_000_000}, "model.layers is 1000000000"),
        ({"kv_heads": 2}, "9 heads cannot share 2 kv_heads evenly"),
        ({"head_width": 63}, "head_width is 63"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_refuses_impossible_shapes(change: dict[str, float], what: str) -> None:
    import msgspec

    with pytest.raises(BadInput, match=what) as caught:
        msgspec.structs.replace(smollm2_135m(), **change)
    assert caught.value.hint
