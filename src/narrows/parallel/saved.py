"""Tensors out of safetensors files that each hold parts of them, in whatever parts one wants.

A file says in its metadata which part of the whole each of its tensors is; one that says nothing
has whole tensors. So what any layout wrote, any other reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from narrows.parallel.parts import Box, Part
from narrows.spec.errors import BadInput

PARTS = "parts"
"""The key of a file's metadata."""


def described(parts: dict[str, Part]) -> dict[str, str]:
    """A file's metadata."""
    return {PARTS: json.dumps({name: [part.shape, part.ranges] for name, part in parts.items()})}


class Saved:
    """The tensors of several files, by name."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises BadInput where one is no safetensors file."""
        self._places: dict[str, list[tuple[Any, Part]]] = {}
        for path in paths:
            file = _opened(path)
            told = json.loads((file.metadata() or {}).get(PARTS, "{}"))
            for name in file.keys():  # noqa: SIM118
                whole = Part.whole(tuple(file.get_slice(name).get_shape()))
                part = _part(*told[name]) if name in told else whole
                self._places.setdefault(name, []).append((file, part))

    def names(self) -> Iterable[str]:
        """Of all tensors."""
        return self._places.keys()

    def whole(self, name: str) -> Tensor:
        """One of them, put together."""
        return self.read(name, Part.whole(self._places[name][0][1].shape))

    def read(self, name: str, part: Part) -> Tensor:
        """A part of one; raises BadInput where the files have not all of it."""
        places = self._places.get(name, [])
        if len(places) == 1 and places[0][1] == part:
            found: Tensor = places[0][0].get_tensor(name)
            return found
        into: Tensor | None = None
        filled = 0
        for file, saved in places:
            if saved.shape != part.shape:
                raise _other_shape(name, saved.shape, part.shape)
            piece = file.get_slice(name)
            for there in saved.boxes():
                for here in part.boxes():
                    if (both := _overlap(there, here)) is None:
                        continue
                    source, target = both
                    values = piece[source]
                    if into is None:
                        into = torch.empty(part.local_shape, dtype=values.dtype)
                    into[target] = values
                    filled += values.numel()
        size = torch.Size(part.local_shape).numel()
        if filled != size:
            raise BadInput(
                f"the checkpoint has {filled:,} of {size:,} values of {name}",
                hint="use an earlier checkpoint",
            )
        return torch.empty(part.local_shape) if into is None else into


@final
class Whole(Mapping[str, Tensor]):
    """A checkpoint's tensors, each put together when it is asked for."""

    def __init__(self, files: Saved) -> None:
        self._files, self._names = files, list(files.names())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._files.whole(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


Slices = tuple[slice, ...]


def _overlap(there: Box, here: Box) -> tuple[Slices, Slices] | None:
    """What two boxes have in common: where it is in the saved part, and where in the wanted one."""
    source: list[slice] = []
    target: list[slice] = []
    for dim in range(len(there.size)):
        low = max(there.whole[dim], here.whole[dim])
        high = min(there.whole[dim] + there.size[dim], here.whole[dim] + here.size[dim])
        if low >= high:
            return None
        for box, slices in ((there, source), (here, target)):
            start = box.part[dim] + low - box.whole[dim]
            slices.append(slice(start, start + high - low))
    return tuple(source), tuple(target)


def _part(shape: list[int], ranges: list[list[list[int]]]) -> Part:
    return Part(tuple(shape), tuple(tuple((a, b) for a, b in each) for each in ranges))


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{path} cannot be read: {error}", hint="use an earlier checkpoint"
        ) from None


def _other_shape(name: str, saved: tuple[int, ...], wanted: tuple[int, ...]) -> BadInput:
    return BadInput(
        f"{name} is {list(saved)} in the checkpoint and {list(wanted)} in the plan",
        hint="resume with the plan that the run was made by",
    )
