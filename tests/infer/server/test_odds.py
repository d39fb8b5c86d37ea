"""Log-probabilities of tokens that are a part of a character."""

from __future__ import annotations

from typing import Any

import tokenizers as library
from tokenizers import decoders, models

from narrows.data.tokenizers import Tokenizer
from narrows.infer.requests import Chosen, Likely, Piece
from narrows.infer.server.forms import ChatForm, TextForm
from narrows.infer.server.reading import Manner
from tests.infer.server.asking import CHAT, TEXT, Make, chunks, post, talk

SAID = "a🦄é漢b"
HELD = {"regex": SAID, "seed": 3, "max_tokens": 20}


def test_bytes_of_a_conversations_tokens_are_those_of_its_text(make: Make) -> None:
    asked = talk(logprobs=True, top_logprobs=3, **HELD)
    [choice] = post(make(), CHAT, asked).json()["choices"]
    odds = choice["logprobs"]["content"]
    assert bytes(byte for each in odds for byte in each["bytes"]).decode() == SAID
    assert any("\ufffd" in each["token"] for each in odds)
    assert all(one["bytes"] for each in odds for one in each["top_logprobs"])


def test_offsets_of_a_text_are_where_its_characters_begin(make: Make) -> None:
    service, asked = make(), {"prompt": "But", "logprobs": 2, **HELD}
    [choice] = post(service, TEXT, asked).json()["choices"]
    odds = choice["logprobs"]
    assert choice["text"] == SAID and odds["tokens"][1].startswith(r"bytes:\xf0")
    assert sorted(set(odds["text_offset"])) == [0, 1, 2, 3, 4]
    for token, offset in zip(odds["tokens"], odds["text_offset"], strict=True):
        assert token.startswith("bytes:") or SAID[offset:].startswith(token)
    parts = [part["choices"][0]["logprobs"]
             for part in chunks(post(service, TEXT, {**asked, "stream": True}))]  # fmt: skip
    for name, values in odds.items():
        assert [value for part in parts for value in part[name]] == values


def test_the_token_that_was_drawn_is_among_the_likeliest(make: Make) -> None:
    service, found = make(), list[Any]()
    for count in (0, 2):
        asked = {"prompt": "But", "logprobs": count, "temperature": 2.0, **HELD}
        [choice] = post(service, TEXT, asked).json()["choices"]
        odds = choice["logprobs"]
        for token, own, among in zip(
            odds["tokens"], odds["token_logprobs"], odds["top_logprobs"], strict=True
        ):
            assert among[token] == own and len(among) in {max(1, count), count + 1}
        found.append(odds["top_logprobs"])
    assert all(first.items() <= second.items() for first, second in zip(*found, strict=True))


def test_halves_of_a_character_have_names_of_their_own(bpe: Tokenizer) -> None:
    halves = [bpe.number_of(each) for each in "ðŁ"]  # F0 and 9F, as GPT-2 writes them
    assert None not in halves
    first, second = (Likely(token, -1.0 - place) for place, token in enumerate(halves) if token)
    piece = Piece(0, "", 1, (Chosen(first, (second,)),), "length")
    part = TextForm("small", bpe, odds=True).part(0, piece)["choices"][0]["logprobs"]
    assert part["top_logprobs"] == [{r"bytes:\x9f": -2.0, r"bytes:\xf0": -1.0}]


def test_what_is_never_completed_has_a_place_too(bpe: Tokenizer) -> None:
    tokens = [bpe.number_of(each) for each in "ðaðŁ"]
    chosen = [Chosen(Likely(token, -1.0), ()) for token in tokens if token is not None]
    form = TextForm("small", bpe, odds=True)
    parts = [form.part(0, Piece(0, "", 1, tuple(some)))["choices"][0]["logprobs"]
             for some in (chosen[:2], chosen[2:])]  # fmt: skip
    assert [part["text_offset"] for part in parts] == [[0, 1], [2, 2]]


def test_a_tokenizer_with_a_rule_of_its_own_has_bytes_too() -> None:
    made = library.Tokenizer(models.WordLevel({"é": 0, "<eos>": 1}, unk_token="é"))
    made.decoder = decoders.WordPiece()
    form = ChatForm("small", Tokenizer(made), Manner(odds=True))
    piece = Piece(0, "é", 1, (Chosen(Likely(0, -1.0), ()),))
    [odds] = form.part(0, piece)["choices"][0]["logprobs"]["content"]
    assert (odds["token"], odds["bytes"]) == ("é", list("é".encode()))
