"""The limits in a roofline: memory's slope, and a flat roof for each precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from narrows.report.markup import Markup
from narrows.report.numbers import bandwidth, flop_rate
from narrows.report.plot import TEXT_HEIGHT, Box, Frame, Logarithmic, line, text, text_width
from narrows.report.words import Phrase
from narrows.spec.fleet import Fleet
from narrows.spec.machine import Machine
from narrows.spec.record import Record

Pixel = tuple[float, float]
_NARROW = ("fp8", "fp4")


class Roofs(Record):
    """FLOP a second by precision, and bytes copied a second."""

    peaks: dict[str, float]
    copy: float


def roofs_of(machine: Machine) -> Roofs:
    """The limits that this machine was measured to have."""
    return Roofs(
        peaks={curve.precision: float(curve.peak.value) for curve in machine.device.matmul},
        copy=float(machine.device.memory.copy.value),
    )


def roofs_of_device(fleet: Fleet, own: str) -> Roofs:
    """The limits on the data sheet of one device: of the precision `own`, and of narrower formats
    whose roofs lie elsewhere.
    """
    peaks: dict[str, float] = {}
    for name in (own, *_NARROW):
        if name in fleet.peak and (peak := float(fleet.peak[name].value)) not in peaks.values():
            peaks[name] = peak
    return Roofs(peaks=peaks, copy=float(fleet.memory_bandwidth.value))


def draw(
    roofs: Roofs,
    own: str,
    frame: Frame,
    scales: tuple[Logarithmic, Logarithmic],
    *,
    marks: Sequence[Box] = (),
) -> tuple[list[Markup], list[Box]]:
    """The roofs with their names, `own` drawn strong; and the boxes where no other name may go.

    Names keep clear of `marks` and of each other, or are left out.
    """
    across, up = scales
    faint: list[Markup] = []
    strong: list[Markup] = []
    texts: list[Markup] = []
    above: list[Box] = []
    start = max(across.low, up.low / roofs.copy)
    foot = (across.at(start), up.at(start * roofs.copy))
    slope, names = _slope_name(roofs.copy, foot, across, up)
    for precision, peak in sorted(roofs.peaks.items(), key=lambda item: item[0] != own):
        ridge = (across.at(peak / roofs.copy), up.at(peak))
        roof = [foot, ridge, (frame.x_end, ridge[1])]
        if precision == own:
            strong = [line(roof, "roof own")]
            above = _above(foot, ridge, frame)
        else:
            faint.append(line(roof, "roof"))
        label = f"{precision} {flop_rate(peak)}"
        places = _roof_name_places(text_width(label, 11.5), frame, ridge)
        blocked = [*names, *marks]
        free = (each for each in places if not any(each[0].overlaps(other) for other in blocked))
        box, anchor = next(free, (None, ""))
        if box is not None:
            x = box.x + (box.width if anchor == "end" else 0)
            texts.append(text(x, box.y + 11, label, anchor=anchor, class_="roof-name"))
            names.append(box)
    return [*faint, *strong, *texts, slope], [*above, *names]


def _roof_name_places(width: float, frame: Frame, ridge: Pixel) -> list[tuple[Box, str]]:
    """Before the ridge at the roof's height, or else under the roof at either end."""
    x, y = ridge
    before = Box(x=x - width - 6, y=y - 13, width=width, height=TEXT_HEIGHT)
    first = Box(x=x + 8, y=y + 3, width=width, height=TEXT_HEIGHT)
    last = Box(x=frame.x_end - width, y=y + 3, width=width, height=TEXT_HEIGHT)
    places = [(before, "end"), (first, "start"), (last, "end")]
    return [(box, anchor) for box, anchor in places if box.inside(frame)]


def _above(foot: Pixel, ridge: Pixel, frame: Frame) -> list[Box]:
    """Columns over the run's own roof, where no operation and so no name belongs."""
    (x1, y1), (x2, y2) = foot, ridge
    count = max(1, round((x2 - x1) / 4))
    width = (x2 - x1) / count
    columns = [
        Box(x=x1 + width * part, y=0.0, width=width, height=y1 + (y2 - y1) * part / count)
        for part in range(count)
    ]
    return [*columns, Box(x=x2, y=0.0, width=frame.x_end - x2, height=y2 + 2)]


def _slope_name(
    copy: float, foot: Pixel, across: Logarithmic, up: Logarithmic
) -> tuple[Markup, list[Box]]:
    """The memory roof's name, written above its slope near the lower end."""
    rise = (up.start - up.end) / math.log(up.high / up.low)
    run = (across.end - across.start) / math.log(across.high / across.low)
    angle = math.atan2(rise, run)
    x, y = foot
    label = Phrase(f"memory {bandwidth(copy)}", f"内存 {bandwidth(copy)}")
    turn = f"rotate({-math.degrees(angle):.1f} {x:.1f} {y:.1f})"
    name = text(x + 14, y - 7, label, class_="roof-name", transform=turn)
    boxes = [
        Box(
            x=x + math.cos(angle) * along - math.sin(angle) * 13 - 6,
            y=y - math.sin(angle) * along - math.cos(angle) * 13 - 6,
            width=12,
            height=12,
        )
        for along in range(14, 14 + round(text_width(label, 11.5)), 6)
    ]
    return name, boxes
