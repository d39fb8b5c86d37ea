"""A decoder whose matrices are packed in groups, run by native/decoder.cpp: all of a step at once.

    Packed.of(...) → PackedDecoder(...).step(sequences, tokens, wanted) → logits

The structures below are those of native/decoder.cpp and native/quantized.h, field by field.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from narrows.kernels.interface import Heads, Rotation
from narrows.kernels.native import native_library

PANEL, GROUP, _TILE = 16, 32, 8
_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Packed(NamedTuple):
    """A matrix [rows, columns] in panels of 16 rows, and its bias, filled up to whole panels."""

    panels: Tensor
    bias: Tensor | None
    rows: int
    columns: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Of the panels."""
        return self.panels.nbytes

    @staticmethod
    def of(
        bits: int, codes_ND: Tensor, scales_NG: Tensor, least_NG: Tensor, bias_N: Tensor | None
    ) -> Packed:
        """From codes [N,D] uint8, scales and least values [N,D/32] fp16."""
        N, D = codes_ND.shape
        assert D % GROUP == 0
        lacking = -N % PANEL
        codes, scales, least = (
            torch.nn.functional.pad(each, (0, 0, 0, lacking))
            for each in (codes_ND, scales_NG, least_NG)
        )
        quads = codes.view(-1, PANEL, D // GROUP, 8, 4).permute(0, 2, 3, 1, 4)
        if bits == 4:
            quads = quads[:, :, :4] | quads[:, :, 4:] << 4
        behind = (scales, least) if bits == 4 else (scales,)
        beside = [
            each.half().view(-1, PANEL, D // GROUP).transpose(1, 2).contiguous().view(torch.uint8)
            for each in behind
        ]
        panels = torch.cat([quads.flatten(2), *beside], dim=2)
        if bias_N is not None:
            bias_N = torch.nn.functional.pad(bias_N.float(), (0, lacking)).contiguous()
        return Packed(panels, bias_N, N, D, bits)


class PackedLayer(NamedTuple):
    """A block: norms fp32, and matrices of [queries | keys | values], of [gate | up], and back."""

    norm_D: Tensor
    query_norm_H: Tensor | None
    key_norm_H: Tensor | None
    qkv: Packed
    out: Packed
    second_norm_D: Tensor
    up: Packed
    down: Packed


class PackedModel(NamedTuple):
    """All of a decoder's weights and what is computed with them."""

    layers: tuple[PackedLayer, ...]
    heads: Heads
    epsilon: float
    query_scale: float
    embedding_scale: float
    logit_scale: float
    rotation: Rotation
    table: Packed
    norm_D: Tensor
    head: Packed

    @property
    def nbytes(self) -> int:
        """Of all matrices; a head that is the table counts once."""
        matrices = [m for each in self.layers for m in (each.qkv, each.out, each.up, each.down)]
        ends = [self.table] if self.head is self.table else [self.table, self.head]
        return sum(each.nbytes for each in (*matrices, *ends))


@dataclass(frozen=True)
class Run:
    """So many new tokens of one sequence, from position `start` on; its keys and values are in, and
    join, `cache`.
    """

    cache: Tensor
    start: int
    count: int


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("panels", _P), ("bias", _P), ("rows", _I), ("columns", _I), ("bits", _I),
    )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm", _P), ("query_norm", _P), ("key_norm", _P), ("qkv", _Matrix), ("out", _Matrix),
        ("second_norm", _P), ("up", _Matrix), ("down", _Matrix),
    )  # fmt: skip


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", _P), ("count", _I), ("width", _I), ("heads", _I), ("kv_heads", _I),
        ("head_width", _I), ("room", _I), ("epsilon", _F), ("query_scale", _F),
        ("embedding_scale", _F), ("logit_scale", _F), ("cos", _P), ("sin", _P),
        ("table", _Matrix), ("norm", _P), ("head", _Matrix),
    )  # fmt: skip


class _Sequence(ctypes.Structure):
    _fields_ = (("cache", _P), ("first", _I), ("count", _I), ("start", _I))


class _Codes(ctypes.Structure):
    _fields_ = (
        ("values", _P), ("scales", _P), ("sums", _P), ("weighted", _P), ("columns", _I),
    )  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = (
        ("sequences", _P), ("count", _I), ("tokens", _P), ("rows", _I), ("wanted", _P),
        ("wanted_count", _I), ("logits", _P), ("x", _P), ("y", _P), ("qkv", _P), ("queries", _P),
        ("narrow", _Codes), ("wide", _Codes), ("out", _Codes), ("scores", _P), ("threads", _I),
    )  # fmt: skip


@final
class PackedDecoder:
    """Computes up to `rows` new tokens at a time, of sequences of up to `room` positions, with so
    many threads. One step at a time: what it works in is its own.
    """

    def __init__(self, model: PackedModel, *, room: int, rows: int, threads: int) -> None:
        self.model, self.rows, self.threads = model, rows, threads
        self.room = -(-room // PANEL) * PANEL
        self.width = int(model.norm_D.numel())
        self._kept: list[object] = []
        self._library = native_library()
        self._decoder = self._described()
        N, K, H = model.heads
        wide = model.layers[0].down.columns
        columns = model.layers[0].qkv.rows
        self._x, self._y = torch.empty(rows, self.width), torch.empty(rows, self.width)
        self._qkv = torch.empty(rows, columns)
        self._queries = torch.empty(rows, N * H, dtype=torch.bfloat16)
        self._scores = torch.empty(threads, _TILE, self.room)
        self._codes = [_codes(rows, each, self._kept) for each in (self.width, wide, N * H)]

    def cache(self) -> Tensor:
        """Of one sequence, empty [L,K,2,room·H] bf16; pages are taken as positions are filled."""
        _, K, H = self.model.heads
        shape = (len(self.model.layers), K, 2, self.room * H)
        pages = mmap.mmap(-1, math.prod(shape) * torch.bfloat16.itemsize)
        return torch.frombuffer(pages, dtype=torch.bfloat16).view(shape)

    def step(self, runs: Sequence[Run], tokens: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Logits [wanted,V] behind those rows of `tokens`, which are those of all runs in turn."""
        rows, ends = len(tokens), 0
        assert 0 < rows <= self.rows and rows == sum(run.count for run in runs)
        sequences = (_Sequence * len(runs))()
        for each, run in zip(sequences, runs, strict=True):
            assert run.start >= 0 and run.start + run.count <= self.room
            each.cache, each.first = run.cache.data_ptr(), ends
            each.count, each.start = run.count, run.start
            ends += run.count
        head = self.model.head
        logits = torch.empty(len(wanted), -(-head.rows // PANEL) * PANEL)
        step = _Step(
            ctypes.addressof(sequences), len(runs),
            ctypes.addressof(told := (_I * rows)(*tokens)), rows,
            ctypes.addressof(asked := (_I * len(wanted))(*wanted)), len(wanted),
            logits.data_ptr(), self._x.data_ptr(), self._y.data_ptr(), self._qkv.data_ptr(),
            self._queries.data_ptr(), *self._codes, self._scores.data_ptr(), self.threads,
        )  # fmt: skip
        self._library.narrows_decoder_step(ctypes.byref(self._decoder), ctypes.byref(step))
        del told, asked
        return logits[:, : head.rows]

    def read(self, cache: Tensor, tokens: Sequence[int], start: int) -> Tensor:
        """Logits [V] behind the last of so many tokens of one sequence, however many."""
        assert tokens
        for first in range(0, len(tokens), self.rows):
            some = tokens[first : first + self.rows]
            last = [len(some) - 1] if first + len(some) == len(tokens) else []
            logits = self.step([Run(cache, start + first, len(some))], some, last)
        return logits[0]

    def _described(self) -> _Decoder:
        m, (N, K, H) = self.model, self.model.heads
        layers = (_Layer * len(m.layers))()
        for into, each in zip(layers, m.layers, strict=True):
            into.norm, into.second_norm = each.norm_D.data_ptr(), each.second_norm_D.data_ptr()
            into.query_norm, into.key_norm = _at(each.query_norm_H), _at(each.key_norm_H)
            into.qkv, into.out = _matrix(each.qkv), _matrix(each.out)
            into.up, into.down = _matrix(each.up), _matrix(each.down)
        self._kept.append(layers)
        return _Decoder(
            ctypes.addressof(layers), len(m.layers), self.width, N, K, H, self.room, m.epsilon,
            m.query_scale, m.embedding_scale, m.logit_scale, m.rotation.cos.data_ptr(),
            m.rotation.sin.data_ptr(), _matrix(m.table), m.norm_D.data_ptr(), _matrix(m.head),
        )  # fmt: skip


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _matrix(packed: Packed) -> _Matrix:
    return _Matrix(
        packed.panels.data_ptr(), _at(packed.bias), packed.rows, packed.columns, packed.bits
    )


def _codes(rows: int, columns: int, kept: list[object]) -> _Codes:
    groups, rows = columns // GROUP, -(-rows // _TILE) * _TILE
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales, weighted = torch.empty(rows, groups), torch.empty(rows, groups)
    sums = torch.empty(rows, groups, dtype=torch.int32)
    kept += [values, scales, sums, weighted]
    return _Codes(
        values.data_ptr(), scales.data_ptr(), sums.data_ptr(), weighted.data_ptr(), columns
    )
