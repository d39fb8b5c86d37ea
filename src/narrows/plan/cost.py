"""Operations and a machine's curves → seconds: a pure function, run again for every question.

A call costs its launch and its body. The body comes from a measured curve, or from the roofline
max(FLOP / peak, bytes / bandwidth) (Williams et al. 2009, doi:10.1145/1498765.1498785) where there
is none. `Scales` multiplies a resource: the roofline says what part of a body that resource holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from msgspec.structs import replace

from narrows.plan.curves import Curves
from narrows.plan.fleet.constants import HOST_MEMORY
from narrows.plan.layouts import Array, Layouts, Shapes
from narrows.plan.operation import (
    CachedAttention,
    CausalAttention,
    Launch,
    Operation,
    Pointwise,
    Product,
    StreamedProduct,
    Transfer,
    Way,
)
from narrows.plan.operations import block_operations, evaluation_operations, step_operations
from narrows.spec.machine import BlockPoint, Machine
from narrows.spec.model import ModelSpec, gpt2, llama


class Scales(msgspec.Struct, frozen=True, kw_only=True):
    """What each resource of the machine is multiplied by."""

    compute: float = 1.0
    bandwidth: float = 1.0
    launch: float = 1.0
    storage: float = 1.0
    link_bandwidth: float = 1.0
    link_latency: float = 1.0


AS_IS = Scales()


def step_seconds(
    model: Shapes, layouts: Layouts, machine: Machine, scales: Scales = AS_IS
) -> Array:
    """Seconds of one optimizer step, [models, layouts]."""
    factor = block_factor(model, layouts, machine)
    operations = step_operations(model, layouts)
    return sum_seconds(operations, layouts, machine, scales, block=factor)


def evaluation_seconds(model: Shapes, layouts: Layouts, machine: Machine) -> Array:
    """Seconds of the forward pass of one micro-batch, [models, layouts]."""
    factor = block_factor(model, layouts, machine)
    operations = evaluation_operations(model, layouts)
    return sum_seconds(operations, layouts, machine, AS_IS, block=factor)


def sum_seconds(
    operations: Iterable[Operation], layouts: Layouts, machine: Machine, scales: Scales,
    *, block: Array | float = 1.0,
) -> Array:  # fmt: skip
    """Seconds of all calls of all operations; those in a block times `block`."""
    curves = Curves.of(machine, layouts.setting)
    total: Array = np.zeros((1, layouts.micro_batch.size))
    for operation in operations:
        seconds = operation_seconds(operation, layouts, machine, curves, scales=scales)
        total = total + seconds * (block if operation.in_block else 1.0)
    return total


def block_factor(model: Shapes, layouts: Layouts, machine: Machine) -> Array:
    """What a whole block takes over the sum of its operations, [models, layouts]: interpolated
    between the blocks that `machine` has measured, by the logarithm of the stream's elements; one
    where it has measured none.
    """
    measured = _measured_blocks(model, layouts, machine)
    if not measured:
        return np.ones((1, 1))
    points, specs = zip(*measured, strict=True)
    ones = np.ones(len(points))
    alone = replace(
        layouts, micro_batch=np.array([float(point.sequences) for point in points]),
        accumulation=ones, recompute=0.0 * ones, threads=machine.device.threads * ones,
        loss_chunk=ones,
    )  # fmt: skip
    # Of each model with each micro-batch; its own is on the diagonal.
    expected = sum_seconds(block_operations(Shapes.of(specs), alone), alone, machine, AS_IS)
    ratios = np.array([point.seconds for point in points]) / np.diagonal(expected)
    sizes = np.array([point.sequences * point.positions * point.width for point in points])
    order = np.argsort(sizes)
    wanted = np.log(layouts.micro_batch * model.context * model.width)
    logs = np.interp(wanted, np.log(sizes)[order], np.log(ratios)[order])
    return np.asarray(np.exp(logs))


def _measured_blocks(
    model: Shapes, layouts: Layouts, machine: Machine
) -> list[tuple[BlockPoint, ModelSpec]]:
    """Points of the curve nearest in kind, each with the model whose blocks it measured."""
    setting = layouts.setting
    curves = [
        curve
        for curve in machine.device.blocks
        if (curve.kernels, curve.precision) == (setting.kernels, setting.precision)
    ]
    if not curves:
        return []
    kind = "llama" if model.gated else "gpt2"
    curve = max(curves, key=lambda each: each.kind == kind)
    make = llama if curve.kind == "llama" else gpt2
    return [
        (point, make(layers=1, width=point.width, heads=point.width // point.head_width,
                     vocabulary=1, context=point.positions))
        for point in curve.points
    ]  # fmt: skip


def operation_seconds(
    operation: Operation,
    layouts: Layouts,
    machine: Machine,
    curves: Curves,
    *,
    scales: Scales = AS_IS,
) -> Array:
    """Seconds of all calls of one operation, corrected by what past runs measured for its kind."""
    launch, body = _call_seconds(operation, machine, curves, scales)
    body = body * curves.threads / layouts.threads
    factor = machine.calibration.get(operation.kind, 1.0)
    if operation.in_block:
        factor /= curves.compiled_speedup
    return operation.count * (launch + body) * factor


def _call_seconds(
    operation: Operation, machine: Machine, curves: Curves, scales: Scales
) -> tuple[float | Array, Array]:
    """Launch and body of one call; the body with all of the device's threads."""
    work = operation.work
    bandwidth = curves.bandwidth(operation.memory_bytes)
    moving = operation.memory_bytes / bandwidth
    match work:
        case Product(m=m, n=n, k=k):
            measured = curves.matmul_seconds(m, n, k, work.direction)
            launch, body = _split(measured, float(curves.matmul.launch))
            return launch / scales.launch, body * _relief(operation, curves, moving, scales)
        case StreamedProduct(m=m, n=n, k=k, working_set=working_set):
            measured = curves.streamed_seconds(m, n, k, working_set)
            launch, body = _split(measured, float(curves.matmul.launch))
            return launch / scales.launch, body * _relief(operation, curves, moving, scales)
        case CachedAttention():
            return _attention(operation, curves.cached_seconds(work), curves, scales)
        case CausalAttention(rows=rows, positions=positions, head_width=width):
            known = curves.attention_seconds(rows, positions, width, work.direction)
            return _attention(operation, known, curves, scales)
        case Pointwise(operation=name, elements=elements):
            known = curves.kernel_seconds(name, elements, work.direction)
            launch, body = _split(moving + curves.launch if known is None else known, curves.launch)
            held = np.minimum(body, moving)
            rest = body - held
            return launch / scales.launch, held / scales.bandwidth + rest / scales.compute
        case Launch():
            return curves.launch / scales.launch, operation.flop
        case Transfer(way=way, sharers=sharers):
            rate = _rate(way, machine, scales) / sharers
            # No thread more makes it quicker.
            return operation.memory_bytes / rate, 0 * operation.memory_bytes


def _rate(way: Way, machine: Machine, scales: Scales) -> float:
    """Bytes a second."""
    match way:
        case "read":
            return float(machine.disk.read.value) * scales.storage
        case "write":
            return float(machine.disk.write.value) * scales.storage
        case "link":
            assert machine.device.host_link is not None
            return float(machine.device.host_link.value) * scales.link_bandwidth
        case "host":
            return HOST_MEMORY


def _attention(
    operation: Operation, known: Array | None, curves: Curves, scales: Scales
) -> tuple[float, Array]:
    moving = operation.memory_bytes / curves.bandwidth(operation.memory_bytes)
    if known is None:
        known = np.maximum(_computing(operation, curves), moving) + curves.launch
    launch, body = _split(known, curves.launch)
    return launch / scales.launch, body * _relief(operation, curves, moving, scales)


def _split(measured: Array, launch: float) -> tuple[float, Array]:
    """A measured call as its launch and what remains; a call is never shorter than its body."""
    least = float(np.min(measured)) if measured.size else 0.0
    launch = min(launch, least)
    return launch, measured - launch


def _computing(operation: Operation, curves: Curves) -> Array:
    return operation.flop / float(curves.matmul.peak.value)


def _relief(operation: Operation, curves: Curves, moving: Array, scales: Scales) -> Array:
    """What remains of a body when compute and bandwidth are scaled, by the roofline's ratio."""
    computing = _computing(operation, curves)
    before = np.maximum(computing, moving)
    after = np.maximum(computing / scales.compute, moving / scales.bandwidth)
    return np.asarray(after / np.maximum(before, 1e-30))
