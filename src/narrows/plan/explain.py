"""Why this layout: each choice beside the best that could be had without it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrows.plan.processes import named
from narrows.plan.search import Found
from narrows.spec.layout import RECOMPUTES, Layout
from narrows.spec.machine import Machine
from narrows.spec.plan import Alternative
from narrows.spec.units import Seconds

_Mask = npt.NDArray[np.bool_]
_RECOMPUTE = {"full": "recompute", "selective": "selective recompute"}
_CHOICES = ("precision", "kernels", "compile", "recompute", "micro_batch", "loss_chunk")
_SPREAD = ("processes", "data", "tensor", "pipeline", "sharding", "schedule", "interleave")
"""Of several processes."""
_ALTERNATIVES = 6
_TOLD_LEAST = 0.005


def layout_whys(found: Found, chosen: int, steps: int, asked: set[str]) -> dict[str, str]:
    """A reason for every choice of the layout."""
    whys: dict[str, str] = {}
    for name in _choices(found):
        if name in asked:
            continue
        other = _best_other(found, chosen, name, steps)
        column = found.column(name)
        if other is None:
            if len(set(column.tolist())) == 1:
                whys[f"layout.{name}"] = "the only one that works here"
            else:
                whys[f"layout.{name}"] = "nothing else fits memory"
            continue
        verdict = _verdict(found, chosen, other, steps)
        whys[f"layout.{name}"] = f"next best, {_said(name, column[other])}: {verdict}"
    return whys


def alternatives(
    found: Found, chosen: int, steps: int, seconds_besides: float
) -> tuple[Alternative, ...]:
    """The best layout for each choice made otherwise, quickest first."""
    others: list[int] = []
    for name in _choices(found):
        other = _best_other(found, chosen, name, steps, fitting=False)
        if other is not None and other not in others:
            others.append(other)
    total = found.step[0] * steps + found.once[0]
    others.sort(key=lambda index: float(total[index]))
    return tuple(
        Alternative(
            layout=found.layout(index),
            step_seconds=float(found.step[0, index]),
            memory_peak=float(found.peak[0, index]),
            total_seconds=float(total[index]) + seconds_besides,
            verdict=_verdict(found, chosen, index, steps),
        )
        for index in others[:_ALTERNATIVES]
    )


def described(layout: Layout) -> str:
    """A layout in one line."""
    parts = [
        *([named(layout)] if layout.processes > 1 else []),
        f"{layout.micro_batch} x {layout.accumulation}",
        layout.precision,
        f"{layout.kernels} kernels",
        *(["compiled"] if layout.compile else []),
        *([_RECOMPUTE[layout.recompute]] if layout.recompute in _RECOMPUTE else []),
        *([f"offloaded to {layout.offload}"] if layout.offload != "none" else []),
        f"loss in {layout.loss_chunk}s",
    ]
    return ", ".join(parts)


def threads_why(machine: Machine, threads: int) -> str:
    """Why so many threads."""
    allowed = machine.device.threads
    return f"all that are allowed: {allowed}" if threads == allowed else f"of {allowed} allowed"


def _choices(found: Found) -> tuple[str, ...]:
    """What was open, or of interest where nothing else works."""
    return (
        *(name for name in _SPREAD if len(set(found.column(name).tolist())) > 1), *_CHOICES
    )  # fmt: skip


def _best_other(
    found: Found, chosen: int, name: str, steps: int, *, fitting: bool = True
) -> int | None:
    column = found.column(name)
    among: _Mask = column != column[chosen]
    best = found.best(steps, among=among)
    return best if best is not None or fitting else found.best(steps, among=among, fitting=False)


def _verdict(found: Found, chosen: int, other: int, steps: int) -> str:
    peak, step = found.peak[0], found.step[0]
    if peak[other] > found.limit:
        return f"does not fit: {peak[other] / 1e9:.2f} GB of {found.limit / 1e9:.2f} GB"
    total = step * steps + found.once[0]
    ratio = total[other] / total[chosen]
    saved = (step[chosen] - step[other]) * steps
    extra = found.once[0, other] - found.once[0, chosen]
    if saved > 0 and extra > 0:
        return f"saves {Seconds(saved).text(2)} and costs {Seconds(extra).text(2)} to compile"
    memory = peak[other] / peak[chosen]
    quick = f"{ratio:.2f}x the time" if abs(ratio - 1.0) > 0.01 else "as quick"
    told = found.told[0, other] / step[other]
    waiting = f", {told:.0%} of it for the network or waiting" if told > _TOLD_LEAST else ""
    return f"{quick}{waiting}, {memory:.2f}x the memory"


def _said(name: str, value: object) -> str:
    if name == "recompute":
        chosen = RECOMPUTES[int(value)] if isinstance(value, float) else str(value)
        return f"{'no' if chosen == 'none' else chosen} recompute"
    if name == "compile":
        return "torch.compile" if value else "no compile"
    if name in ("tensor", "pipeline", "data"):
        return f"{name} {value}"
    if name in ("processes", "interleave"):
        return f"{value} {'pieces a stage' if name == 'interleave' else name}"
    if name == "sharding":
        return f"sharding {value}"
    words = {"micro_batch": "a micro-batch of {}", "loss_chunk": "loss chunks of {}"}
    number = f"{value:.0f}" if isinstance(value, float) else str(value)
    return words.get(name, "{}").format(number) + (" kernels" if name == "kernels" else "")
