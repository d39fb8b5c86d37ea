"""The form that an answer is asked to have: response_format, or a regex or a grammar of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from narrows.infer.grammar import JSON, BadGrammar, Grammar, Grammars, Guide
from narrows.infer.server.errors import Refusal
from narrows.infer.server.schemas import AnyObject, Asked, OfSchema


def guide_of(asked: Asked, grammars: Grammars) -> Guide | None:
    """What holds the answer to its form; raises Refusal with the place of what is wrong in it."""
    forms = _asked(asked)
    if not forms:
        return None
    if len(forms) > 1:
        names = " and ".join(name.partition(".")[0] for name in forms)
        raise Refusal(f"{names} are asked for at once", hint="one of them", param=min(forms))
    [(name, grammar)] = forms.items()
    with refusing(name):
        return grammars.guide(grammar)


def held(asked: Asked) -> bool:
    """Whether the answer is to have a form."""
    return bool(_asked(asked))


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Within it what is wrong in a grammar is wrong in the parameter that gave it."""
    try:
        yield
    except BadGrammar as error:
        raise Refusal(error.what, hint=error.hint, param=param + error.place) from None


def _asked(asked: Asked) -> dict[str, Grammar]:
    """Every form that is asked for, by the parameter that asks."""
    found = {}
    form = asked.response_format
    if isinstance(form, AnyObject):
        found["response_format"] = schema(JSON)
    elif isinstance(form, OfSchema):
        given = form.json_schema
        found["response_format.json_schema.schema"] = schema(
            given.schema, strict=bool(given.strict)
        )  # fmt: skip
    if asked.regex is not None:
        found["regex"] = Grammar(kind="regex", text=asked.regex)
    if asked.grammar is not None:
        found["grammar"] = Grammar(kind="lark", text=asked.grammar)
    return found


def schema(table: Mapping[str, Any], *, strict: bool = True) -> Grammar:
    """Of a JSON schema."""
    return Grammar(kind="schema", text=msgspec.json.encode(table).decode(), strict=strict)
