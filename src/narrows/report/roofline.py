"""The roofline (Williams, Waterman, Patterson 2009): what bounds each operation of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from narrows.report import comparison, labels, ticks
from narrows.report.comparison import RowPair
from narrows.report.markup import Markup, element
from narrows.report.numbers import duration, flop_rate, share, significant
from narrows.report.plot import (
    Box,
    Frame,
    Logarithmic,
    bottom_axis,
    drawing,
    left_axis,
    text,
    text_width,
    told,
)
from narrows.report.roofs import Roofs, draw
from narrows.report.run import Run
from narrows.report.words import KINDS, MEASURED, PHASES, PREDICTED, Phrase, spoken
from narrows.spec.ledger import Kind, Ledger, Row
from narrows.spec.record import Record

_LABELS_MOST = 12
_ARROWS = {"forward": " →", "backward": " ←"}


class Point(Record):
    """FLOP a byte and FLOP a second by each ledger, of an operation or of a kind of them."""

    name: Phrase
    phase: str
    seconds: float
    share: float
    intensity: float
    predicted: float | None
    measured: float | None

    @property
    def best_known(self) -> float:
        """FLOP a second as measured, or else as predicted."""
        rate = self.measured if self.measured is not None else self.predicted
        assert rate is not None
        return rate


def points(run: Run) -> tuple[Point, ...]:
    """What does arithmetic and moves bytes, the longest first.

    Operations of the plan; where the measured ledger knows them by other names, its seconds are
    set against the plan's FLOP and bytes of the same kind and phase.
    """
    pairs = comparison.rows(run)
    found = [point for pair in pairs if (point := _operation(run, pair)) is not None]
    if run.measured is not None:
        met = {(pair.either.kind, pair.phase) for pair in pairs if pair.predicted and pair.measured}
        found += _kinds(run.plan.predicted, run.measured, met)
    return tuple(sorted(found, key=lambda point: -point.seconds))


def _operation(run: Run, pair: RowPair) -> Point | None:
    shape, either = pair.predicted, pair.either
    if shape is None or not (shape.flop > 0 and shape.memory_bytes > 0 and either.seconds > 0):
        return None
    measured = run.measured if pair.measured else None
    return Point(
        name=comparison.row_label(pair),
        phase=pair.phase,
        seconds=either.seconds,
        share=either.seconds / (measured or run.plan.predicted).step_seconds,
        intensity=shape.flop / shape.memory_bytes,
        predicted=shape.flop / shape.seconds if shape.seconds > 0 else None,
        measured=shape.flop / pair.measured.seconds if pair.measured else None,
    )


def _kinds(predicted: Ledger, measured: Ledger, met: set[tuple[Kind, str]]) -> list[Point]:
    """A point for each kind and phase of which no operation was met by its name."""
    found = []
    for kind, phase in dict.fromkeys((row.kind, row.phase) for row in measured.rows):
        if (kind, phase) in met:
            continue
        shapes = [row for row in predicted.rows if (row.kind, row.phase) == (kind, phase)]
        flop, moved = sum(row.flop for row in shapes), sum(row.memory_bytes for row in shapes)
        seconds = sum(
            row.seconds for row in measured.rows if (row.kind, row.phase) == (kind, phase)
        )
        if flop > 0 and moved > 0 and seconds > 0:
            found.append(
                Point(
                    name=KINDS[kind],
                    phase=phase,
                    seconds=seconds,
                    share=seconds / measured.step_seconds,
                    intensity=flop / moved,
                    predicted=None,
                    measured=flop / seconds,
                )
            )
    return found


def traffic(rows: Sequence[Row]) -> tuple[int, float] | None:
    """How many operations only move bytes within the device, and their bytes a second together."""
    movers = [row for row in rows if row.flop == 0 and row.memory_bytes > 0 and row.kind != "data"]
    seconds = sum(row.seconds for row in movers)
    return (len(movers), sum(row.memory_bytes for row in movers) / seconds) if seconds else None


def expected(rows: Sequence[Row], whole: float, name: Callable[[Row], Phrase]) -> tuple[Point, ...]:
    """Of predicted rows alone, those that do arithmetic in `whole` seconds; the longest first."""
    found = [
        Point(
            name=name(row),
            phase=row.phase,
            seconds=row.seconds,
            share=row.seconds / whole,
            intensity=row.flop / row.memory_bytes,
            predicted=row.flop / row.seconds,
            measured=None,
        )
        for row in rows
        if row.flop > 0 and row.memory_bytes > 0 and row.seconds > 0
    ]
    return tuple(sorted(found, key=lambda point: -point.seconds))


def roofline(shown: tuple[Point, ...], limits: Roofs, own: str, width: float) -> Markup:
    """Roofs with the model's operations beneath them, that of the precision `own` drawn strong;
    size is share of the step.
    """
    frame = Frame(width=width, height=430.0, left=44.0, right=14.0, top=34.0, bottom=46.0)
    across, up = _scales(frame, shown, limits)
    beside = [(mark, ticks.prefixed(mark)) for mark in ticks.logarithmic(up.low, up.high, 6)]
    beneath = [
        (mark, ticks.prefixed(mark)) for mark in ticks.logarithmic(across.low, across.high, 7)
    ]
    discs = _places(shown, across, up)
    covered = [box for point in shown for box in _threaded(point, across, up)]
    marks = [*covered, *(disc.box for disc in discs)]
    roofs, taken = draw(limits, own, frame, (across, up), marks=marks)
    names = _names(shown, discs, frame, [*taken, *covered])
    return drawing(
        frame,
        left_axis(frame, up, beside, Phrase("FLOP a second", "每秒浮点运算")),
        bottom_axis(frame, across, beneath, Phrase("FLOP a byte moved", "每搬运一字节的浮点运算")),
        roofs,
        _discs(shown, across, up),
        _rings(shown, across, up),
        names,
        name="Roofline: operations under the limits of arithmetic and memory",
        data_plot="roofline",
    )


def _scales(
    frame: Frame, shown: tuple[Point, ...], limits: Roofs
) -> tuple[Logarithmic, Logarithmic]:
    """Both axes wide enough for every point and for the ridge of every roof."""
    rates = [rate for point in shown for rate in (point.predicted, point.measured) if rate]
    rates += limits.peaks.values()
    intensities = [point.intensity for point in shown]
    intensities += [peak / limits.copy for peak in limits.peaks.values()]
    low, high = min(intensities, default=0.1) / 2, max(intensities, default=100.0) * 2
    across = Logarithmic(low=low, high=high, start=frame.left, end=frame.x_end)
    bottom = max(min(rates, default=1e9) / 2, max(rates, default=1e12) / 1e6)
    up = Logarithmic(
        low=bottom, high=max(rates, default=1e12) * 1.9, start=frame.y_end, end=frame.top
    )
    return across, up


def _discs(shown: tuple[Point, ...], across: Logarithmic, up: Logarithmic) -> list[Markup]:
    """Measured operations, the longest at the bottom so that none hides another."""
    return [
        element(
            "circle",
            cx=across.at(point.intensity),
            cy=_height(point.measured, up),
            r=_radius(point),
            class_="measured",
            tabindex=0,
            **told(_tip(point)),
        )
        for point in shown
        if point.measured
    ]


def _rings(shown: tuple[Point, ...], across: Logarithmic, up: Logarithmic) -> list[Markup]:
    """Predicted operations, with a thread to what was measured."""
    marks: list[Markup] = []
    for point in shown:
        x = across.at(point.intensity)
        if point.predicted and point.measured:
            ends = {"y1": _height(point.predicted, up), "y2": _height(point.measured, up)}
            marks.append(element("line", x1=x, x2=x, class_="thread", **ends))
        if point.predicted:
            y = _height(point.predicted, up)
            tip = told(_tip(point)) if not point.measured else {}
            r = 3.0 if point.measured else _radius(point)
            marks.append(element("circle", cx=x, cy=y, r=r, class_="predicted", **tip))
    return marks


def _height(rate: float, up: Logarithmic) -> float:
    """The pixel of a rate; what is slower than the axis reaches lies on its floor."""
    return up.at(max(rate, up.low))


def _radius(point: Point) -> float:
    return 2.5 + 16.0 * math.sqrt(min(point.share, 1.0))


def _places(shown: tuple[Point, ...], across: Logarithmic, up: Logarithmic) -> list[labels.Disc]:
    """Where each point is drawn, and how large."""
    return [
        labels.Disc(
            x=across.at(point.intensity), y=_height(point.best_known, up), radius=_radius(point)
        )
        for point in shown
    ]


def _names(
    shown: tuple[Point, ...], discs: list[labels.Disc], frame: Frame, taken: list[Box]
) -> list[Markup]:
    """Names of the longest operations, where there is room; the others have a tooltip."""
    names = [_name(point) for point in shown]
    widths = [text_width(name, 11.5) + 3 for name in names]
    drawn: list[Markup] = []
    for name, placed in zip(names, labels.place(discs, widths, frame, taken), strict=True):
        if placed is None or len(drawn) >= _LABELS_MOST:
            continue
        thread = None
        if placed.thread:
            x1, y1, x2, y2 = placed.thread
            thread = element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="leader")
        box = placed.box
        x = box.x + {"start": 0.0, "middle": 0.5, "end": 1.0}[placed.anchor] * box.width
        label = text(x, box.y + 10, name, anchor=placed.anchor, class_="operation-name")
        drawn.append(element("g", thread, label))
    return drawn


def _threaded(point: Point, across: Logarithmic, up: Logarithmic) -> list[Box]:
    """What the ring of a measured operation and its thread cover."""
    if not (point.predicted and point.measured):
        return []
    x = across.at(point.intensity)
    ends = sorted((_height(point.predicted, up), _height(point.measured, up)))
    return [Box(x=x - 4, y=ends[0] - 4, width=8, height=ends[1] - ends[0] + 8)]


def _name(point: Point) -> Phrase:
    arrow = _ARROWS.get(point.phase, "")
    return Phrase(point.name.en + arrow, point.name.zh + arrow)


def _tip(point: Point) -> Phrase:
    rates = [
        (side, flop_rate(rate))
        for side, rate in ((MEASURED, point.measured), (PREDICTED, point.predicted))
        if rate
    ]
    english = ", ".join(f"{rate} {side.en}" for side, rate in rates)
    chinese = "，".join(f"{side.zh} {rate}" for side, rate in rates)
    return Phrase(
        "{name}, {phase}: {rates}, {intensity} FLOP a byte, {seconds}, {part} of the step",
        "{name}，{phase}：{rates}，每字节 {intensity} 次浮点运算，{seconds}，占一步的 {part}",
    ).filled(
        name=point.name,
        phase=spoken(PHASES, point.phase),
        rates=Phrase(english, chinese),
        intensity=significant(point.intensity),
        seconds=duration(point.seconds),
        part=share(point.share),
    )
