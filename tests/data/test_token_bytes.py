from __future__ import annotations

import pytest
import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from narrows.data import training
from narrows.data.token_bytes import token_bytes
from narrows.data.tokenizers import Tokenizer
from narrows.spec.errors import BadInput

TEXT = "Ça va être l'été à Zürich: 5 €, 你好 🎭\n\tx  y"


def sentence_piece() -> library.Tokenizer:
    """As SentencePiece's with byte fallback: 🎭 and é have no tokens of their own."""
    known = {"<eos>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    known |= {each: 257 + place for place, each in enumerate(sorted(set("▁" + TEXT) - {"é", "🎭"}))}
    made = library.Tokenizer(models.BPE(known, [], byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<eos>"])
    return made


@pytest.mark.parametrize("kind", ["bpe", "unigram", "character", "sentence_piece"])
def test_the_bytes_of_a_texts_tokens_are_the_texts(kind: str) -> None:
    made = {
        "bpe": lambda: training.bpe([TEXT], 300),
        "unigram": lambda: training.unigram([TEXT], 300),
        "character": lambda: training.character(dict.fromkeys(TEXT, 1), 99),
        "sentence_piece": sentence_piece,
    }[kind]()
    tokenizer = Tokenizer(made)
    known = token_bytes(tokenizer)
    assert len(known) == tokenizer.vocabulary
    text = b"".join(known[token] for token in tokenizer.encode(TEXT)).decode()
    assert text == (" " if kind == "sentence_piece" else "") + TEXT


def test_an_added_token_is_its_text() -> None:
    made = training.bpe([TEXT], 300)
    made.add_special_tokens(["<|Ġim|>"])
    tokenizer = Tokenizer(made)
    number = tokenizer.number_of("<|Ġim|>")
    assert number is not None and number in tokenizer.special()
    assert token_bytes(tokenizer)[number] == "<|Ġim|>".encode()


def test_a_decoder_with_a_rule_of_its_own_is_refused() -> None:
    made = library.Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(BadInput, match="WordPiece"):
        token_bytes(Tokenizer(made))
