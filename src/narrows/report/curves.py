"""Curves over the steps of a run: loss, with bits per byte on the other side, and learning rate."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from narrows.report import ticks
from narrows.report.markup import Markup, element
from narrows.report.numbers import significant
from narrows.report.plot import (
    Frame,
    Linear,
    bottom_axis,
    drawing,
    left_axis,
    line,
    right_axis,
    told,
)
from narrows.report.reasons import event as happened
from narrows.report.run import Run, Step
from narrows.report.words import EVENTS, Phrase, same, spoken

POINTS_MOST = 400
TRAINING = Phrase("training", "训练")
VALIDATION = Phrase("validation", "验证")
LEARNING_RATE = Phrase("learning rate", "学习率")
STEP = Phrase("step", "步")
_SMOOTHING = 40


def loss_curve(run: Run, width: float) -> Markup:
    """Training loss of each step and smoothed, validation loss, events as marks on the axis."""
    shown = thinned(run.steps)
    raw = [(each.step, each.loss) for each in shown]
    calm = smoothed(raw)
    held = [(each.step, each.validation_loss) for each in run.evaluations]
    ratio = bits_per_byte_of_loss(run)
    frame = Frame(
        width=width, height=330.0, left=38.0, right=38.0 if ratio else 10.0, top=34.0, bottom=46.0
    )
    across = _across(run, frame)
    values = [y for _, y in (*raw, *held) if math.isfinite(y)]
    marks = ticks.around(min(values, default=0.0), max(values, default=1.0), 7)
    up = _upwards(frame, marks)
    step_marks = _step_marks(across, frame)
    return drawing(
        frame,
        left_axis(frame, up, _paired(marks), Phrase("loss, nats a token", "损失（nat／词元）")),
        _bits_axis(frame, up, ratio) if ratio else None,
        bottom_axis(frame, across, step_marks, STEP),
        line(_placed(raw, across, up), "training raw"),
        line(_placed(calm, across, up), "training"),
        line(_placed(held, across, up), "validation"),
        _dots(held, across, up),
        _event_marks(run, frame, across),
        name="Loss over steps",
        data_plot="loss",
        **_hover(frame, across),
    )


def learning_rate_curve(run: Run, width: float) -> Markup:
    """The learning rate of each step, in units that spare the reader the zeros."""
    shown = [(each.step, each.learning_rate) for each in thinned(run.steps)]
    highest = max((rate for _, rate in shown if math.isfinite(rate)), default=1.0) or 1.0
    power = math.floor(math.log10(highest) + 1e-9)
    scaled = [(step, rate / 10.0**power) for step, rate in shown]
    exponent = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    frame = Frame(width=width, height=330.0, left=32.0, right=10.0, top=34.0, bottom=46.0)
    across = _across(run, frame)
    marks = ticks.around(0.0, highest / 10.0**power, 5)
    up = _upwards(frame, marks)
    return drawing(
        frame,
        left_axis(frame, up, _paired(marks), same(f"×10{exponent}")),
        bottom_axis(frame, across, _step_marks(across, frame), STEP),
        line(_placed(scaled, across, up), "training"),
        name="Learning rate over steps",
        data_plot="learning-rate",
        **_hover(frame, across),
    )


def loss_points(run: Run) -> str:
    """JSON for the hover: the smoothed and held-out losses by step."""
    shown = thinned(run.steps)
    calm = smoothed([(each.step, each.loss) for each in shown])
    held = [(each.step, each.validation_loss) for each in run.evaluations]
    return _points_json((TRAINING, calm), (VALIDATION, held))


def learning_rate_points(run: Run) -> str:
    """JSON for the hover: the learning rate by step."""
    shown = [(each.step, each.learning_rate) for each in thinned(run.steps)]
    return _points_json((LEARNING_RATE, shown))


def thinned(steps: Sequence[Step]) -> list[Step]:
    """At most POINTS_MOST steps, evenly taken, the first and the last among them."""
    if len(steps) <= POINTS_MOST:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(place * last / (POINTS_MOST - 1))] for place in range(POINTS_MOST)]


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A centred mean over 1/40 of the points, narrower near the ends so that these stay true."""
    reach = len(points) // (2 * _SMOOTHING)
    calm = []
    for place, (step, value) in enumerate(points):
        near = min(reach, place, len(points) - 1 - place)
        window = [y for _, y in points[place - near : place + near + 1] if math.isfinite(y)]
        calm.append((step, sum(window) / len(window) if math.isfinite(value) else math.nan))
    return calm


def bits_per_byte_of_loss(run: Run) -> float | None:
    """What turns nats a token into bits a byte, as the last evaluation did it."""
    for each in reversed(run.evaluations):
        ratio = each.bits_per_byte / each.validation_loss if each.validation_loss else math.nan
        if math.isfinite(ratio) and ratio > 0:
            return ratio
    if run.plan.data and run.plan.data.bytes_per_token > 0:
        return 1 / (math.log(2) * run.plan.data.bytes_per_token)
    return None


def _across(run: Run, frame: Frame) -> Linear:
    last = max(run.steps_done, 1)
    return Linear(low=0.0, high=float(last), start=frame.left, end=frame.x_end)


def _upwards(frame: Frame, marks: tuple[float, ...]) -> Linear:
    return Linear(low=marks[0], high=marks[-1], start=frame.y_end, end=frame.top)


def _bits_axis(frame: Frame, up: Linear, ratio: float) -> Markup:
    low, high = up.low * ratio, up.high * ratio
    scale = Linear(low=low, high=high, start=up.start, end=up.end)
    marks = ticks.linear(low, high, 6)
    return right_axis(frame, scale, _paired(marks), Phrase("bits per byte", "比特／字节"))


def _step_marks(across: Linear, frame: Frame) -> list[tuple[float, str]]:
    most = 7 if frame.width > 500 else 5
    marks = tuple(mark for mark in ticks.linear(across.low, across.high, most) if mark == int(mark))
    return _paired(marks)


def _paired(marks: tuple[float, ...]) -> list[tuple[float, str]]:
    return list(zip(marks, ticks.labels(marks), strict=True))


def _placed(
    points: Sequence[tuple[int, float]], across: Linear, up: Linear
) -> list[tuple[float, float]]:
    return [(across.at(step), up.at(value)) for step, value in points]


def _dots(held: Sequence[tuple[int, float]], across: Linear, up: Linear) -> list[Markup]:
    return [
        element("circle", cx=across.at(step), cy=up.at(value), r=3.5, class_="validation")
        for step, value in held
        if math.isfinite(value)
    ]


def _event_marks(run: Run, frame: Frame, across: Linear) -> list[Markup]:
    """A triangle on the axis for whatever happened, checkpoints left out."""
    marks = []
    for each in run.events:
        if each.event == "checkpoint":
            continue
        x, y = across.at(min(max(each.step, 0), run.steps_done)), frame.y_end
        title = Phrase(
            "step {step}: {event}. {message}", "第 {step} 步：{event}。{message}"
        ).filled(step=each.step, event=spoken(EVENTS, each.event), message=happened(each.message))
        points = f"{x - 5:.1f},{y:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y - 9:.1f}"
        marks.append(element("polygon", points=points, class_="event", **told(title)))
    return marks


def _hover(frame: Frame, across: Linear) -> dict[str, float]:
    return {
        "data_start": across.start,
        "data_end": across.end,
        "data_last": across.high,
        "data_top": frame.top,
        "data_bottom": frame.y_end,
    }


def _points_json(*series: tuple[Phrase, Sequence[tuple[int, float]]]) -> str:
    return json.dumps(
        [
            {
                "en": name.en,
                "zh": name.zh,
                "x": [step for step, value in points if math.isfinite(value)],
                "y": [significant(value, 4) for _, value in points if math.isfinite(value)],
            }
            for name, points in series
        ],
        separators=(",", ":"),
        ensure_ascii=False,
    )
