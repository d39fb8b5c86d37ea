"""What a file of weights calls each of ours, and how theirs lies.

A parameter of ours is one or several of theirs, joined by rows: queries, keys and values; gate and
up; all experts. A `Naming` says which, in a table for whole names and one for names within a block;
`hugging_face` and `ggml` have one for each family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from narrows.spec.model import ModelSpec

Turn = Callable[[Tensor, ModelSpec], Tensor]


class Lay(NamedTuple):
    """Makes of a tensor of theirs ours, and of ours theirs."""

    ours: Turn
    theirs: Turn


AS_IS = Lay(lambda theirs, spec: theirs, lambda ours, spec: ours)


class Piece(NamedTuple):
    """A tensor of theirs that is some rows of ours, or all; of one expert where it says which."""

    name: str
    lay: Lay = AS_IS
    expert: int | None = None


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Names of one family in one format.

    `whole`: ours to theirs, without `.weight` and `.bias`, or with it where theirs has no such
    ending. `within`: the same of a block, whose names begin with `block`; `encoder` and `encoding`
    of an encoder beside. `{e}` stands for the number of an expert. `lays`, by our name, are of all
    pieces in turn. Names may lack what a family's whole models put before (`before`). What matches
    `passed_over` is no weight; what matches `left_out` is one, of a part that we do not have.
    Where blocks have no name, all names are ours.
    """

    block: str
    whole: dict[str, str]
    within: dict[str, tuple[str, ...]]
    encoder: str = ""
    encoding: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lays: dict[str, tuple[Lay, ...]] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def pieces(self, name: str, spec: ModelSpec) -> tuple[Piece, ...]:
        """Theirs for ours, in the order of our rows; empty where the family has no such thing."""
        if not self.block:
            return (Piece(name),)
        found = re.fullmatch(r"(encoder\.)?blocks\.(\d+)\.(.+)", name)
        if found is None:
            return self._whole(name)
        encoder, layer, inner = found.groups()
        table = self.encoding if encoder else self.within
        block = (self.encoder if encoder else self.block).format(layer)
        stem, _, kind = inner.rpartition(".")
        names = table.get(inner) or tuple(f"{each}.{kind}" for each in table.get(stem, ()))
        experts = range(spec.experts.count) if spec.experts else ()
        lays = self.lays.get(inner) or self.lays.get(stem) or (AS_IS,) * len(names)
        each = [(f"{block}.{name}", lay) for name, lay in zip(names, lays, strict=True)]
        if names and "{e}" in names[0]:
            return tuple(
                Piece(name.replace("{e}", str(e)), lay, e) for e in experts for name, lay in each
            )
        return tuple(Piece(*both) for both in each)

    def there(self, names: Iterable[str]) -> dict[str, str]:
        """What a file calls each of its tensors, by the plain form."""
        return {self.plain(name): name for name in names}

    def plain(self, name: str) -> str:
        """A name without what may stand before it."""
        for each in self.before:
            if name.startswith(each):
                return name.removeprefix(each)
        return name

    def passes(self, name: str) -> bool:
        """Whether theirs is no weight of ours."""
        return any(re.search(each, name) for each in self.passed_over) or self.leaves(name)

    def leaves(self, name: str) -> bool:
        """Whether theirs is a weight that we have no place for."""
        return any(re.search(each, name) for each in self.left_out)

    def but(self, **changes: object) -> Naming:
        """The same with tables added to."""
        tables = {
            key: {**getattr(self, key), **value} if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        return replace(self, **tables)  # type: ignore[arg-type]

    def _whole(self, name: str) -> tuple[Piece, ...]:
        stem, _, kind = name.rpartition(".")
        theirs = self.whole.get(name) or (
            f"{self.whole[stem]}.{kind}" if stem in self.whole else None
        )
        lays = self.lays.get(name) or self.lays.get(stem) or (AS_IS,)
        return () if theirs is None else (Piece(theirs, lays[0]),)


OURS = Naming(block="", whole={}, within={})
"""Of files that we wrote for ourselves."""
