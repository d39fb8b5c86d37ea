"""The words of a model as the header of a GGUF file has them: tables of tokens, kinds and merges.

The inverse of `vocabulary`. What a file says of a tokenizer is a kind and a rule's name; which one
it is shows when the tokenizer that it makes is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from narrows.data.published import Words, of_facts
from narrows.data.samples import PASSAGE, TEXTS
from narrows.data.tokenizers import Tokenizer
from narrows.spec.errors import BadInput

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _GIVEN, _UNUSED, _BYTE = range(1, 7)
_RULES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
"""How words are cut before byte-level BPE; names as in llama.cpp."""
_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
Facts = dict[str, Any]


def facts(words: Words, vocabulary: int) -> Facts:
    """What the header of a GGUF file of so many rows says of them; raises BadInput where the format
    has no such tokenizer.
    """
    told = {**_tokens(words, vocabulary), **_special(words)}
    for kind in _kinds(words.tokenizer, vocabulary):
        given = {**told, **kind}
        try:
            made = of_facts(given, "the file").tokenizer
        except BadInput:
            continue
        if all(_read(made, text) == _read(words.tokenizer, text) for text in (*TEXTS, PASSAGE)):
            return given
    raise BadInput(
        "GGUF files have no form for this tokenizer that gives the same tokens",
        causes=["they know byte-level BPE, cut as GPT-2, SmolLM, Llama 3 or Qwen do, and "
                "SentencePiece's BPE"],
        hint="export a Hugging Face folder: narrows export MODEL --to FOLDER",
    )  # fmt: skip


def _tokens(words: Words, vocabulary: int) -> Facts:
    """A text and a kind for each row, also of those that no token has."""
    held = json.loads(words.tokenizer.to_json())
    model, added = held["model"], {each["content"]: each for each in held["added_tokens"]}
    ids = dict(model["vocab"]) if isinstance(model["vocab"], dict) else {}
    texts = [f"[PAD{number}]" for number in range(vocabulary)]
    kinds = [_UNUSED] * vocabulary
    ids |= {text: each["id"] for text, each in added.items()}
    for text, number in ids.items():
        texts[number] = text
        byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x")
        kinds[number] = _BYTE if byte else _NORMAL
        if text in added:
            kinds[number] = _CONTROL if added[text]["special"] else _GIVEN
        if text == model.get("unk_token") and model.get("byte_fallback"):
            kinds[number] = _UNKNOWN
    return {f"{_KEY}tokens": texts, f"{_KEY}token_type": kinds}


def _special(words: Words) -> Facts:
    tokenizer = words.tokenizer
    found = {
        key: tokenizer.number_of(words.special.get(f"{name}_token")) for name, key in _NAMES.items()
    }
    found["eos"] = tokenizer.end_of_document
    if others := sorted(tokenizer.ends - {tokenizer.end_of_document}):
        found["eot"] = others[0]
    if tokenizer.begin:
        found["bos"] = tokenizer.begin[0]
    told: Facts = {f"{_KEY}{key}_token_id": n for key, n in found.items() if n is not None}
    told[f"{_KEY}add_bos_token"] = bool(tokenizer.begin)
    if words.template is not None:
        told["tokenizer.chat_template"] = words.template.source
    return told


def _kinds(tokenizer: Tokenizer, vocabulary: int) -> Iterator[Facts]:
    """What it may be; the likelier first."""
    model = json.loads(tokenizer.to_json())["model"]
    if model["type"] != "BPE" or len(tokenizer.begin) > 1 or tokenizer.close:
        return
    merges = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
    if model.get("byte_fallback"):
        scores = _scores(model["vocab"], merges, vocabulary)
        for prefixed in (False, True):
            yield {f"{_KEY}model": "llama", f"{_KEY}pre": "default", f"{_KEY}scores": scores,
                   f"{_KEY}add_space_prefix": prefixed}  # fmt: skip
        return
    lines = [f"{left} {right}" for left, right in merges]
    for rule in _RULES:
        yield {f"{_KEY}model": "gpt2", f"{_KEY}pre": rule, f"{_KEY}merges": lines,
               f"{_KEY}add_space_prefix": False}  # fmt: skip


def _scores(ids: Mapping[str, int], merges: list[list[str]], vocabulary: int) -> list[float]:
    """SentencePiece joins the pair of the best score first: earlier merges score higher."""
    scores = [-1e6] * vocabulary
    for rank, (left, right) in enumerate(merges):
        number = ids[left + right]
        scores[number] = max(scores[number], -float(rank))
    return scores


def _read(tokenizer: Tokenizer, text: str) -> tuple[list[str], list[int]]:
    """The words that a text is cut into, which tell more than what few tokens make of them."""
    return tokenizer.words(text), [*tokenizer.begin, *tokenizer.encode(text)]
