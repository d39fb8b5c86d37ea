"""A decoder whose matrices are packed in groups, run by native/decoder.cpp: all of a step at once.

    pack(...) → PackedDecoder(...).step(sequences, tokens, wanted) → logits

The structures below are those of native/decoder.cpp and native/panels.h, field by field.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
import numpy.typing as npt

from narrows.kernels.arrays import Doubles, Floats, Octets, lined
from narrows.kernels.interface import Heads
from narrows.kernels.library import native_library
from narrows.kernels.low_rank import Adapters, PackedAdapter
from narrows.kernels.panels import GROUP, PANEL, PARTS_MOST, Packed
from narrows.spec.machine import CachePrecision

_TILE, _NOWHERE = 8, 1 << 62
_BLOCK = PANEL
"""Positions of a cache that lie together."""
_FP32, _BF16 = 4, 2
_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


Activation = Literal["silu", "gelu", "relu", "squared_relu"]


class PackedLayer(NamedTuple):
    """A block: norms fp32, and matrices of [queries | keys | values], of [gate | up] or up alone,
    and back. The norms `out` and `down` are of what joins the stream; a windowed one sees the last
    `window`.
    """

    norm_D: Floats
    query_norm_H: Floats | None
    key_norm_H: Floats | None
    qkv: Packed
    out: Packed
    second_norm_D: Floats
    up: Packed
    down: Packed
    out_norm_D: Floats | None = None
    down_norm_D: Floats | None = None
    window: int | None = None
    norm_bias_D: Floats | None = None
    second_norm_bias_D: Floats | None = None


class Turning(NamedTuple):
    """How positions turn a head: each pair of it by so many radians a position [H/2] fp64, as much
    of the head as there are pairs; what is turned grows.
    """

    speeds: Doubles
    growth: float = 1.0

    def angles(self, positions: int) -> tuple[Floats, Floats]:
        """Cosine and sine of the first positions [T,H/2]."""
        angles_TH = np.arange(positions)[:, None] * self.speeds
        cos_TH, sin_TH = (self.growth * turn(angles_TH) for turn in (np.cos, np.sin))
        return cos_TH.astype(np.float32), sin_TH.astype(np.float32)


class PackedModel(NamedTuple):
    """All of a decoder's weights and what is computed with them; positions turn the heads, in
    layers with a window as `turning_windowed` where that is given, or a table of them [S,D] fp32
    joins the tokens. Norms that are `centred` take the mean away.
    """

    layers: tuple[PackedLayer, ...]
    heads: Heads
    epsilon: float
    query_scale: float
    embedding_scale: float
    logit_scale: float
    turning: Turning | None
    table: Packed
    norm_D: Floats
    head: Packed
    activation: Activation = "silu"
    gated: bool = True
    score_cap: float | None = None
    logit_cap: float | None = None
    centred: bool = False
    norm_bias_D: Floats | None = None
    positions_SD: Floats | None = None
    turning_windowed: Turning | None = None

    @property
    def matrices(self) -> list[Packed]:
        """All; a head that is the table once."""
        found = [m for each in self.layers for m in (each.qkv, each.out, each.up, each.down)]
        return [*found, self.table] if self.head is self.table else [*found, self.table, self.head]

    @property
    def nbytes(self) -> int:
        """Of all matrices."""
        return sum(each.nbytes for each in self.matrices)


@dataclass(frozen=True)
class Run:
    """So many new tokens of one sequence, from position `start` on; its keys and values are in, and
    join, `cache`. With an adapter, every matrix is read with what that adds to it.
    """

    cache: Octets
    start: int
    count: int
    adapter: PackedAdapter | None = None


class _Part(ctypes.Structure):
    _fields_ = (
        ("panels", _P), ("first", _I), ("bits", _I), ("nested", _I), ("centred", _I),
    )  # fmt: skip


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("parts", _Part * PARTS_MOST), ("bias", _P), ("rows", _I), ("columns", _I),
    )  # fmt: skip


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _P), ("bias", _P))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm", _Norm), ("query_norm", _Norm), ("key_norm", _Norm), ("qkv", _Matrix),
        ("out", _Matrix), ("out_norm", _Norm), ("second_norm", _Norm), ("up", _Matrix),
        ("down", _Matrix), ("down_norm", _Norm), ("cos", _P), ("sin", _P), ("window", _I),
    )  # fmt: skip


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", _P), ("count", _I), ("width", _I), ("heads", _I), ("kv_heads", _I),
        ("head_width", _I), ("room", _I), ("epsilon", _F), ("query_scale", _F),
        ("embedding_scale", _F), ("logit_scale", _F), ("score_cap", _F), ("logit_cap", _F),
        ("activation", _I), ("gated", _I), ("centred", _I), ("turned", _I), ("positions", _P),
        ("table", _Matrix), ("norm", _Norm), ("head", _Matrix), ("coded", _I),
    )  # fmt: skip


class _Sequence(ctypes.Structure):
    _fields_ = (("cache", _P), ("first", _I), ("count", _I), ("start", _I))


class _Codes(ctypes.Structure):
    _fields_ = (
        ("whole", _P), ("values", _P), ("scales", _P), ("sums", _P), ("firsts", _P),
        ("weighted", _P), ("columns", _I),
    )  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = (
        ("sequences", _P), ("count", _I), ("tokens", _P), ("rows", _I), ("wanted", _P),
        ("wanted_count", _I), ("logits", _P), ("x", _P), ("y", _P), ("qkv", _P), ("queries", _P),
        ("query_scales", _P), ("narrow", _Codes), ("wide", _Codes), ("out", _Codes),
        ("scores", _P), ("threads", _I), ("adapters", Adapters),
    )  # fmt: skip


@final
class PackedDecoder:
    """Computes up to `rows` new tokens at a time, of sequences of up to `room` positions, with so
    many threads. One step at a time: what it works in is its own; `stream` [rows,D] is the residual
    stream behind the last. Keys and values are kept in the precision `kept`.
    """

    def __init__(
        self, model: PackedModel, *, room: int, rows: int, threads: int,
        kept: CachePrecision = "bf16",
    ) -> None:  # fmt: skip
        self.model, self.rows, self.threads, self._coded = model, rows, threads, kept == "int8"
        self.room = blocks(room) * _BLOCK
        self.width = len(model.norm_D)
        self._kept: list[object] = []
        self._library = native_library()
        self._decoder = self._described()
        N, K, H = model.heads
        wide = model.layers[0].down.columns
        columns = model.layers[0].qkv.rows
        self.stream, self._y = lined((rows, self.width)), lined((rows, self.width))
        self._qkv = lined((rows, columns))
        self._queries = lined((rows, N * H), np.uint16)
        self._query_scales = lined((rows, N))
        self._scores = lined((threads, _TILE, self.room))
        bits = {part.bits for matrix in model.matrices for part in matrix.parts}
        self._codes = [_codes(rows, each, bits, self._kept) for each in (self.width, wide, N * H)]

    def cache(self) -> Octets:
        """Of one sequence, empty: bytes [L,K,2,blocks of 16 positions,...] as native/cache.h has
        them; pages are taken as positions are filled.
        """
        _, K, H = self.model.heads
        each = H + _FP32 if self._coded else H * _BF16
        shape = (len(self.model.layers), K, 2, blocks(self.room), _BLOCK * each)
        return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)

    def step(self, runs: Sequence[Run], tokens: Sequence[int], wanted: Sequence[int]) -> Floats:
        """Logits [wanted,V] behind those rows of `tokens`, which are those of all runs in turn."""
        rows, ends = len(tokens), 0
        assert 0 < rows <= self.rows and rows == sum(run.count for run in runs)
        sequences = (_Sequence * len(runs))()
        for each, run in zip(sequences, runs, strict=True):
            assert run.start >= 0 and run.start + run.count <= self.room
            each.cache, each.first = _at(run.cache), ends
            each.count, each.start = run.count, run.start
            ends += run.count
        head = self.model.head
        logits = lined((len(wanted), -(-head.rows // PANEL) * PANEL))
        step = _Step(
            ctypes.addressof(sequences), len(runs),
            ctypes.addressof(told := (_I * rows)(*tokens)), rows,
            ctypes.addressof(asked := (_I * len(wanted))(*wanted)), len(wanted),
            *map(_at, (logits, self.stream, self._y, self._qkv, self._queries)),
            _at(self._query_scales), *self._codes, _at(self._scores), self.threads,
        )  # fmt: skip
        kept = self._adapt(step, runs)
        self._library.narrows_decoder_step(ctypes.byref(self._decoder), ctypes.byref(step))
        del told, asked, kept
        return logits[:, : head.rows]

    def _adapt(self, step: _Step, runs: Sequence[Run]) -> tuple[object, ...]:
        """Tell a step of its rows' adapters, where there are any; what is to live as long."""
        worn = [run.adapter for run in runs if run.adapter]
        if not worn:
            return ()
        layers, inner = len(self.model.layers), max(each.inner for each in worn)
        assert all(each.layers == layers for each in worn), "another model's adapter"
        at = [run.adapter.at if run.adapter else None for run in runs for _ in range(run.count)]
        rows, inner_RP = (_P * len(at))(*at), lined((len(at), inner))
        widest = max(codes.columns for codes in self._codes)
        whole = lined((self.threads, widest))
        step.adapters = Adapters(ctypes.addressof(rows), _at(inner_RP), inner, _at(whole), widest)
        return rows, inner_RP, whole

    def read(
        self, cache: Octets, tokens: Sequence[int], start: int, adapter: PackedAdapter | None = None
    ) -> Floats:
        """Logits [V] behind the last of so many tokens of one sequence, however many."""
        assert tokens
        for first in range(0, len(tokens), self.rows):
            some = tokens[first : first + self.rows]
            last = [len(some) - 1] if first + len(some) == len(tokens) else []
            logits = self.step([Run(cache, start + first, len(some), adapter)], some, last)
        return logits[0]

    def _described(self) -> _Decoder:
        m, (N, K, H) = self.model, self.model.heads
        layers = (_Layer * len(m.layers))()
        turning = {False: m.turning, True: m.turning_windowed or m.turning}
        angles = {each: turns.angles(self.room) for each in self._windowed()
                  if (turns := turning[each])}  # fmt: skip
        for into, each in zip(layers, m.layers, strict=True):
            into.norm = _norm(each.norm_D, each.norm_bias_D)
            into.second_norm = _norm(each.second_norm_D, each.second_norm_bias_D)
            into.out_norm, into.down_norm = _norm(each.out_norm_D), _norm(each.down_norm_D)
            into.query_norm, into.key_norm = _norm(each.query_norm_H), _norm(each.key_norm_H)
            into.qkv, into.out = _matrix(each.qkv), _matrix(each.out)
            into.up, into.down = _matrix(each.up), _matrix(each.down)
            if angles:
                rotation = angles[each.window is not None]
                into.cos, into.sin = map(_at, rotation)
            into.window = self.room if each.window is None else each.window
        self._kept += [layers, angles]
        turned = 2 * next(iter(angles.values()))[0].shape[1] if angles else 0
        assert m.positions_SD is None or len(m.positions_SD) + PANEL > self.room
        return _Decoder(
            ctypes.addressof(layers), len(m.layers), self.width, N, K, H, self.room, m.epsilon,
            m.query_scale, m.embedding_scale, m.logit_scale, _cap(m.score_cap), _cap(m.logit_cap),
            get_args(Activation).index(m.activation), m.gated, m.centred, turned,
            _at(m.positions_SD), _matrix(m.table), _norm(m.norm_D, m.norm_bias_D), _matrix(m.head),
            self._coded,
        )  # fmt: skip

    def _windowed(self) -> set[bool]:
        """Whether layers have a window, as far as there are such."""
        return {each.window is not None for each in self.model.layers}


def blocks(positions: int) -> int:
    """How many of a cache so many positions begin."""
    return -(-positions // _BLOCK)


def _cap(value: float | None) -> float:
    return math.inf if value is None else value


def _at(array: npt.NDArray[Any] | None) -> int | None:
    assert array is None or array.flags.c_contiguous
    return None if array is None else array.ctypes.data


def _norm(weight: Floats | None, bias: Floats | None = None) -> _Norm:
    return _Norm(_at(weight), _at(bias))


def _matrix(packed: Packed) -> _Matrix:
    parts, first = (_Part * PARTS_MOST)(*[_Part(None, _NOWHERE)] * PARTS_MOST), 0
    for index, part in enumerate(packed.parts):
        panels = part.panels
        parts[index] = _Part(_at(panels), first, part.bits, part.nested, part.centred)
        first += len(panels)
    return _Matrix(parts, _at(packed.bias), packed.rows, packed.columns)


def _codes(rows: int, columns: int, bits: set[int], kept: list[object]) -> _Codes:
    """Of the kinds that matrices of so many bits are multiplied with."""
    groups, rows = columns // GROUP, -(-rows // _TILE) * _TILE
    whole = lined((rows, columns), np.uint16) if 16 in bits else None
    values = lined((rows, columns), np.int8) if bits != {16} else None
    scales, weighted = lined((rows, groups)), lined((rows, groups))
    sums, firsts = (lined((rows, groups), np.int32) for _ in range(2))
    made = (whole, values, scales, sums, firsts, weighted)
    kept += made
    return _Codes(*map(_at, made), columns)
