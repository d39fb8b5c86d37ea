"""Every layout of a step that the job allows, evaluated at once; the best of those that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.plan.cost import step_seconds
from narrows.plan.curves import precisions
from narrows.plan.family import divisors
from narrows.plan.layouts import Array, Layouts, Setting, Shapes
from narrows.plan.memory import MemoryBytes, memory_bytes
from narrows.spec.errors import BadInput
from narrows.spec.job import LayoutIntent
from narrows.spec.layout import Layout
from narrows.spec.machine import Machine

# Of the free memory, what a plan may count on: predicted peaks are meant to be within 5 %.
MEMORY_SHARE = 0.95
# Two layouts closer than this are equal as far as predictions tell, and the leaner one is taken.
TIE = 0.02
_CHUNK_LEAST = 128


@dataclass(frozen=True, kw_only=True)
class Found:
    """All candidates of one search: seconds and bytes, flat over groups, [models, candidates]."""

    groups: tuple[Layouts, ...]
    step: Array
    peak: Array
    once: Array
    group: npt.NDArray[np.intp]
    within: npt.NDArray[np.intp]
    limit: float

    def layout(self, index: int) -> Layout:
        """A candidate as a record."""
        return self.group_of(index).layout(int(self.within[index]))

    def group_of(self, index: int) -> Layouts:
        """The candidates that share a setting with this one."""
        return self.groups[int(self.group[index])]

    def column(self, name: str) -> npt.NDArray[np.generic]:
        """One choice of every candidate: a field of `Layouts` or of `Setting`."""
        return np.concatenate([_column(layouts, name) for layouts in self.groups])

    def best(
        self,
        steps: float,
        *,
        model: int = 0,
        among: npt.NDArray[np.bool_] | None = None,
        fitting: bool = True,
    ) -> int | None:
        """The candidate that ends `steps` first, ties going to less memory; None if none fits."""
        total = self.step[model] * steps + self.once[model]
        allowed = np.ones(total.size, dtype=bool) if among is None else among
        if fitting:
            allowed = allowed & (self.peak[model] <= self.limit)
        if not allowed.any():
            return None
        least = total[allowed].min()
        close = allowed & (total <= least * (1 + TIE))
        return int(np.where(close, self.peak[model], np.inf).argmin())


def search(
    shapes: Shapes, candidates: Sequence[Layouts], machine: Machine, *, memory_scale: float = 1.0
) -> Found:
    """Evaluate all candidates for all models."""
    step, peak, once, group, within = [], [], [], [], []
    for number, layouts in enumerate(candidates):
        size = layouts.micro_batch.size
        step.append(step_seconds(shapes, layouts, machine))
        peak.append(peak_bytes(shapes, layouts, machine).peak)
        compiling = compile_seconds(shapes, machine) if layouts.setting.compile else 0.0
        once.append(np.zeros_like(step[-1]) + compiling)
        group.append(np.full(size, number))
        within.append(np.arange(size))
    return Found(
        groups=tuple(candidates),
        step=np.concatenate(step, axis=1),
        peak=np.concatenate(peak, axis=1),
        once=np.concatenate(once, axis=1),
        group=np.concatenate(group),
        within=np.concatenate(within),
        limit=memory_limit(machine) * memory_scale,
    )


def candidates(
    intent: LayoutIntent, machine: Machine, batch_sequences: int, context: int
) -> list[Layouts]:
    """Every layout that the intent leaves open, grouped by the setting that selects curves.

    Raises BadInput where the intent asks for what the machine or the batch cannot do.
    """
    _check(intent, machine, batch_sequences)
    own = batch_sequences // intent.batches
    micro = [intent.micro_batch] if intent.micro_batch else divisors(own)
    recompute = [intent.recompute == "full"] if intent.recompute else [False, True]
    threads = intent.threads or machine.device.threads
    rows: list[tuple[int, bool, int]] = [
        (each, again, chunk)
        for each in micro
        for again in recompute
        for chunk in _chunks(intent, each * context)
    ]
    table = np.array(rows, dtype=float)
    return [
        Layouts(
            setting=setting,
            micro_batch=table[:, 0],
            accumulation=batch_sequences / table[:, 0],
            recompute=table[:, 1],
            threads=np.full(len(rows), float(threads)),
            loss_chunk=table[:, 2],
        )
        for setting in _settings(intent, machine)
    ]


def peak_bytes(shapes: Shapes, layouts: Layouts, machine: Machine) -> MemoryBytes:
    """Memory of `layouts` as this machine's past runs corrected it."""
    return memory_bytes(shapes, layouts, machine.calibration)


def memory_limit(machine: Machine) -> float:
    """Bytes that a plan may count on."""
    return float(machine.device.memory.free.value) * MEMORY_SHARE


def compile_seconds(shapes: Shapes, machine: Machine) -> Array:
    """What torch.compile costs once, before the first step."""
    seconds = machine.compiler.seconds_per_block
    return shapes.layers * (float(seconds.value) if seconds else 0.0)


def _column(layouts: Layouts, name: str) -> npt.NDArray[np.generic]:
    if hasattr(layouts, name):
        return np.asarray(getattr(layouts, name))
    return np.full(layouts.micro_batch.size, getattr(layouts.setting, name))


def _settings(intent: LayoutIntent, machine: Machine) -> list[Setting]:
    every = (
        Setting(precision=precision, kernels=kernels, compile=compiled)
        for precision in ([intent.precision] if intent.precision else precisions(machine))
        for kernels in ([intent.kernels] if intent.kernels else machine.kernel_sets)
        for compiled in ([False, True] if intent.compile is None else [intent.compile])
    )
    fine = [setting for setting in every if _works(setting, machine)]
    if not _in_two_passes(intent):
        return fine
    return [each for each in fine if each.kernels != "native" and not each.compile]


def _in_two_passes(intent: LayoutIntent) -> bool:
    """Whether backward goes for inputs first and for weights later, as a zero-bubble pipeline does:
    compiled blocks cannot, and native kernels do all of it in each.
    """
    return intent.schedule == "zero_bubble" and (intent.pipeline or 1) > 1


def _works(setting: Setting, machine: Machine) -> bool:
    """Native kernels are bf16, fused already, and closed to a compiler."""
    if setting.kernels == "native":
        return setting.precision == "bf16" and not setting.compile
    return machine.compiler.available or not setting.compile


def _chunks(intent: LayoutIntent, tokens: int) -> list[int]:
    if intent.loss_chunk:
        return [min(intent.loss_chunk, tokens)]
    powers = []
    chunk = _CHUNK_LEAST
    while chunk < tokens:
        powers.append(chunk)
        chunk *= 2
    return [*powers, tokens][-8:]


def _check(intent: LayoutIntent, machine: Machine, batch_sequences: int) -> None:
    micro = intent.micro_batch
    own = batch_sequences // intent.batches
    if micro is not None and own % micro:
        near = ", ".join(str(each) for each in divisors(own))
        raise BadInput(
            f"a batch of {own} sequences cannot be cut into micro-batches of {micro}",
            hint=f"--set layout.micro_batch=N with N one of {near}",
        )
    if intent.threads is not None and intent.threads > machine.device.threads:
        raise BadInput(
            f"layout.threads is {intent.threads}, and this machine allows {machine.device.threads}",
            hint=f"--set layout.threads={machine.device.threads}, or leave it out",
        )
    if intent.kernels is not None and intent.kernels not in machine.kernel_sets:
        raise BadInput(
            f"{intent.kernels} kernels do not run on {machine.name}",
            hint="narrows doctor   (says why); or --set layout.kernels=torch",
        )
    if _in_two_passes(intent) and (intent.kernels == "native" or intent.compile):
        what = "compiled blocks cannot" if intent.compile else "native kernels would work twice to"
        key = "compile=false" if intent.compile else "kernels=torch"
        raise BadInput(
            f"{what} go backward in two passes, as a zero-bubble pipeline does",
            hint=f"--set layout.{key}, or --set layout.schedule=1f1b",
        )
    if intent.kernels == "native" and (intent.compile or intent.precision == "fp32"):
        what = "compiled" if intent.compile else "run in fp32"
        raise BadInput(
            f"native kernels cannot be {what}", hint="--set layout.kernels=torch, or leave it out"
        )
    if intent.compile and not machine.compiler.available:
        raise BadInput(
            f"torch.compile does not work here: {machine.compiler.reason}",
            hint="--set layout.compile=false, or narrows doctor",
        )
    if intent.precision is not None and intent.precision not in precisions(machine):
        known = ", ".join(precisions(machine))
        raise BadInput(
            f"{machine.name} has no {intent.precision} matmul figures",
            hint=f"--set layout.precision=... with one of {known}, or narrows probe --refresh",
        )
