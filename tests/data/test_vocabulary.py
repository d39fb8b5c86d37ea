from __future__ import annotations

from typing import Any

import pytest

from narrows.data.vocabulary import of_gguf
from narrows.spec.errors import BadInput

KEY = "tokenizer.ggml."


def facts(**told: Any) -> dict[str, Any]:
    return {KEY + name: value for name, value in told.items()}


def byte_level(**told: Any) -> dict[str, Any]:
    """Letters, a merge, and a token that ends texts."""
    tokens = ["<|end|>", "a", "b", "c", "ab", "Ġ", "Ġa", "1", "2"]
    kinds = [3] + [1] * (len(tokens) - 1)
    merges = ["a b", "Ġ a"]
    return facts(
        **{"model": "gpt2", "pre": "default", "tokens": tokens, "token_type": kinds,
           "merges": merges, **told}
    )  # fmt: skip


def sentence_piece(**told: Any) -> dict[str, Any]:
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "▁", "h", "i", "hi", "▁hi"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 5]
    scores = [0.0, 0.0, 0.0, *[0.0] * 256, -9.0, -8.0, -8.0, -2.0, -1.0]
    return facts(
        **{"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores,
           "bos_token_id": 1, "eos_token_id": 2, **told}
    )  # fmt: skip


def test_byte_level_tokens_are_merged() -> None:
    tokenizer = of_gguf(byte_level(), "x")
    assert tokenizer.encode("abc ab").tokens == ["ab", "c", "Ġ", "ab"]
    assert tokenizer.encode("a<|end|>").ids == [1, 0]
    assert tokenizer.decode([4, 3, 6, 2]) == "abc ab"


def test_words_are_cut_by_the_rule_that_is_named() -> None:
    together = of_gguf(byte_level(merges=["1 2"], tokens=[*"<abcdeĠ12", "12"],
                                  token_type=[1] * 10), "x")  # fmt: skip
    assert together.encode("12").tokens == ["12"]
    apart = of_gguf(byte_level(merges=["1 2"], tokens=[*"<abcdeĠ12", "12"], token_type=[1] * 10,
                               pre="smollm"), "x")  # fmt: skip
    assert apart.encode("12").tokens == ["1", "2"]
    with pytest.raises(BadInput, match="'alien'") as caught:
        of_gguf(byte_level(pre="alien"), "x")
    assert "known: " in str(caught.value.hint)


def test_sentence_piece_merges_follow_from_scores() -> None:
    tokenizer = of_gguf(sentence_piece(), "x")
    found = tokenizer.encode("hi")
    assert found.tokens == ["<s>", "▁hi"]
    assert tokenizer.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hi é").ids) == "hi é"
    bare = of_gguf(sentence_piece(add_space_prefix=False, add_bos_token=False), "x")
    assert bare.encode("hi").tokens == ["hi"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (facts(model="rwkv", tokens=["a"]), "'rwkv'"),
        (byte_level(token_type=[1]), "9 tokens and 1 kinds"),
        (byte_level(merges=["ab"]), "names no pair"),
        (byte_level(tokens=[]), "0 tokens"),
        (byte_level(tokens=3), "no list"),
        (sentence_piece(scores=[1.0]), "1 scores"),
        (sentence_piece(add_bos_token="yes"), "add_bos_token"),
    ],
)
def test_a_header_that_cannot_be_is_refused(told: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        of_gguf(told, "model.gguf")
    assert caught.value.hint
