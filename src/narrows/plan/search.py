"""Every layout of a step that the job allows, evaluated at once; the best of those that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from narrows.plan.curves import precisions
from narrows.plan.family import divisors
from narrows.plan.heap import Heap
from narrows.plan.layouts import SPREAD, Array, Layouts, Setting, Shapes
from narrows.plan.optimizer import check_device
from narrows.plan.processes import check, counts, spreads
from narrows.plan.together import hosts, peak_bytes, step, step_seconds, usual_threads
from narrows.spec.adapter import LowRank
from narrows.spec.errors import BadInput
from narrows.spec.job import LayoutIntent
from narrows.spec.layout import RECOMPUTES, Layout
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec

# Of the free memory, what a plan may count on: predicted peaks are meant to be within 5 %.
MEMORY_SHARE = 0.95
# Two layouts closer than this are equal as far as predictions tell, and the leaner one is taken.
TIE = 0.02
_CHUNK_LEAST = 128
_ARRAYS = ("micro_batch", "accumulation", "recompute", "loss_chunk")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All candidates of one search: seconds and bytes, flat over groups, [models, candidates]. Of
    several processes `peak` is what those of one host take together, and `told` the part of the
    step in which they tell each other something, or wait.
    """

    groups: tuple[Layouts, ...]
    step: Array
    peak: Array
    once: Array
    told: Array
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

    @property
    def axes(self) -> npt.NDArray[np.int64]:
        """Of each candidate, along how many axes processes compute parts of one sequence: what is
        least like one process, and least sure to be predicted.
        """
        names = ("tensor", "pipeline", "context")
        cut = np.stack([self.column(name).astype(np.int64) > 1 for name in names])
        return np.asarray(cut.sum(axis=0))

    def best(
        self,
        steps: float,
        *,
        model: int = 0,
        among: npt.NDArray[np.bool_] | None = None,
        fitting: bool = True,
    ) -> int | None:
        """The candidate that ends `steps` first, ties going to fewer axes and then to less memory;
        None if none fits.
        """
        total = self.step[model] * steps + self.once[model]
        allowed = np.ones(total.size, dtype=bool) if among is None else among
        if fitting:
            allowed = allowed & (self.peak[model] <= self.limit)
        if not allowed.any():
            return None
        least = total[allowed].min()
        close = allowed & (total <= least * (1 + TIE))
        close &= self.axes == self.axes[close].min()
        return int(np.where(close, self.peak[model], np.inf).argmin())


def search(
    shapes: Shapes, candidates: Sequence[Layouts], machine: Machine, *, reads_text: bool = False
) -> Found:
    """Evaluate all candidates for all models, in runs that read a text or only take steps."""
    more = Heap.of(machine).run(reads_text=reads_text)
    if isinstance(shapes.learning.adapter, LowRank):
        # Low-rank products are added where the product that would be kept lies.
        candidates = [_unselective(each) for each in candidates if not each.selective.all()]
    taken, peak, once, told, group, within = [], [], [], [], [], []
    for number, layouts in enumerate(candidates):
        size = layouts.micro_batch.size
        if layouts.spread is None:
            taken.append(step_seconds(shapes, layouts, machine))
            told.append(np.zeros_like(taken[-1]))
        else:
            found = step(shapes, layouts, machine)
            taken.append(found.seconds[np.newaxis])
            told.append(found.telling[np.newaxis])
        local = layouts.spread.processes // hosts(layouts.spread, machine) if layouts.spread else 1
        peak.append(local * peak_bytes(shapes, layouts, machine).peak + more)
        compiling = compile_seconds(shapes, machine) if layouts.setting.compile else 0.0
        once.append(np.zeros_like(taken[-1]) + compiling)
        group.append(np.full(size, number))
        within.append(np.arange(size))
    return Found(
        groups=tuple(candidates),
        step=np.concatenate(taken, axis=1),
        peak=np.concatenate(peak, axis=1),
        once=np.concatenate(once, axis=1),
        told=np.concatenate(told, axis=1),
        group=np.concatenate(group),
        within=np.concatenate(within),
        limit=memory_limit(machine),
    )


def options(intent: LayoutIntent, machine: Machine, model: ModelSpec, batch: int) -> list[Layouts]:
    """Every layout that the intent leaves open, of one process or of several.

    Raises BadInput where the intent asks for what the machine, the model or the batch cannot do.
    """
    check(intent, model, batch)
    found: list[Layouts] = []
    for count in counts(intent, machine):
        if count == 1:
            found += candidates(intent, machine, batch, model.context)
            continue
        ways = list(spreads(intent, model, batch, count))
        several = [each for way in ways for each in _spread(intent, machine, model, (way, batch))]
        found += several
        if not several and count == (intent.processes or intent.given):
            raise BadInput(
                f"a model of {model.layers} layers and {model.heads} heads cannot be divided among "
                f"{count} processes with {batch} sequences a step",
                hint=f"--set train.batch_sequences=N with N a multiple of {count}, and no "
                "layout.micro_batch",
            )
    return found


def _spread(
    intent: LayoutIntent, machine: Machine, model: ModelSpec, spread: tuple[dict[str, Any], int]
) -> Iterator[Layouts]:
    """Micro-batches and settings of one way to spread a batch."""
    way, batch = spread
    known = LayoutIntent(**{**msgspec.structs.asdict(intent), **way, "processes": None})
    own = batch // known.batches
    if known.given != intent.given and own % (intent.micro_batch or 1):
        return
    if _in_two_passes(known) and not _in_two_passes(intent) and _only_at_once(intent):
        return
    if intent.recompute == "selective" and _divided(known) and not _divided(intent):
        return
    for layouts in candidates(known, machine, batch, model.context):
        p, m = way["pipeline"], layouts.accumulation
        full = way["schedule"] == "gpipe" or p == 1
        whole = way["schedule"] != "1f1b" or way["interleave"] == 1 or p == 1
        running = np.flatnonzero((full | (m >= p)) & (whole | (m % p == 0)))
        if not running.size:
            continue
        chosen = {name: getattr(layouts, name)[running] for name in _ARRAYS}
        layout = msgspec.structs.replace(layouts.layout(0), **way)
        threads = intent.threads or usual_threads(layout, machine)
        yield replace(
            layouts, **{**chosen, "threads": np.full(running.size, float(threads))}, spread=layout
        )  # fmt: skip


def candidates(
    intent: LayoutIntent, machine: Machine, batch_sequences: int, context: int
) -> list[Layouts]:
    """Every layout that the intent leaves open, grouped by the setting that selects curves.

    Raises BadInput where the intent asks for what the machine or the batch cannot do.
    """
    _check(intent, machine, batch_sequences)
    own = batch_sequences // intent.batches
    micro = [intent.micro_batch] if intent.micro_batch else divisors(own)
    open_ = RECOMPUTES[:2] if _divided(intent) else RECOMPUTES
    asked = [intent.recompute] if intent.recompute else open_
    recompute = [RECOMPUTES.index(each) for each in asked]
    threads = intent.threads or machine.device.threads
    rows: list[tuple[int, int, int]] = [
        (each, again, chunk)
        for each in micro
        for again in recompute
        for chunk in _chunks(intent, each * context)
    ]
    table = np.array(rows, dtype=float)
    found = [
        Layouts(
            setting=setting,
            micro_batch=table[:, 0],
            accumulation=own / table[:, 0],
            recompute=table[:, 1],
            threads=np.full(len(rows), float(threads)),
            loss_chunk=table[:, 2],
            offload=intent.offload or "none",
            offload_folder=intent.offload_folder,
        )
        for setting in _settings(intent, machine)
    ]
    plain = [each if _selects(each.setting) else _unselective(each) for each in found]
    return [each for each in plain if each.micro_batch.size]


def _divided(intent: LayoutIntent) -> str | None:
    """An axis that blocks tell each other things along, which they would do again."""
    axes = ("tensor", "pipeline", "context", "expert")
    return next((each for each in axes if (getattr(intent, each) or 1) > 1), None)


def _selects(setting: Setting) -> bool:
    """Whether operations can be told apart: native kernels keep next to nothing but products
    anyway, and a compiled block is one operation.
    """
    return setting.kernels == "torch" and not setting.compile


def _unselective(layouts: Layouts) -> Layouts:
    return layouts.those(layouts.selective == 0.0)


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
    if name == "processes" or name in SPREAD:
        layout = layouts.spread or layouts.layout(0)
        return np.full(layouts.micro_batch.size, getattr(layout, name))
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


def _only_at_once(intent: LayoutIntent) -> bool:
    """Whether what is asked for goes backward in one pass alone."""
    return intent.kernels == "native" or intent.compile is True


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
    if _in_two_passes(intent) and _only_at_once(intent):
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
    _check_offload(intent, machine)
    if intent.recompute == "selective":
        _check_selective(intent)
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


def _check_offload(intent: LayoutIntent, machine: Machine) -> None:
    """Raises BadInput where there is nothing to offload to, or nobody knows how quick it is."""
    device, disk = machine.device, machine.disk
    check_device(intent.offload or "none", device.kind)
    unknown = None
    if intent.offload == "host" and device.host_link is None:
        unknown = f"what joins {device.name} to its host"
    if intent.offload == "disk" and {disk.read.basis, disk.write.basis} != {"measured"}:
        unknown = f"the disk of {machine.name}"
    if unknown is not None:
        raise BadInput(
            f"{unknown} was not measured: what offloading takes is not known",
            hint="narrows probe --refresh, or leave layout.offload out",
        )
    if intent.offload_folder is not None and intent.offload != "disk":
        raise BadInput(
            f"layout.offload_folder is {intent.offload_folder}, and nothing is offloaded to a disk",
            hint="--set layout.offload=disk, or leave it out",
        )


def _check_selective(intent: LayoutIntent) -> None:
    """Raises BadInput where operations cannot be told apart, or would tell others things again."""
    if intent.kernels == "native" or intent.compile:
        what = "native kernels" if intent.kernels == "native" else "compiled blocks"
        raise BadInput(
            f"{what} keep what they need as a whole: none of it is computed again selectively",
            hint='--set layout.recompute="full", or layout.kernels=torch and layout.compile=false',
        )
    if axis := _divided(intent):
        raise BadInput(
            f"selective recompute is of whole blocks, and layout.{axis} is {getattr(intent, axis)}",
            hint=f'--set layout.recompute="full", or leave out layout.{axis}',
        )
