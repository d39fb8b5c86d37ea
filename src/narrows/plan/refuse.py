"""A job that does not fit is refused with its largest causes and a change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.optimizer import able, checkpoint_bytes, offloaded_bytes
from narrows.plan.search import Found, options, search
from narrows.plan.together import peak_bytes
from narrows.spec.adapter import Learning
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.exchange import EXACT
from narrows.spec.job import Job, LayoutIntent
from narrows.spec.layout import Layout
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec
from narrows.spec.optimizer import Optimizer

_PINNABLE = ("recompute", "micro_batch", "loss_chunk", "precision", "kernels", "compile")
_CONTEXT_LEAST = 64


def refusal(
    job: Job, machine: Machine, model: ModelSpec, batch_sequences: int, found: Found
) -> DoesNotFit:
    """The error for a search in which no candidate fits."""
    least = int(found.peak[0].argmin())
    needed = float(found.peak[0, least])
    shapes = Shapes.of([model], learning=_learning(job))
    memory = peak_bytes(shapes, found.group_of(least), machine).record(0, int(found.within[least]))
    # Of several processes all count that share a host.
    often = needed / memory.peak
    ranked = [(name, often * value) for name, value in memory.ranked()]
    largest = [f"{name} {_gigabytes(value)}" for name, value in ranked[:3]]
    other = sum(value for _, value in ranked[3:])
    return DoesNotFit(
        f"the job does not fit: {_gigabytes(needed)} needed, {_gigabytes(found.limit)} free on "
        f"{machine.device.kind} ({machine.device.name})",
        causes=[", ".join([*largest, f"other {_gigabytes(other)}"])],
        hint=_hint(
            job, model, _Where(
                machine, batch_sequences, found.groups[0].optimizer, _learning(job)
            ),
            float(found.step[0, least]),
        ),
    )  # fmt: skip


def check_disk(
    machine: Machine, shapes: Shapes, layout: Layout, optimizer: Optimizer, keep: int
) -> None:
    """Raises DoesNotFit where the checkpoints of a run, one of them being written, do not, with
    what is offloaded beside them.
    """
    value = Layouts.of(layout).setting.value_bytes
    one, away = checkpoint_bytes(shapes, value, optimizer), 0.0
    causes = [f"{keep + 2} of {_gigabytes(one)}: {keep} kept, the best, one being written"]
    if layout.offload == "disk" and layout.offload_folder is None:
        away = float(shapes.parameters_trained[0, 0]) * offloaded_bytes(optimizer, value)
        causes.append(f"{_gigabytes(away)} of the optimizer beside them")
    needed, free = one * (keep + 2) + away, float(machine.disk.free.value)
    if needed > free:
        raise DoesNotFit(
            f"the checkpoints do not fit: {_gigabytes(needed)} needed, {_gigabytes(free)} free on "
            f"{machine.disk.path}",
            causes=causes,
            hint="free some space, or train on another disk: --run DIR",
        )


def _hint(job: Job, model: ModelSpec, where: _Where, step: float) -> str:
    """The fastest single change of the layout that fits; else the optimizer's state in 8 bits, or
    somewhere else; else a shorter context, else fewer layers, each with what the layout must be.
    """
    offers: list[tuple[float, float, str]] = []
    for intent, name in _relaxed(job.layout):
        fit = _fastest(model, intent, where)
        if fit is not None:
            offers.append((fit.step, fit.peak, _sets(fit.layout, [name])))
    if offers:
        seconds, peak, change = min(offers)
        slower = f", {seconds / step:.1f}x the step time"
        return f"narrows plan job.toml {change}   ({_gigabytes(peak)}{slower})"
    if where.optimizer.state_bits == 32:
        narrow = msgspec.structs.replace(where.optimizer, state_bits=8)
        fit = _fastest(model, job.layout, where._replace(optimizer=narrow))
        if fit is not None:
            return f"narrows plan job.toml --set train.state_bits=8   ({_gigabytes(fit.peak)})"
    if job.layout.offload is None:
        there = "disk" if where.machine.device.kind == "cpu" else "host"
        fit = _fastest(model, msgspec.structs.replace(job.layout, offload=there), where)
        if fit is not None:
            told = f"{_gigabytes(fit.peak)}, {fit.step / step:.1f}x the step time"
            return f"narrows plan job.toml --set layout.offload={there}   ({told})"
    pinned = [name for _, name in _relaxed(job.layout)]
    for intent, names in ((job.layout, []), (LayoutIntent(), pinned)):
        for change, smaller in _smaller(model, intent, where):
            fit = _fastest(smaller, intent, where)
            if fit is not None:
                changes = " ".join([change, _sets(fit.layout, names)]).strip()
                return f"narrows plan job.toml {changes}   ({_gigabytes(fit.peak)})"
    return "a smaller model.width, or a machine with more memory"


class _Where(NamedTuple):
    """On what, with how many sequences a step, updated by what, and what learns."""

    machine: Machine
    batch: int
    optimizer: Optimizer
    learning: Learning


class _Fit(msgspec.Struct, frozen=True, kw_only=True):
    step: float
    peak: float
    layout: Layout


def _smaller(
    model: ModelSpec, intent: LayoutIntent, where: _Where
) -> Iterator[tuple[str, ModelSpec]]:
    """Ever shorter contexts, then the most layers that fit: memory grows with both."""
    context = model.context // 2
    while context >= _CONTEXT_LEAST:
        yield f"--set model.context={context}", msgspec.structs.replace(model, context=context)
        context //= 2
    low, high, most = 1, model.layers - 1, 0
    while low <= high:
        layers = (low + high) // 2
        thinner = msgspec.structs.replace(model, layers=layers)
        if _fastest(thinner, intent, where) is None:
            high = layers - 1
        else:
            most, low = layers, layers + 1
    if most:
        sized = f"--set model.layers={most} --set model.width={model.width}"
        yield sized, msgspec.structs.replace(model, layers=most)


def _relaxed(intent: LayoutIntent) -> Iterator[tuple[LayoutIntent, str]]:
    for name in _PINNABLE:
        if getattr(intent, name) is not None:
            yield msgspec.structs.replace(intent, **{name: None}), name


def _learning(job: Job) -> Learning:
    return Learning(adapter=job.train.adapter, frozen=job.train.frozen)


def _fastest(model: ModelSpec, intent: LayoutIntent, where: _Where) -> _Fit | None:
    machine = where.machine
    shapes = Shapes.of([model], learning=where.learning)
    try:
        open_ = options(intent, machine, model, where.batch)
        found = search(
            shapes, able(open_, where.optimizer, EXACT, "stop"), machine, reads_text=True
        )
    except BadInput:
        return None
    best = found.best(1.0)
    if best is None:
        return None
    return _Fit(
        step=float(found.step[0, best]), peak=float(found.peak[0, best]), layout=found.layout(best)
    )


def _sets(layout: Layout, names: list[str]) -> str:
    return " ".join(f"--set layout.{name}={_toml(getattr(layout, name))}" for name in names)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.0f} MB"
