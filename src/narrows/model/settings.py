"""The keys of a config.json, each read with its kind, its other spellings and its default."""

from __future__ import annotations

from typing import Any

from narrows.spec.errors import BadInput, nearest
from narrows.spec.model import GELU, FeedForward, GeGLU, ReLU, SquaredReLU, SwiGLU

_EXACT, _TANH = ("gelu", "gelu_python"), ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_PLAIN: dict[str, FeedForward] = {
    "relu": ReLU(), "relu2": SquaredReLU(), **dict.fromkeys(_EXACT, GELU(exact=True)),
    **dict.fromkeys(_TANH, GELU()),
}  # fmt: skip
# Behind a gate GELU is its tanh form: Gemma and T5 say "gelu" and compute that.
_GATED: dict[str, FeedForward] = {
    "silu": SwiGLU(), "swish": SwiGLU(), **dict.fromkeys((*_EXACT, *_TANH), GeGLU()),
}  # fmt: skip


class Settings:
    """The keys of `source`, or of a table in it. A key that is null counts as absent.

    Where a method takes several names they are spellings of one key, which may not disagree. A key
    that is absent takes the default, which is transformers' own, or is missed where there is none.
    """

    def __init__(self, data: dict[str, Any], source: str) -> None:
        self.data, self.source = data, source

    def refusal(self, what: str, hint: str) -> BadInput:
        """The error that names this file."""
        return BadInput(f"{self.source}: {what}", hint=hint)

    def has(self, name: str) -> bool:
        """Whether the key is there, if only as null."""
        return name in self.data

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        name, value = self._find(names, default, example="a whole number")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refusal(f"{name} should be a whole number, not {value!r}", f"{name}: 1024")
        if value < least:
            raise self.refusal(f"{name} is {value}", f"use at least {least}")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """A number above zero."""
        name, value = self._find(names, default, example="a number")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            such = "1e-5" if "eps" in name else "10000.0" if "rope" in name else "1.0"
            raise self.refusal(
                f"{name} should be a number above 0, not {value!r}", f"{name}: {such}"
            )
        return float(value)

    def some(self, name: str, default: float | None = None) -> float | None:
        """A number above zero, or None where the key is null."""
        if self.has(name) and self.data[name] is None:
            return None
        if default is None and not self.has(name):
            return None
        return self.number(name, default=default)

    def flag(self, *names: str, default: bool | None = None) -> bool:
        """True or false."""
        name, value = self._find(names, default, example="true or false")
        if not isinstance(value, bool):
            raise self.refusal(f"{name} should be true or false, not {value!r}", f"{name}: false")
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers, empty where the key is absent."""
        value = self.data.get(name) or []
        if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
            raise self.refusal(f"{name} should be a list of numbers, not {value!r}", f"{name}: []")
        return value

    def table(self, name: str) -> Settings | None:
        """The keys of a table within, or None where it is absent."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(f"{name} should be a table, not {value!r}", f"{name}: {{...}}")
        return Settings(value, f"{self.source}: {name}")

    def only(self, name: str, value: object, *, default: object) -> None:
        """Raise BadInput where the key is anything but `value`: a ModelSpec cannot say more."""
        found = self.data.get(name)
        found = default if found is None else found
        if found != value:
            what = f"{name} is {_json(found)}, which a ModelSpec cannot say"
            raise self.refusal(what, f"set {name} to {_json(value)} for the nearest model")

    def feed_forward(self, *names: str, gated: bool, default: str | None = None) -> FeedForward:
        """The feed-forward of that activation, behind a gate or without one."""
        known = _GATED if gated else _PLAIN
        name, value = self._find(names, default, example="a text")
        if isinstance(value, str) and value in known:
            return known[value]
        guess = nearest(str(value), known)
        hint = f"did you mean {guess}?" if guess else f"use one of: {', '.join(known)}"
        raise self.refusal(f"{name} cannot be {value!r}", hint)

    def _find(self, names: tuple[str, ...], default: object, *, example: str) -> tuple[str, Any]:
        """The name that is there and its value; else the first name and the default."""
        found = {each: self.data[each] for each in names if self.data.get(each) is not None}
        if not found:
            if default is None:
                raise self.refusal(f"{names[0]} is missing", f'add "{names[0]}": {example}')
            return names[0], default
        (name, value), *others = found.items()
        for other, second in others:
            if second != value:
                what = f"{name} is {_json(value)} and {other} is {_json(second)}"
                raise self.refusal(what, f"they mean the same: delete {other}, or correct one")
        return name, value


def _json(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
