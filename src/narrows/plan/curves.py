"""Seconds of one call, read off a machine's measured curves; a roofline where it has none."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from narrows.plan.layouts import Array, Setting, TrainingPrecision
from narrows.plan.operation import CachedAttention, Direction
from narrows.spec.errors import BadInput
from narrows.spec.machine import (
    AttentionCurve,
    CachedPoint,
    KernelCurve,
    Machine,
    MatmulCurve,
    StreamedPoint,
)
from narrows.spec.machine import Direction as ProductDirection

# Heads are independent of each other, so their number says little of the time for each.
_ROWS_WEIGHT = 0.3
_CACHED_WEIGHTS = (_ROWS_WEIGHT, 1.0, 1.0, 1.0, 1.0)
_CLOSE = 1e-6
_FEW = 32
"""So many points are told apart in less time than it takes to find those that are alike."""
# Of products of few rows: their number chooses the kernel, the length of a weight's row how well it
# streams; where the weights lie says less than their sizes.
_STREAMED_WEIGHTS = (2.0, 1.0, 2.0, 0.5)


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine does under one setting."""

    setting: Setting
    matmul: MatmulCurve
    attention: AttentionCurve | None
    streamed: tuple[StreamedPoint, ...]
    cached: tuple[CachedPoint, ...]
    kernels: dict[str, KernelCurve]
    launch: float
    copy: float
    working_sets: Array
    rates: Array
    threads: int
    compiled_speedup: float

    @classmethod
    def of(cls, machine: Machine, setting: Setting) -> Curves:
        """The curves that `setting` selects; raises BadInput where `machine` has no matmul."""
        device = machine.device
        points = sorted(device.memory.curve, key=lambda point: float(point.working_set))
        return cls(
            setting=setting,
            matmul=_matmul(machine, setting),
            attention=_attention(machine, setting),
            streamed=next(
                (curve.points for curve in device.streamed if curve.precision == setting.precision),
                (),
            ),
            cached=next(
                (curve.points for curve in device.cached if curve.precision == setting.precision),
                (),
            ),
            kernels=_kernels(machine, setting),
            launch=float(device.launch.value) if device.launch else 0.0,
            copy=float(device.memory.copy.value),
            working_sets=np.array([float(point.working_set) for point in points]),
            rates=np.array([float(point.rate) for point in points]),
            threads=device.threads,
            compiled_speedup=_compiled_speedup(machine, setting),
        )

    def bandwidth(self, moved: Array) -> Array:
        """Bytes per second for an operation that moves `moved` bytes."""
        if not self.rates.size:
            return np.full_like(moved, self.copy)
        log_sets = np.log(self.working_sets)
        rates = np.interp(np.log(np.maximum(moved, 1.0)), log_sets, np.log(self.rates))
        return np.asarray(np.exp(rates))

    def matmul_seconds(self, m: Array, n: Array, k: Array, direction: ProductDirection) -> Array:
        """The machine's own formula (see `MatmulCurve`), times what the nearest measured products
        of this direction took over what the formula says of them.
        """
        curve = self.matmul
        wanted = np.broadcast_arrays(m, n, k)
        flat = np.stack([np.ravel(each) for each in wanted], axis=1)
        seconds = _formula(curve, flat)
        points = [point for point in curve.points if point.direction == direction]
        if points:
            sizes = np.array([[p.m, p.n, p.k] for p in points], dtype=float)
            taken = np.array([p.seconds for p in points])
            seconds = seconds * _near(flat, sizes, np.log(taken / _formula(curve, sizes)))
        return np.asarray(seconds.reshape(wanted[0].shape))

    def streamed_seconds(self, m: Array, n: Array, k: Array, working_set: Array) -> Array:
        """As `matmul_seconds` forward, and the nearest products in turn through working sets of
        weights beside those of one weight; where none were measured, no quicker than memory gives
        the weights.
        """
        value = self.setting.value_bytes
        wanted = np.broadcast_arrays(m, n, k, working_set)
        if not self.streamed:
            reading = n * k * value / self.bandwidth(wanted[3])
            return np.maximum(self.matmul_seconds(m, n, k, "forward"), reading)
        once = [p for p in self.matmul.points if p.direction == "forward"]
        points = [(p.m, p.n, p.k, float(p.working_set), p.seconds) for p in self.streamed]
        points += [(p.m, p.n, p.k, float(p.n * p.k * value), p.seconds) for p in once]
        known, taken = np.array(points)[:, :4], np.array(points)[:, 4]
        flat = np.stack([np.ravel(each) for each in wanted], axis=1)
        # Beyond the largest set that was measured nothing is cached either.
        flat[:, 3] = np.minimum(flat[:, 3], known[:, 3].max())
        ratios = np.log(taken / _formula(self.matmul, known[:, :3]))
        seconds = _formula(self.matmul, flat[:, :3]) * _near(flat, known, ratios, _STREAMED_WEIGHTS)
        return np.asarray(seconds.reshape(wanted[0].shape))

    def cached_seconds(self, work: CachedAttention) -> Array | None:
        """A start and a rate, the line nearest to the measured points, times what the nearest of
        them took over it. None where the machine has none.
        """
        single = bool((work.queries == 1).all())
        points = [point for point in self.cached if (point.queries == 1) == single]
        if len(points) < 2:
            return None
        names = ("sequences", "kv_heads", "group", "head_width", "queries", "keys", "working_set")
        known = np.array([[getattr(p, name) for name in names] for p in points], dtype=float)
        taken = np.array([p.seconds for p in points])
        wanted = np.broadcast_arrays(*(getattr(work, name) for name in names))
        flat = np.stack([np.ravel(each) for each in wanted], axis=1)
        # Beyond the largest set that was measured nothing is cached either.
        known[:, 6] = np.maximum(known[:, 6], 1.0)
        flat[:, 6] = np.clip(flat[:, 6], known[:, 6].min(), known[:, 6].max())
        done, asked = known[:, :6].prod(axis=1), flat[:, :6].prod(axis=1)
        line = _line(done, taken)
        ratio = _near(_heads(flat), _heads(known), np.log(taken / line(done)), _CACHED_WEIGHTS)
        return np.asarray((line(asked) * ratio).reshape(wanted[0].shape))

    def attention_seconds(
        self, rows: Array, positions: Array, head_width: Array, direction: Direction
    ) -> Array | None:
        """Measured seconds per FLOP, averaged over the nearest points in log space, times FLOP.

        None where the machine has no curve.
        """
        if self.attention is None:
            return None
        points = self.attention.points
        sizes = np.array([[p.rows, p.positions, p.head_width] for p in points], dtype=float)
        seconds = np.array([getattr(p, direction) for p in points], dtype=float)
        per_flop = np.log(seconds / (sizes[:, 0] * sizes[:, 1] ** 2 * sizes[:, 2]))
        wanted = np.broadcast_arrays(rows, positions, head_width)
        flat = np.stack([np.ravel(each) for each in wanted], axis=1)
        rate = _near(flat, sizes, per_flop, scale=(_ROWS_WEIGHT, 1.0, 1.0))
        seconds = rate * flat[:, 0] * flat[:, 1] ** 2 * flat[:, 2]
        return np.asarray(seconds.reshape(wanted[0].shape))

    def kernel_seconds(self, operation: str, elements: Array, direction: Direction) -> Array | None:
        """Interpolated between sizes in log-log; beyond the largest in proportion; below the
        smallest on a line towards one launch. None where the machine has no curve.
        """
        curve = self.kernels.get(operation)
        if curve is None:
            return None
        points = sorted(curve.points, key=lambda point: point.elements)
        sizes = np.array([float(point.elements) for point in points])
        seconds = np.maximum([getattr(point, direction) for point in points], 1e-12)
        between = np.exp(
            np.interp(np.log(np.maximum(elements, 1.0)), np.log(sizes), np.log(seconds))
        )
        floor = min(self.launch, float(seconds[0]))
        below = floor + (seconds[0] - floor) * elements / sizes[0]
        beyond = seconds[-1] * elements / sizes[-1]
        result = np.where(elements < sizes[0], below, between)
        return np.asarray(np.where(elements > sizes[-1], beyond, result))


def precisions(machine: Machine) -> tuple[TrainingPrecision, ...]:
    """The training precisions in which the machine is known to multiply matrices."""
    known = {curve.precision for curve in machine.device.matmul}
    wanted: tuple[TrainingPrecision, ...] = ("bf16", "fp32")
    return tuple(name for name in wanted if name in known)


def matmul_peak(machine: Machine, setting: Setting) -> float:
    """FLOP/s that the machine reaches on large products."""
    return float(_matmul(machine, setting).peak.value)


def _formula(curve: MatmulCurve, sizes: Array) -> Array:
    halves = np.array([curve.half_m, curve.half_n, curve.half_k])
    slowdown = (1 + halves / sizes).prod(axis=1)
    body = 2.0 * sizes.prod(axis=1) * slowdown / float(curve.peak.value)
    return np.asarray(float(curve.launch) + body)


def _line(work: Array, seconds: Array) -> Callable[[Array], Array]:
    """Start and rate by least squares of the relative error, neither below zero."""
    columns = np.stack([np.ones_like(work), work], axis=1) / seconds[:, None]
    (start, rate), *_ = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)
    start = max(float(start), 0.0)
    rate = max(float(rate), float((seconds / work).min()) / 2)
    return lambda wanted: start + rate * wanted


def _heads(sizes: Array) -> Array:
    """(heads of all sequences that have keys of their own, queries that share them, width, keys,
    what is read in turn)
    """
    heads = sizes[:, 0] * sizes[:, 1]
    return np.stack([heads, sizes[:, 2], sizes[:, 3], sizes[:, 5], sizes[:, 6]], axis=1)


def _near(
    wanted: Array, sizes: Array, logs: Array, scale: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> Array:
    """exp of the mean of `logs`, weighted by the inverse fourth power of the distance in log size
    (Shepard 1968, doi:10.1145/800186.810616): exact at the points, tame between and beyond them.
    """
    place: npt.NDArray[np.intp] | slice = slice(None)
    if len(wanted) > _FEW:
        wanted, place = np.unique(wanted, axis=0, return_inverse=True)
    difference = (np.log(wanted)[:, None, :] - np.log(sizes)[None, :, :]) * np.array(scale)
    weight = 1.0 / ((difference**2).sum(axis=2) + _CLOSE) ** 2
    mean = (weight * logs).sum(axis=1) / weight.sum(axis=1)
    return np.asarray(np.exp(mean)[place].ravel())


def _matmul(machine: Machine, setting: Setting) -> MatmulCurve:
    for curve in machine.device.matmul:
        if curve.precision == setting.precision:
            return curve
    raise BadInput(
        f"{machine.name} has no {setting.precision} matmul figures",
        hint="narrows probe --refresh   (measures them)",
    )


def _attention(machine: Machine, setting: Setting) -> AttentionCurve | None:
    for curve in machine.device.attention:
        same = (curve.kernels, curve.precision) == (setting.kernels, setting.precision)
        if same and curve.points:
            return curve
    return None


def _compiled_speedup(machine: Machine, setting: Setting) -> float:
    """How many times faster a compiled block is, where no compiled kernel was measured."""
    speedup = machine.compiler.speedup
    measured = any(curve.compiled for curve in machine.device.kernels)
    return float(speedup.value) if setting.compile and speedup and not measured else 1.0


def _kernels(machine: Machine, setting: Setting) -> dict[str, KernelCurve]:
    """By operation: the compiled curve where compiling is planned and was measured, else eager."""
    found: dict[str, KernelCurve] = {}
    for curve in machine.device.kernels:
        if (curve.kernels, curve.precision) != (setting.kernels, setting.precision):
            continue
        if not curve.points or (curve.compiled and not setting.compile):
            continue
        if curve.operation not in found or curve.compiled:
            found[curve.operation] = curve
    return found
