"""Answers in OpenAI's forms: whole, or chunk by chunk."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, final

import msgspec

from narrows.data.token_bytes import bytes_of
from narrows.data.tokenizers import Tokenizer
from narrows.infer.generate import Finish
from narrows.infer.requests import Answer, Chosen, Likely, Piece
from narrows.infer.server.reading import AnswerReader, Manner
from narrows.infer.tools import Call
from narrows.spec.errors import BadInput

_FINISHES: dict[Finish | None, str | None] = {
    None: None, "length": "length", "stop": "stop", "end": "stop"
}  # fmt: skip
_MARK = "\0text\0"


class Form(ABC):
    """What a conversation's answer and a text's have in common; `first` is the number of an
    answer's first choice among those of all.
    """

    prefix: str
    whole: str
    chunk: str

    def __init__(self, model: str, tokenizer: Tokenizer, *, odds: bool) -> None:
        self.tokenizer, self.odds = tokenizer, odds
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()),
            "model": model,
        }  # fmt: skip
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def response(self, pieces: Sequence[tuple[int, Piece]], answers: list[Answer]) -> Any:
        """The whole answer of pieces, each with its answer's first choice."""
        texts: dict[int, list[Piece]] = {}
        for first, piece in pieces:
            texts.setdefault(first + piece.choice, []).append(piece)
        choices = [self._whole(index, texts[index]) for index in sorted(texts)]
        written = sum(piece.tokens for _, piece in pieces)
        return {**self._head, "object": self.whole, "choices": choices,
                "usage": usage(answers, written)}  # fmt: skip

    def opening(self, choices: int) -> list[Any]:
        """What is sent before any text."""
        return []

    def part(self, first: int, piece: Piece) -> Any:
        """One chunk of a stream."""
        index = first + piece.choice
        choice = {"index": index, "finish_reason": _FINISHES[piece.finish],
                  **self._part(index, piece)}  # fmt: skip
        return {**self._head, "object": self.chunk, "choices": [choice]}

    def encoded(self, first: int, piece: Piece) -> bytes:
        """`part` in JSON; of a chunk of text alone all but the text is encoded once."""
        if piece.finish or not self.plain:
            return msgspec.json.encode(self.part(first, piece))
        index = first + piece.choice
        if index not in self._around:
            known = msgspec.json.encode(self.part(first, piece._replace(text=_MARK)))
            before, _, after = known.partition(msgspec.json.encode(_MARK))
            self._around[index] = before, after
        before, after = self._around[index]
        return before + msgspec.json.encode(piece.text) + after

    def closing(self, answers: list[Answer], written: int) -> Any:
        """The last chunk, with the usage."""
        return {**self._head, "object": self.chunk, "choices": [], "usage": usage(answers, written)}

    def _whole(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        chosen = tuple(each for piece in pieces for each in piece.chosen)
        finish = _FINISHES[pieces[-1].finish]
        return {"index": index, "finish_reason": finish, **self._said(text, chosen, finish)}

    @property
    def plain(self) -> bool:
        """Whether a chunk before the last says nothing but its text."""
        return not self.odds

    @abstractmethod
    def _said(self, text: str, chosen: tuple[Chosen, ...], finish: str | None) -> dict[str, Any]:
        """A whole text, in a choice."""

    @abstractmethod
    def _part(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of that choice's."""

    @cached_property
    def bytes_of(self) -> Callable[[int], bytes]:
        """What a token is in UTF-8, of which it may be half a character."""
        try:
            return bytes_of(self.tokenizer)
        except BadInput:
            # It joins whole words by a rule of its own, and has no halves.
            return lambda token: self.tokenizer.decode([token]).encode()


@final
class ChatForm(Form):
    """chat.completion and its chunks."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, tokenizer: Tokenizer, manner: Manner) -> None:
        super().__init__(model, tokenizer, odds=manner.odds)
        self.manner = manner
        self._readers: dict[int, AnswerReader] = {}

    @property
    def plain(self) -> bool:
        return self.manner.plain

    def opening(self, choices: int) -> list[Any]:
        said = {"delta": {"role": "assistant", "content": ""}, "logprobs": None,
                "finish_reason": None}  # fmt: skip
        return [
            {**self._head, "object": self.chunk, "choices": [{"index": index, **said}]}
            for index in range(choices)
        ]

    def _said(self, text: str, chosen: tuple[Chosen, ...], finish: str | None) -> dict[str, Any]:
        read = AnswerReader(self.manner).push(text, last=True)
        message: dict[str, Any] = {"role": "assistant", "content": read.text, "refusal": None}
        if read.thought:
            message["reasoning_content"] = read.thought
        if read.calls:
            listed = [_call(each) for each in read.calls]
            message |= {"content": read.text or None, "tool_calls": listed}
            finish = _called(finish)
        return {"message": message, "logprobs": self._odds(chosen), "finish_reason": finish}

    def _part(self, index: int, piece: Piece) -> dict[str, Any]:
        reader = self._readers.setdefault(index, AnswerReader(self.manner))
        read = reader.push(piece.text, last=piece.finish is not None)
        finish = _FINISHES[piece.finish]
        waits = piece.finish is None and self.manner.calls is None and not read.thought
        delta: dict[str, Any] = {"content": read.text} if read.text or waits else {}
        if read.thought:
            delta["reasoning_content"] = read.thought
        if read.calls:
            delta["tool_calls"] = [{"index": read.before + number, **_call(each)}
                                   for number, each in enumerate(read.calls)]  # fmt: skip
        if read.before or read.calls:
            finish = _called(finish)
        return {"delta": delta, "logprobs": self._odds(piece.chosen), "finish_reason": finish}

    def _odds(self, chosen: tuple[Chosen, ...]) -> dict[str, Any] | None:
        if not self.odds:
            return None
        content = [
            {**self._odd(each.itself), "top_logprobs": [self._odd(one) for one in each.likeliest]}
            for each in chosen
        ]
        return {"content": content, "refusal": None}

    def _odd(self, likely: Likely) -> dict[str, Any]:
        known = self.bytes_of(likely.token)
        text = known.decode(errors="replace")
        return {"token": text, "logprob": likely.logprob, "bytes": list(known)}


@final
class TextForm(Form):
    """text_completion, whose chunks have the same form."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, tokenizer: Tokenizer, *, odds: bool) -> None:
        super().__init__(model, tokenizer, odds=odds)
        self._told: dict[int, bytearray] = {}

    def _said(self, text: str, chosen: tuple[Chosen, ...], finish: str | None) -> dict[str, Any]:
        return {"text": text, "logprobs": self._odds(chosen, bytearray())}

    def _part(self, index: int, piece: Piece) -> dict[str, Any]:
        told = self._told.setdefault(index, bytearray())
        return {"text": piece.text, "logprobs": self._odds(piece.chosen, told)}

    def _odds(self, chosen: tuple[Chosen, ...], told: bytearray) -> dict[str, Any] | None:
        """Of tokens behind those that were `told`, which they are added to."""
        if not self.odds:
            return None
        offsets = []
        for each in chosen:
            known = self.bytes_of(each.itself.token)
            # A token that goes on with a character stands where that begins.
            offsets.append(len((told + known[:1]).decode(errors="replace")) - 1)
            told += known
        likeliest = [
            {self._named(one.token): one.logprob for one in (*each.likeliest, each.itself)}
            for each in chosen
        ]
        return {
            "tokens": [self._named(each.itself.token) for each in chosen],
            "token_logprobs": [each.itself.logprob for each in chosen],
            "top_logprobs": likeliest, "text_offset": offsets,
        }  # fmt: skip

    def _named(self, token: int) -> str:
        """A token by itself; what is no whole characters as OpenAI writes it, its bytes escaped."""
        known = self.bytes_of(token)
        try:
            return known.decode()
        except UnicodeDecodeError:
            return f"bytes:{str(known)[2:-1]}"


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _called(finish: str | None) -> str | None:
    """Why an answer ended that has calls."""
    return "tool_calls" if finish == "stop" else finish


def usage(answers: list[Answer], written: int) -> dict[str, Any]:
    """How many tokens were read and written."""
    read = sum(len(answer.request.prompt) for answer in answers)
    return {
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(answer.reused for answer in answers)},
    }  # fmt: skip
