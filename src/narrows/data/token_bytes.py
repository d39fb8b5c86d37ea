"""What bytes each token of a tokenizer stands for, half characters included.

token_bytes(tokenizer) → a list by token;   bytes_of(tokenizer)(token) → those of one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from narrows.data.tokenizers import Tokenizer
from narrows.spec.errors import BadInput

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PLAIN = ("Fuse", "Strip")
"""Decoders that change nothing of a token within a text."""

Step = Callable[[str | bytes], str | bytes]


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Of every token; empty where a number has none. What a decoder does at a text's ends only,
    such as taking its first space, is left out: these are tokens within a text.

    Raises BadInput where the decoder joins tokens by a rule of its own.
    """
    return [*map(bytes_of(tokenizer), range(tokenizer.vocabulary))]


def bytes_of(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """What tells the same of one token at a time."""
    steps = list(_steps(tokenizer.decoder()))
    added = tokenizer.added()

    def told(token: int) -> bytes:
        if token in added:
            return added[token].encode()
        text = tokenizer.text_of(token)
        found: str | bytes = "" if text is None else text
        for step in steps:
            found = step(found)
        return found if isinstance(found, bytes) else found.encode()

    return told


def _steps(decoder: Mapping[str, Any] | None) -> Iterable[Step]:
    """What the decoder does to each token, in its order."""
    kind = None if decoder is None else decoder["type"]
    if decoder is None or kind in _PLAIN:
        return
    if kind == "Sequence":
        for each in decoder["decoders"]:
            yield from _steps(each)
    elif kind == "ByteLevel":
        yield _of_byte_level()
    elif kind == "ByteFallback":
        yield _of_byte
    elif kind == "Metaspace":
        yield _replaced(decoder.get("replacement", "▁"), " ")
    elif kind == "Replace" and "String" in decoder["pattern"]:
        yield _replaced(decoder["pattern"]["String"], decoder["content"])
    else:
        what = f"the tokenizer joins tokens by {kind}: what bytes each stands for is not known"
        raise BadInput(what, hint="take a model with a byte-level or SentencePiece tokenizer")


def _replaced(old: str, new: str) -> Step:
    return lambda found: found if isinstance(found, bytes) else found.replace(old, new)


def _of_byte(found: str | bytes) -> str | bytes:
    match = None if isinstance(found, bytes) else _BYTE.fullmatch(found)
    return bytes([int(match[1], 16)]) if match else found


def _of_byte_level() -> Step:
    """GPT-2 writes printable bytes as themselves, and the others as characters from 256 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in shown]
    bytes_of = {chr(byte): byte for byte in shown}
    bytes_of |= {chr(256 + place): byte for place, byte in enumerate(others)}

    def step(found: str | bytes) -> str | bytes:
        if isinstance(found, bytes) or not all(each in bytes_of for each in found):
            return found
        return bytes(bytes_of[each] for each in found)

    return step
