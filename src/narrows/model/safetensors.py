"""Weights in safetensors files: one, or the shards that an index names.

    8 bytes: the header's length   header: JSON, each tensor's type, shape and place   the bytes

The format is github.com/huggingface/safetensors; as there, tensors must fill the file without gaps
or overlaps. We read it ourselves for one reason: what has been read is given back at once, so that
a model never lies in memory twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from narrows.model.folder import FILE, INDEX
from narrows.model.mapped import DAMAGED, Mapped, Tensors
from narrows.model.writing import Outgoing
from narrows.spec.errors import BadInput

_HEADER_MOST = 100_000_000
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
SHARD_BYTES = 5_000_000_000
"""What transformers and the hub put in one file at most, unless one tensor is larger."""


class _Lying(NamedTuple):
    """Where a tensor is, and what it is there."""

    file: Mapped
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    size: int


class Safetensors:
    """The tensors of the files, by name."""

    def __init__(self, paths: list[Path]) -> None:
        """Raises BadInput where a file is none or contradicts itself, or two name the same."""
        self._tensors: dict[str, _Lying] = {}
        for path in paths:
            for name, lying in _tensors(Mapped(path)).items():
                if name in self._tensors:
                    before = self.path(name)
                    what = f"{name} is in {before} and in {path}"
                    raise BadInput(what, hint="remove the file that does not belong there")
                self._tensors[name] = lying

    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Of one."""
        return self._tensors[name].dtype

    def path(self, name: str) -> Path:
        """Of the file that one is in."""
        return self._tensors[name].file.path

    def read(self, name: str, into: Tensor) -> None:
        """Write one to `into`, of the same shape."""
        lying = self._tensors[name]
        if lying.size == 0:
            return
        found = torch.frombuffer(lying.file.bytes(lying.start, lying.size), dtype=lying.dtype)
        into.view(-1).copy_(found)
        del found
        lying.file.release(lying.start, lying.size)


def refuse_whole(source: Tensors, name: str) -> None:
    """Raises BadInput where a weight lies there in a type of whole numbers, which only mean
    something beside a scale that nobody told.
    """
    if not isinstance(source, Safetensors) or source.dtype(name).is_floating_point:
        return
    kind = next(kind for kind, dtype in _TYPES.items() if dtype == source.dtype(name))
    raise BadInput(
        f"{source.path(name)} has the weight {name} in {kind}, a type of whole numbers",
        hint="take the model's weights in BF16, F16 or F32",
    )


def write(
    folder: Path, tensors: Sequence[Outgoing], dtype: torch.dtype, *, most: int = SHARD_BYTES
) -> None:
    """Write the tensors to a folder in that type, one at a time: as one file, or as shards of at
    most so many bytes, and an index of them.
    """
    shards = _shards(tensors, dtype, most)
    names = [FILE]
    if len(shards) > 1:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        places = {each.name: name for name, shard in zip(names, shards, strict=True)
                  for each in shard}  # fmt: skip
        total = sum(math.prod(each.shape) for each in tensors) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, dtype)


def _shards(tensors: Sequence[Outgoing], dtype: torch.dtype, most: int) -> list[list[Outgoing]]:
    shards: list[list[Outgoing]] = [[]]
    filled = 0
    for each in tensors:
        size = math.prod(each.shape) * dtype.itemsize
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(each)
        filled += size
    return shards


def _write(path: Path, tensors: Sequence[Outgoing], dtype: torch.dtype) -> None:
    kind = next(name for name, each in _TYPES.items() if each == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for each in tensors:
        end = at + math.prod(each.shape) * dtype.itemsize
        header[each.name] = {"dtype": kind, "shape": each.shape, "data_offsets": [at, end]}
        at = end
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for each in tensors:
            values = each.take().to(dtype).contiguous()
            assert tuple(values.shape) == each.shape, each.name
            file.write(values.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _tensors(file: Mapped) -> dict[str, _Lying]:
    header, start = _header(file)
    found = {name: _lying(file, name, told, start) for name, told in header.items()}
    places = sorted((each.start, each.start + each.size) for each in found.values())
    edges = [(start, start), *places, (len(file), len(file))]
    if any(before[1] != after[0] for before, after in pairwise(edges)):
        raise _refused(file, "its tensors do not fill it without gaps and overlaps")
    return found


def _header(file: Mapped) -> tuple[dict[str, Any], int]:
    if len(file) < 8:
        raise _refused(file, "it is shorter than the length of its header")
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > min(_HEADER_MOST, len(file) - 8):
        what = f"it claims a header of {length:,} bytes and has {len(file):,}"
        raise _refused(file, what)
    try:
        header = json.loads(bytes(file.bytes(8, length)).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, too
        raise _refused(file, f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise _refused(file, "its header is no table")
    header.pop("__metadata__", None)
    return header, 8 + length


def _lying(file: Mapped, name: str, told: Any, start: int) -> _Lying:
    match told:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise _refused(file, f"it does not tell type, shape and place of {name}")
    if kind not in _TYPES:
        hint = f"take weights in one of: {', '.join(_TYPES)}"
        raise BadInput(f"{file.path} has {name} in {kind}, which narrows does not read", hint=hint)
    if not all(type(each) is int and each >= 0 for each in shape):
        raise _refused(file, f"it gives {name} the shape {shape}")
    dtype, size = _TYPES[kind], last - first
    if first < 0 or size != math.prod(shape) * dtype.itemsize or start + last > len(file):
        raise _refused(file, f"{name}, {kind} {shape}, cannot lie in its bytes {first} to {last}")
    return _Lying(file, tuple(shape), dtype, start + first, size)


def _refused(file: Mapped, why: str) -> BadInput:
    return BadInput(f"{file.path} is no safetensors file: {why}", hint=DAMAGED)
