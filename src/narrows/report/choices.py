"""The plan's choices: what was decided, the value, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from narrows.report.numbers import compact, plain
from narrows.report.reasons import reason
from narrows.report.words import CHOICES, LAYOUT, Phrase, same, spoken
from narrows.spec.exchange import EXACT
from narrows.spec.layout import Layout
from narrows.spec.model import GELU, Learned, ModelSpec, Rotary, SwiGLU
from narrows.spec.plan import Alternative, Plan
from narrows.spec.record import Record, to_builtins

_PLACES = ("layout", "model", "optimizer", "schedule", "evaluation", "checkpoints", "data")


class Choice(Record):
    """One decided value. `value` is empty where the name is not a field of the plan."""

    name: str
    label: Phrase
    value: Phrase
    why: Phrase


class Considered(Record):
    """One layout that was weighed, told by what it does otherwise than the chosen one."""

    chosen: bool
    difference: Phrase
    step_seconds: float
    memory_peak: float
    total_seconds: float
    verdict: Phrase


def choices(plan: Plan) -> tuple[Choice, ...]:
    """Every choice that has a why, then how gradients are exchanged where that is not the usual
    way, and what remains of the layout.
    """
    built = to_builtins(plan)
    rest = [f"layout.{name}" for name in told(plan.layout) if not _explained(name, plan)]
    gradients = [] if plan.exchange == EXACT or "exchange" in plan.why else ["exchange"]
    names = [*plan.why, *gradients, *rest]
    return tuple(
        Choice(
            name=name,
            label=_label(name),
            value=_value(plan, built, name),
            why=reason(plan.why.get(name, "")),
        )
        for name in names
    )


def _label(name: str) -> Phrase:
    """A layout's schedule is of its pipeline, and its exchange another than that of gradients."""
    place, _, own = name.rpartition(".")
    known = LAYOUT if place == "layout" and own in LAYOUT else CHOICES
    return spoken(known, "gradients" if name == "exchange" else own)


def considered(plan: Plan) -> tuple[Considered, ...]:
    """The chosen layout, then the alternatives by the time that the run would take."""
    candidates = list(plan.alternatives)
    if all(each.layout != plan.layout for each in candidates):
        candidates.append(_taken(plan))
    rows = [
        Considered(
            chosen=each.layout == plan.layout,
            difference=_difference(each.layout, plan.layout),
            step_seconds=each.step_seconds,
            memory_peak=each.memory_peak,
            total_seconds=each.total_seconds,
            verdict=reason(each.verdict),
        )
        for each in candidates
    ]
    return tuple(sorted(rows, key=lambda row: (not row.chosen, row.total_seconds)))


def listed(layout: Layout, names: Iterable[str]) -> Phrase:
    """Fields of a layout, one after another: micro-batch 8, accumulation 4."""
    parts = [(LAYOUT[name], shown(getattr(layout, name))) for name in names]
    return Phrase(
        ", ".join(f"{label.en} {value}" for label, value in parts),
        "，".join(f"{label.zh} {value}" for label, value in parts),
    )


def told(layout: Layout) -> list[str]:
    """What a single process chooses too, and of several processes what is not the default."""
    fields = msgspec.structs.fields(layout)
    return [each.name for each in fields if getattr(layout, each.name) != each.default]


def family(model: ModelSpec) -> str:
    """Whose choices a model makes: Llama, GPT-2, or neither."""
    match model.positions, model.feed_forward:
        case Rotary(), SwiGLU():
            return "Llama"
        case Learned(), GELU():
            return "GPT-2"
    return ""


def shown(value: Any) -> str:
    """A field of a plan as text."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return plain(value)
        case {"type": str(name), **rest}:
            inner = ", ".join(f"{key} {shown(item)}" for key, item in rest.items())
            return f"{name} ({inner})" if inner else name
        case dict():
            return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
        case None:
            return ""
    return str(value)


def _difference(layout: Layout, chosen: Layout) -> Phrase:
    names = [
        name for name in Layout.__struct_fields__ if getattr(layout, name) != getattr(chosen, name)
    ]
    return listed(layout, names) if names else Phrase("as chosen", "选中的布局")


def _taken(plan: Plan) -> Alternative:
    return Alternative(
        layout=plan.layout,
        step_seconds=plan.predicted.step_seconds,
        memory_peak=plan.predicted.memory.peak,
        total_seconds=plan.predicted.total.seconds,
        verdict="",
    )


def _explained(name: str, plan: Plan) -> bool:
    return name in plan.why or f"layout.{name}" in plan.why or "layout" in plan.why


def _value(plan: Plan, built: dict[str, Any], name: str) -> Phrase:
    """The value at a dotted path, or of the name wherever the plan has it."""
    if name == "model":
        return _shape(plan.model)
    if name == "layout":
        return listed(plan.layout, told(plan.layout))
    last = name.rpartition(".")[2]
    paths = [name.split("."), [last], *([place, last] for place in _PLACES)]
    for path in paths:
        found: Any = built
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None and not isinstance(found, list):
            return same(shown(found))
    return same("")


def _shape(model: ModelSpec) -> Phrase:
    return Phrase(
        "{parameters} parameters: {layers} layers, width {width}, {heads} heads",
        "{parameters} 参数：{layers} 层，宽度 {width}，{heads} 头",
    ).filled(
        parameters=compact(model.parameters),
        layers=model.layers,
        width=model.width,
        heads=model.heads,
    )
