"""A search, or a learning rate range test, as a page: what mattered, where, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from narrows.report import grid, ticks
from narrows.report.document import document
from narrows.report.markup import Markup, element
from narrows.report.numbers import duration, energy, plain, share, significant
from narrows.report.outlook_plots import bars
from narrows.report.plot import (
    Frame,
    Linear,
    Logarithmic,
    Scale,
    bottom_axis,
    drawing,
    left_axis,
    line,
    told,
)
from narrows.report.reasons import reason
from narrows.report.sections import HALF, MAIN, both, figure, key, section
from narrows.report.words import ABSENT, Phrase, same
from narrows.spec.record import write_atomically
from narrows.spec.tuning import Axis, Range, Swept, Trial, Tuned, Value

_LOSS = Phrase("validation loss", "验证损失")
_OUTCOMES = {
    "done": Phrase("done", "完成"), "pruned": Phrase("given up", "提前放弃"),
    "failed": Phrase("failed", "失败"),
}  # fmt: skip
_SHOWN = 3.0
"""A point is drawn no higher above the best than so many times the middle trial is."""


def write(found: Tuned | Swept, folder: Path) -> Path:
    """Write tuned.html, or sweep.html, into the folder."""
    page = folder / ("tuned.html" if isinstance(found, Tuned) else "sweep.html")
    text = html(found) if isinstance(found, Tuned) else swept_html(found)
    write_atomically(page, text.encode("utf-8", errors="replace"))
    return page


def html(found: Tuned) -> str:
    """The page of a search."""
    winner = found.winner
    said = Phrase("No trial came through.", "没有完成的试验。")
    if winner is not None and winner.loss is not None:
        said = Phrase(
            "{values} reached a validation loss of {loss}", "{values}，验证损失 {loss}"
        ).filled(values=values_line(winner.values), loss=f"{winner.loss:.4f}")
    spent = Phrase(
        "{trials} trials in {seconds}, {joules}; ended by: {ended}",
        "{trials} 次试验，用时 {seconds}，{joules}；结束原因：{ended}",
    ).filled(
        trials=len(found.trials), seconds=duration(sum(t.seconds for t in found.trials)),
        joules=energy(sum(t.joules for t in found.trials)), ended=reason(found.ended),
    )  # fmt: skip
    hero = element("div", element("h1", said), element("p", spent, class_="aside"), class_="hero")
    axes = [_axis(found, each) for each in found.axes]
    return document(f"{found.name}", hero, _importance(found), *axes, _trials(found))


def swept_html(found: Swept) -> str:
    """The page of a learning rate range test."""
    said = Phrase("Learning rate {rate}", "学习率 {rate}").filled(rate=plain(found.suggested))
    hero = element(
        "div", element("h1", said), element("p", reason(found.why), class_="aside"), class_="hero"
    )
    lede = Phrase(
        "Each step's loss is drawn thin, its running mean strong; the dot is the suggestion.",
        "细线为每步损失，粗线为滑动平均；圆点为建议值。",
    )
    legend = [key("line", Phrase("training", "训练"))]
    plot = both(lambda width: _sweep_curve(found, width), MAIN)
    title = Phrase("Loss while the rate rises", "学习率上升时的损失")
    return document(found.name, hero, section(title, lede, figure(legend, plot)))


def text(found: Tuned) -> str:
    """The search for a terminal: the best trials, what mattered, what it cost."""
    done = sorted(found.trials, key=lambda t: (t.outcome != "done", _height(t)))
    rows = [("trial", "loss", "outcome", "time", "energy", "values")]
    rows += [
        (str(t.number), _loss(t), t.outcome, duration(t.seconds).en, energy(t.joules),
         values_line(t.values) + (f" ({t.message})" if t.message else ""))
        for t in done
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[5]])
             for row in rows]  # fmt: skip
    mattered = ", ".join(f"{k} {share(v)}" for k, v in found.importance.items())
    lines += ["", f"what mattered: {mattered or 'too few trials came through to say'}"]
    return "\n".join([*lines, f"ended by: {found.ended}"])


def values_line(values: dict[str, Value]) -> str:
    """Values by key, in a line."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _importance(found: Tuned) -> Markup:
    title = Phrase("What mattered", "哪些参数重要")
    if not found.importance:
        return section(
            title, Phrase("Too few trials came through to say.", "完成的试验太少，无法判断。")
        )
    rows = [(same(name), part, same(share(part))) for name, part in found.importance.items()]
    lede = Phrase(
        "Each key's share of what makes the trials' losses differ (fANOVA).",
        "各参数对损失差异的贡献（fANOVA）。",
    )
    return section(title, lede, both(lambda width: bars(rows, width, "Importance"), MAIN))


def _axis(found: Tuned, axis: Axis) -> Markup:
    points = [t for t in found.trials if t.loss is not None and axis.key in t.values]
    title = same(axis.key)
    if not points:
        return section(title, Phrase("No trial came through.", "没有完成的试验。"))
    legend = [
        key("line", Phrase("done", "完成")), key("line validation", Phrase("given up", "提前放弃"))
    ]  # fmt: skip
    plot = both(lambda width: _scatter(found, axis, points, width), HALF)
    return section(title, None, figure(legend, plot))


def _scatter(found: Tuned, axis: Axis, points: Sequence[Trial], width: float) -> Markup:
    """Losses over an axis, the best trial's marked."""
    frame = Frame(width=width, height=260.0, left=52.0, right=16.0, top=34.0, bottom=46.0)
    across, marks = _across(axis, frame)
    losses = sorted(t.loss for t in points if t.loss is not None and math.isfinite(t.loss))
    best, middle = losses[0], losses[len(losses) // 2]
    ceiling = max(best + _SHOWN * (middle - best), best + 1e-6)
    levels = ticks.around(best, min(losses[-1], ceiling), 6)
    up = Linear(low=levels[0], high=levels[-1], start=frame.y_end, end=frame.top)
    dots = [
        element(
            "circle", cx=across.at(_place(axis, t)), cy=up.at(min(t.loss or 0.0, levels[-1])), r=5,
            class_="chosen" if t.number == found.best
            else "measured" if t.outcome == "done" else "predicted",
            **told(same(f"trial {t.number}: {_loss(t)}, {values_line(t.values)}")),
        )
        for t in points
    ]  # fmt: skip
    return drawing(
        frame, left_axis(frame, up, list(zip(levels, ticks.labels(levels), strict=True)), _LOSS),
        bottom_axis(frame, across, marks, same(axis.key)), dots,
        name=f"Validation loss over {axis.key}", data_plot="axis",
    )  # fmt: skip


def _across(axis: Axis, frame: Frame) -> tuple[Scale, list[tuple[float, str]]]:
    inset = 14.0
    start, end = frame.left + inset, frame.x_end - inset
    if not isinstance(axis, Range):
        last = float(len(axis.values) - 1)
        choices = [(float(place), value) for place, value in enumerate(axis.values)]
        return Linear(low=0.0, high=last, start=start, end=end), choices
    low, high = float(axis.low), float(axis.high)
    scale: Scale
    if axis.log:
        scale = Logarithmic(low=low, high=high, start=start, end=end)
        marks = ticks.logarithmic(low, high, 5)
    else:
        scale = Linear(low=low, high=high, start=start, end=end)
        marks = ticks.linear(low, high, 5)
    return scale, [(mark, plain(mark)) for mark in marks]


def _place(axis: Axis, trial: Trial) -> float:
    value = trial.values[axis.key]
    return float(value) if isinstance(axis, Range) else float(axis.values.index(str(value)))


def _trials(found: Tuned) -> Markup:
    heads = (
        Phrase("trial", "试验"), _LOSS, Phrase("outcome", "结果"), Phrase("time", "用时"),
        Phrase("energy", "能量"), Phrase("values", "取值"),
    )  # fmt: skip
    rows = [
        grid.row(
            same(str(t.number)), _loss(t), _OUTCOMES[t.outcome], duration(t.seconds),
            energy(t.joules), reason(t.message) if t.message else values_line(t.values),
            first=t.number == found.best,
        )
        for t in sorted(found.trials, key=lambda t: (t.outcome != "done", _height(t)))
    ]  # fmt: skip
    title = Phrase("Trials", "全部试验")
    return section(title, None, grid.table(heads, rows))


def _sweep_curve(found: Swept, width: float) -> Markup:
    frame = Frame(width=width, height=300.0, left=52.0, right=16.0, top=34.0, bottom=46.0)
    across = Logarithmic(
        low=found.rates[0], high=found.rates[-1], start=frame.left, end=frame.x_end
    )
    levels = ticks.around(min(found.losses), max(found.smoothed), 6)
    up = Linear(low=levels[0], high=levels[-1], start=frame.y_end, end=frame.top)
    marks = [(m, plain(m)) for m in ticks.logarithmic(across.low, across.high, 6)]

    def placed(losses: Sequence[float]) -> list[tuple[float, float]]:
        pairs = zip(found.rates, losses, strict=True)
        return [(across.at(rate), up.at(min(loss, up.high))) for rate, loss in pairs]

    nearest = min(range(len(found.rates)), key=lambda i: abs(found.rates[i] - found.suggested))
    dot = element(
        "circle", cx=across.at(found.suggested), cy=up.at(min(found.smoothed[nearest], up.high)),
        r=5, class_="chosen", **told(same(plain(found.suggested))),
    )  # fmt: skip
    return drawing(
        frame,
        left_axis(frame, up, list(zip(levels, ticks.labels(levels), strict=True)),
                  Phrase("loss, nats a token", "损失（nat／词元）")),
        bottom_axis(frame, across, marks, Phrase("learning rate", "学习率")),
        line(placed(found.losses), "training raw"), line(placed(found.smoothed), "training"), dot,
        name="Loss over the learning rate", data_plot="sweep",
    )  # fmt: skip


def _height(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss


def _loss(trial: Trial) -> str:
    return ABSENT.en if trial.loss is None else f"{trial.loss:.4f}"


def _shown(value: Value) -> str:
    return significant(value) if isinstance(value, float) else str(value)
