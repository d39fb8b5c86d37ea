"""Texts of a given form: which tokens may come next, so that the whole keeps to a grammar.

Grammars(tokenizer).guide(Grammar(kind="schema", text="...")) → Guide;   Guide.allowed() → mask [V]

Grammars are compiled and followed by llguidance: docs/decisions/0023-grammars.md.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

from narrows.data.token_bytes import token_bytes
from narrows.data.tokenizers import Tokenizer
from narrows.kernels.arrays import Flags
from narrows.spec.errors import BadInput
from narrows.spec.record import Record

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

JSON = {"type": "object"}
"""The schema of any JSON object."""
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: white space of any length has no end."""
_LENGTH_MOST = {"schema": 2**17, "lark": 2**16, "regex": 2**12}
"""Characters; 20,000 optional groups of a regex took 7 s and 0.8 GB."""
_DEFINED = ("$defs", "definitions")
_WITHIN = (*_DEFINED, "properties", "patternProperties")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_VALUES = ("const", "enum", "default", "examples")
"""Whose insides are no schemas."""
_EXACT = 2**53
_TRIES = 200
"""How many parts of a wrong schema are looked at by themselves."""


class Grammar(Record):
    """A JSON schema, a regular expression of the whole text, or a grammar in Lark's notation.

    A strict schema is refused where it says what cannot be held; of another that is ignored.
    """

    kind: Literal["schema", "regex", "lark"]
    text: str
    strict: bool = True


class BadGrammar(BadInput):
    """No grammar; `place` is where in a schema, as in ".properties.age"."""

    def __init__(self, what: str, *, place: str = "", hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.place = place


@final
class Guide:
    """Where one text is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def copy(self) -> Guide:
        """Another, at the same place."""
        return Guide(self._matcher.deep_copy(), self._vocabulary)

    @property
    def whole(self) -> bool:
        """Whether nothing more may come."""
        return self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """Whether the text fits as it stands."""
        return self._matcher.is_accepting()

    def allowed(self) -> Flags:
        """Which tokens may come next [V], those that end a text where it may end.

        Raises BadInput where the grammar became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._refuse_lost()
        flags_V = np.unpackbits(bits, bitorder="little")[: self._vocabulary]
        return flags_V.view(np.bool_)

    def took(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)
        self._refuse_lost()

    def _refuse_lost(self) -> None:
        if self._matcher.is_error():
            why = _first_line(self._matcher.get_error())
            raise BadInput(f"the grammar cannot be followed: {why}", hint="simplify it")


@final
class Grammars:
    """Compiles grammars for one tokenizer, whose tokens are told to llguidance once, at need."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._lock = tokenizer, Lock()
        self._told: LLTokenizer | None = None

    def guide(self, grammar: Grammar) -> Guide:
        """At the beginning of a text; raises BadGrammar where there is no such text."""
        if len(grammar.text) > _LENGTH_MOST[grammar.kind]:
            what = f"the {grammar.kind} has {len(grammar.text)} characters"
            raise BadGrammar(what, hint=f"at most {_LENGTH_MOST[grammar.kind]}")
        schema = _read(grammar.text) if grammar.kind == "schema" else None
        try:
            matcher = self._matcher(_source(grammar, schema))
        except BadGrammar as error:
            if schema is None:
                raise BadGrammar(f"the {grammar.kind} is wrong: {error.what}") from None
            raise self._placed(schema, grammar.strict, error) from None
        # A grammar without an end of its recursion, say, is told at the first token alone.
        if not any(matcher.compute_bitmask()) or matcher.is_error():
            raise BadGrammar(f"no text fits the {grammar.kind}", hint="loosen it")
        return Guide(matcher, self._tokenizer.vocabulary)

    def _matcher(self, source: str) -> LLMatcher:
        from llguidance import LLMatcher

        with self._lock:
            if self._told is None:
                self._told = _told(self._tokenizer)
        matcher = LLMatcher(self._told, source, log_level=0)
        if matcher.is_error():
            raise BadGrammar(_first_line(matcher.get_error()))
        return matcher

    def _placed(self, schema: Any, strict: bool, error: BadGrammar) -> BadGrammar:
        """The same of the smallest part of the schema that is wrong by itself."""
        defined = {key: schema[key] for key in _DEFINED
                   if isinstance(schema, dict) and key in schema}  # fmt: skip
        place, left = "", deque(_parts(schema))
        for _ in range(_TRIES):
            if not left:
                break
            name, inner = left.popleft()
            if isinstance(inner, bool):
                continue
            known = {**defined, **inner} if isinstance(inner, dict) else inner
            try:
                self._matcher(_of_schema(known, strict))
            except BadGrammar as narrower:
                place, left, error = place + name, deque(_parts(inner)), narrower
        at = f"at {place.lstrip('.')}" if place else "as a whole"
        return BadGrammar(f"the schema is wrong {at}: {error.what}", place=place)


@final
class _Vocabulary:
    """A tokenizer as llguidance asks for one."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = token_bytes(tokenizer)
        self.special_token_ids = sorted({*tokenizer.special(), *tokenizer.ends})
        self.eos_token_id = tokenizer.end_of_document
        self._token_of = {text: token for token, text in enumerate(self.tokens) if text}
        self._longest = max(map(len, self._token_of), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """What a text that can only go on so is written in: the tokenizer's own way where that is
        the same text, which it is not where it begins with a space of its own.
        """
        try:
            found = self._tokenizer.encode(text.decode())
        except UnicodeDecodeError:
            found = []
        if b"".join(self.tokens[token] for token in found) == text:
            return found
        return list(self._by_length(text))

    def _by_length(self, text: bytes) -> Iterator[int]:
        place = 0
        while place < len(text):
            sizes = range(min(self._longest, len(text) - place), 0, -1)
            size = next((size for size in sizes if text[place : place + size] in self._token_of), 0)
            if not size:
                return
            yield self._token_of[text[place : place + size]]
            place += size


def _told(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    wrapped = TokenizerWrapper(_Vocabulary(tokenizer))
    return LLTokenizer(wrapped, eos_token=[tokenizer.end_of_document, *sorted(
        tokenizer.ends - {tokenizer.end_of_document}
    )])  # fmt: skip


def _source(grammar: Grammar, schema: Any) -> str:
    from llguidance import LLMatcher

    if grammar.kind == "schema":
        return _of_schema(schema, grammar.strict)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    return LLMatcher.grammar_from_lark(grammar.text)


def _of_schema(schema: Any, strict: bool) -> str:
    from llguidance import LLMatcher

    if not isinstance(schema, dict):
        raise BadGrammar("a schema is a JSON object", hint='{"type": "object"}')
    form: Any = {**FORM, "lenient": not strict}
    try:
        known = json.dumps(_held(schema, strict))
        return LLMatcher.grammar_from_json_schema(known, overrides=form)
    except (ValueError, RecursionError) as error:  # nested too deeply
        raise BadGrammar(str(error)) from None


def _held(schema: Any, strict: bool) -> Any:
    """Without the bounds of numbers that llguidance does not hold, which a strict one may not have:
    beyond int64 it cuts them, and two at the least one of those end the process.
    """
    if isinstance(schema, list):
        return [_held(each, strict) for each in schema]
    if not isinstance(schema, dict):
        return schema
    bounds = {key: schema[key] for key in _BOUNDS if _is_number(schema.get(key))}
    wide = [key for key, bound in bounds.items() if not abs(bound) <= _EXACT]
    if strict and wide:
        what = f"{wide[0]} {bounds[wide[0]]} cannot be held"
        raise BadGrammar(what, hint=f"a bound of at most {_EXACT}, up to which JSON is exact")
    if strict:
        _refuse_fraction(bounds)
    return {
        key: each if key in _VALUES else _held(each, strict)
        for key, each in schema.items()
        if key not in wide
    }


def _refuse_fraction(bounds: dict[str, float]) -> None:
    """Raises BadGrammar where a whole number is left out, and the other bound is less than one away
    from it: llguidance 1.9 lets that number in.
    """
    for key, sign, others in (
        ("exclusiveMinimum", 1, ("maximum", "exclusiveMaximum")),
        ("exclusiveMaximum", -1, ("minimum", "exclusiveMinimum")),
    ):
        end = bounds.get(key, 0.5)
        near = any(0 < sign * (bounds[other] - end) < 1 for other in others if other in bounds)
        if near and end == int(end):
            what = f"{key} {end:g} with the other bound less than one away cannot be held"
            raise BadGrammar(what, hint=f"a bound of itself, such as {end + sign * 0.001:g}")


def _is_number(bound: object) -> bool:
    return isinstance(bound, int | float) and not isinstance(bound, bool)


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadGrammar(f"the schema is not valid JSON: {error}") from None


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas right within a schema, each with its place; true and false are never wrong."""
    if not isinstance(schema, dict):
        return
    for key in _WITHIN:
        inner = schema.get(key)
        if isinstance(inner, dict):
            yield from ((f".{key}.{name}", each) for name, each in inner.items())
    for key in _LISTS:
        inner = schema.get(key)
        if isinstance(inner, list):
            yield from ((f".{key}[{index}]", each) for index, each in enumerate(inner))
    yield from ((f".{key}", schema[key]) for key in _SINGLE if isinstance(schema.get(key), dict))


def _first_line(text: str) -> str:
    """What llguidance says, without the drawing of where."""
    lines = [line.strip() for line in text.splitlines()]
    said = next((line for line in lines if line.startswith("error:")), None)
    return (said.removeprefix("error: ") if said else next(iter(lines), "no reason given"))[:300]
