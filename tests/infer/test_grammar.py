from __future__ import annotations

import json
import re
from typing import Any

import pytest

from narrows.data.token_bytes import token_bytes
from narrows.data.tokenizers import Tokenizer
from narrows.infer.generate import generate
from narrows.infer.grammar import BadGrammar, Grammar, Grammars
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"enum": ["Ann", "Zoë"]}, "age": {"type": "integer", "maximum": 9,
                                                             "minimum": 0}},
}  # fmt: skip


def schema(table: Any, *, strict: bool = True) -> Grammar:
    return Grammar(kind="schema", text=json.dumps(table), strict=strict)


def written(generator: Generator, grammar: Grammar, seed: int, tokens: int = 45) -> tuple[str, str]:
    """A text of a model that knows nothing, and why it ended."""
    sampling = Sampling(temperature=1.5, seed=seed)
    guide = Grammars(generator.tokenizer).guide(grammar)
    writing = generate(generator, "R", tokens=tokens, sampling=sampling, guide=guide)
    return "".join(writing), writing.finish


@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_knows_nothing_writes_what_fits(generator: Generator, seed: int) -> None:
    text, finish = written(generator, schema(PERSON), seed)
    assert finish == "end"
    said = json.loads(text)
    assert said["name"] in ("Ann", "Zoë") and 0 <= said["age"] <= 9 and len(said) == 2
    text, finish = written(generator, Grammar(kind="regex", text=r"(yes|no), é{2,5}\."), seed)
    assert finish == "end" and re.fullmatch(r"(yes|no), é{2,5}\.", text)
    lark = Grammar(kind="lark", text='start: "(" start ")" | "x"')
    text, finish = written(generator, lark, seed)
    opened = text.count("(")
    assert text == "(" * opened + "x" + ")" * opened if finish == "end" else finish == "length"


@pytest.mark.parametrize("name", ["bpe", "character", "spaced"])
def test_a_text_ends_only_where_it_may(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    guide = Grammars(tokenizer).guide(Grammar(kind="regex", text="the( sun)*"))
    text = b""
    while not guide.may_end:
        assert not any(guide.allowed()[end] for end in tokenizer.ends)
        token = int(guide.allowed().nonzero()[0][-1])
        text += token_bytes(tokenizer)[token]
        guide.took(token)
    assert text == b"the"
    assert guide.may_end and not guide.whole
    assert all(guide.allowed()[end] for end in tokenizer.ends)


def test_a_copy_goes_its_own_way(bpe: Tokenizer) -> None:
    first = Grammars(bpe).guide(Grammar(kind="regex", text="ab|ac"))
    [a], [b], [c] = bpe.encode("a"), bpe.encode("b"), bpe.encode("c")
    first.took(a)
    second = first.copy()
    second.took(b)
    assert second.whole and not first.whole
    assert sorted(first.allowed().nonzero()[0].tolist()) == sorted([b, c])


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"type": "strin"}, ""),
        ({"properties": {"a": {"anyOf": [{"type": "integer"}, {"items": {"pattern": "("}}]}}},
         ".properties.a.anyOf[1].items"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "x"}}}, ".$defs.b"),
        ({"type": "object", "required": ["a"],
          "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}}},
         ".properties.a"),
        ({"type": "array", "uniqueItems": True}, ""),
        ([], ""),
        ({"properties": {"a": {"type": "integer", "minimum": -(2**63), "maximum": -(2**63)}}},
         ".properties.a"),
        ({"type": "integer", "maximum": 1e300}, ""),
        ({"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}},
         ".items"),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, ""),
    ],
)  # fmt: skip
def test_a_wrong_schema_is_refused_with_the_place(bpe: Tokenizer, table: Any, place: str) -> None:
    with pytest.raises(BadGrammar, match=re.escape(place.lstrip(".") or "as a whole")) as refused:
        Grammars(bpe).guide(schema(table))
    assert refused.value.place == place


def test_what_is_not_strict_may_say_what_cannot_be_held(bpe: Tokenizer) -> None:
    least = -(2**63)
    for table in (
        {"type": "array", "uniqueItems": True},
        {"type": "integer", "minimum": least, "maximum": least},
        {"type": "integer", "minimum": least, "maximum": 2**63 - 1},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    ):
        assert Grammars(bpe).guide(schema(table, strict=False)).allowed().any()


def test_values_that_look_like_bounds_are_left(generator: Generator) -> None:
    table = {"const": {"minimum": 2**60}}
    text, _ = written(generator, schema(table, strict=False), seed=0)
    assert json.loads(text) == table["const"]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("regex", "(", "unclosed group"), ("regex", "(?=a)b", "look-around"),
        ("regex", "a" * 5000, "5000 characters"), ("lark", "start: x", "unknown name"),
        ("lark", "start: start", "no text fits"), ("schema", "{", "not valid JSON"),
        ("schema", "[" * 5000, "not valid JSON"), ("schema", '{"items":' * 300 + "1" + "}" * 300,
                                                  "as a whole|at items"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_refused(bpe: Tokenizer, kind: Any, text: str, said: str) -> None:
    with pytest.raises(BadGrammar, match=said):
        Grammars(bpe).guide(Grammar(kind=kind, text=text))
