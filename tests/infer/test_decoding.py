from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.infer.decoding import Decoding
from narrows.infer.torch_decoding import decoding_of
from narrows.model.transformer import Transformer
from narrows.spec.model import ModelSpec

from .conftest import CONTEXT, VOCABULARY, built, spec

TOKENS = torch.randint(VOCABULARY, (200,), generator=torch.Generator().manual_seed(0)).tolist()


def without_cache(model: Transformer, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0, -1]


def said(decoding: Decoding, tokens: list[int]) -> Tensor:
    return torch.from_numpy(decoding.read(tokens))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("parts", [(1,) * 20, (7, *(1,) * 13), (5, 9, 1, 5), (20,)])
def test_a_cache_changes_nothing(kind: str, parts: tuple[int, ...]) -> None:
    model = built(spec(kind))
    decoding, start = decoding_of(model, 20), 0
    for count in parts:
        end = start + count
        found = said(decoding, TOKENS[start:end])
        expected = without_cache(model, TOKENS[:end])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
        assert found.argmax() == expected.argmax()
        start = end


def test_logits_have_what_the_head_adds() -> None:
    model = built(msgspec.structs.replace(spec(), head_bias=True, logit_cap=2.0, logit_scale=0.5))
    with torch.no_grad():
        model.head_bias.copy_(torch.linspace(-3.0, 3.0, VOCABULARY))
    found = said(decoding_of(model, 20), TOKENS[:9])
    torch.testing.assert_close(found, without_cache(model, TOKENS[:9]), rtol=1e-4, atol=2e-4)
    assert 1.5 < found.abs().max() < 2.0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_tokens_equal_those_without_a_cache(kind: str) -> None:
    model = built(spec(kind), seed=5)
    decoding = decoding_of(model, CONTEXT)
    cached, plain = TOKENS[:6], TOKENS[:6]
    logits_V = decoding.read(cached)
    for _ in range(CONTEXT - 6):
        cached = [*cached, int(logits_V.argmax())]
        plain = [*plain, int(without_cache(model, plain).argmax())]
        logits_V = decoding.read(cached[-1:])
    assert cached == plain and len(set(cached[6:])) > 5


def test_half_precision_stays_close_to_no_cache() -> None:
    model = built(spec(), deviation=2.0).bfloat16()
    decoding = decoding_of(model, 30)
    decoding.read(TOKENS[:10])
    for place in range(10, 30):
        found = said(decoding, [TOKENS[place]])
        expected = without_cache(model, TOKENS[: place + 1])
        # Rounding to 8 bits, over two layers, of logits of deviation near 1.
        torch.testing.assert_close(found, expected.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("context", [1, 2, 7, 16])
def test_beyond_the_context_the_last_half_is_read_again(context: int) -> None:
    model = built(spec(context=context))
    decoding = decoding_of(model, 60)
    decoding.read(TOKENS[:1])
    held = 1
    for place in range(1, 60):
        found = said(decoding, [TOKENS[place]])
        held = held + 1 if held < context else max(1, context // 2)
        expected = without_cache(model, TOKENS[place + 1 - held : place + 1])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_the_cache_is_no_larger_than_the_text() -> None:
    shape = ModelSpec(**{**_fields(spec()), "context": 10**7})
    decoding = decoding_of(built(shape), 12)
    # Keys and values of every layer: 2 heads of 16 in fp32 for 12 positions.
    assert decoding.cache_bytes == shape.layers * 2 * 2 * 12 * 16 * 4


def _fields(shape: ModelSpec) -> dict[str, object]:
    return {name: getattr(shape, name) for name in shape.__struct_fields__}
