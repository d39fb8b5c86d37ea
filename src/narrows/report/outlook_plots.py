"""Plots of a forecast: bars, time against memory, throughput against devices, a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from narrows.report import ticks
from narrows.report.markup import Markup, element
from narrows.report.pipelines import timeline
from narrows.report.plot import (
    Frame,
    Linear,
    Logarithmic,
    bottom_axis,
    drawing,
    left_axis,
    line,
    text,
    text_width,
    told,
)
from narrows.report.words import Phrase
from narrows.spec.fleet import Spread

_PITCH, _BAR = 26.0, 13.0
_STAGES_MOST, _MICRO_MOST = 8, 16
_NARROW = 400.0
_GRID = 48
_PASSES = {
    "forward": (Phrase("forward", "前向"), "predicted"),
    "backward": (Phrase("backward", "反向"), "measured"),
    "weights": (Phrase("gradients of weights", "权重梯度"), "weights"),
}


def bars(
    rows: Sequence[tuple[Phrase, float, Phrase]], width: float, name: str, *,
    limit: float | None = None, stacked: bool = False,
) -> Markup:  # fmt: skip
    """One bar a row, its value at its end; `stacked`, each starts where the last one ended. The
    `limit` is a dashed line across them all.
    """
    narrow = width < _NARROW
    pitch = _PITCH + (16.0 if narrow else 0.0)
    left = 0.0 if narrow else max(text_width(label, 13.5) for label, _, _ in rows) + 14
    height = pitch * len(rows)
    frame = Frame(width=width, height=height, left=left, right=78.0, top=0.0, bottom=0.0)
    values = [value for _, value, _ in rows]
    longest = max(sum(values) if stacked else max(values), limit or 0.0)
    across = Linear(low=0.0, high=longest, start=left, end=frame.x_end)
    marks: list[Markup] = []
    edge = None if limit is None else across.at(limit)
    if edge is not None:
        marks.append(element("path", d=f"M{edge:.1f} 0V{height:.1f}", class_="roof"))
    begin = 0.0
    for place, (label, value, said) in enumerate(rows):
        top = pitch * place + (20.0 if narrow else 6.0)
        x, y = (0.0, top - 6) if narrow else (left - 12, top + 11)
        marks.append(text(x, y, label, anchor=None if narrow else "end", class_="label"))
        start, end = across.at(begin), across.at(begin + value)
        begin += value if stacked else 0.0
        both = Phrase("{label}: {said}", "{label}：{said}").filled(label=label, said=said)
        marks.append(element(
            "rect", x=start, y=top, width=max(1.0, end - start), height=_BAR, class_="predicted",
            **told(both),
        ))  # fmt: skip
        marks.append(_value(said, top, (start, end), left, edge))
    return drawing(frame, marks, name=name, data_plot="bars")


def _value(
    said: Phrase, top: float, bar: tuple[float, float], left: float, edge: float | None
) -> Markup:
    """Behind its bar, or in front of it where that keeps it off the line at `edge`."""
    start, end = bar
    wide = text_width(said)
    crossed = edge is not None and end <= edge <= end + 8 + wide
    if crossed and start - 8 - wide > left:
        return text(start - 6, top + 11, said, anchor="end", class_="value")
    return text(end + 6, top + 11, said, class_="value")


def front(points: Sequence[tuple[float, float, Phrase]], limit: float, width: float) -> Markup:
    """Layouts by gigabytes and seconds; the device's limit is a dashed line."""
    frame = Frame(width=width, height=300.0, left=56.0, right=14.0, top=34.0, bottom=46.0)
    most = max(limit, *(x for x, _, _ in points)) * 1.05
    seconds = [y for _, y, _ in points]
    beside = ticks.around(min(seconds), max(seconds), 5)
    across = Linear(low=0.0, high=most, start=frame.left, end=frame.x_end)
    up = Linear(low=beside[0], high=beside[-1], start=frame.y_end, end=frame.top)
    beneath = ticks.linear(0.0, most, 6)
    marks = [
        element("circle", cx=across.at(x), cy=up.at(y), r=5.0, class_="measured", **told(said))
        for x, y, said in points
    ]
    edge = across.at(limit)
    roof = element("path", d=f"M{edge:.1f} {frame.top}V{frame.y_end}", class_="roof")
    return drawing(
        frame,
        left_axis(frame, up, list(zip(beside, ticks.labels(beside), strict=True)),
                  Phrase("seconds a step", "每步秒数")),
        bottom_axis(frame, across, list(zip(beneath, ticks.labels(beneath), strict=True)),
                    Phrase("GB of a device", "每卡显存（GB）")),
        roof, marks, name="Step time against memory of layouts", data_plot="front",
    )  # fmt: skip


def scaling(
    known: Sequence[tuple[int, float]], own: int, width: float,
    formula: Callable[[float], float] | None = None,
) -> Markup:  # fmt: skip
    """Tokens a second against devices, both by ratio, beside what would be linear and what a
    `formula` says.
    """
    frame = Frame(width=width, height=300.0, left=56.0, right=18.0, top=34.0, bottom=46.0)
    devices, rates = [float(n) for n, _ in known], [rate for _, rate in known]
    linear = [rates[0] * n / devices[0] for n in devices]
    across = Logarithmic(
        low=devices[0], high=devices[-1], start=frame.left + 10, end=frame.x_end - 10
    )
    grid = [devices[0] * (devices[-1] / devices[0]) ** (k / _GRID) for k in range(_GRID + 1)]
    fitted = [(n, formula(n)) for n in grid] if formula else []
    up = Logarithmic(
        low=0.8 * min(*rates, *(v for _, v in fitted)), high=1.25 * max(*linear, *rates),
        start=frame.y_end, end=frame.top,
    )  # fmt: skip
    beside = [(mark, ticks.prefixed(mark)) for mark in ticks.logarithmic(up.low, up.high, 5)]
    beneath = [(n, f"{n:,.0f}") for n in devices]
    discs = [
        element(
            "circle", cx=across.at(n), cy=up.at(rate), r=6.0 if n == own else 4.5,
            class_="measured", **told(f"{n:,.0f}: {rate:,.0f} tokens/s, {rate / even:.0%}"),
        )
        for n, rate, even in zip(devices, rates, linear, strict=True)
    ]  # fmt: skip
    return drawing(
        frame,
        left_axis(frame, up, beside, Phrase("tokens a second", "每秒 token")),
        bottom_axis(frame, across, beneath, Phrase("devices", "加速器数")),
        line([(across.at(n), up.at(v)) for n, v in zip(devices, linear, strict=True)], "roof"),
        line([(across.at(n), up.at(v)) for n, v in fitted], "validation") if fitted else None,
        line([(across.at(n), up.at(v)) for n, v in zip(devices, rates, strict=True)], "training"),
        discs, name="Tokens a second against devices", data_plot="scaling",
    )  # fmt: skip


def pipeline(spread: Spread, width: float) -> Markup:
    """What each rank does with the first micro-batches; backward lasts twice as long as forward."""
    ranks, micros = min(spread.pipeline, _STAGES_MOST), min(spread.accumulation, _MICRO_MOST)
    slots = timeline(spread, ranks, micros)
    end = max(slot.start + slot.length for slot in slots)
    frame = Frame(width=width, height=22.0 * ranks + 4, left=26.0, right=4.0, top=0.0, bottom=0.0)
    across = Linear(low=0.0, high=end, start=frame.left, end=frame.x_end)
    marks: list[Markup] = []
    for rank in range(ranks):
        marks.append(text(frame.left - 8, 22.0 * rank + 16, f"{rank + 1}", anchor="end"))
    for slot in slots:
        word, class_ = _PASSES[slot.task.passing]
        tip = Phrase("stage {s}, micro-batch {m}, {w}", "第 {s} 级，微批 {m}，{w}").filled(
            s=str(slot.task.piece + 1), m=str(slot.task.micro + 1), w=word
        )
        marks.append(element(
            "rect", x=across.at(slot.start) + 0.5, y=22.0 * slot.rank + 3, height=17.0,
            width=max(0.5, across.at(slot.start + slot.length) - across.at(slot.start) - 1.0),
            class_=class_, **told(tip),
        ))  # fmt: skip
    return drawing(frame, marks, name="Timeline of the pipeline", data_plot="pipeline")
