"""Throughput against latency of a served model, over the widths of a replica and the loads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from narrows.report import labels, ticks
from narrows.report.markup import Markup, element
from narrows.report.numbers import compact, duration, significant
from narrows.report.plot import (
    Frame,
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
from narrows.spec.service import Service, Swept


def front(points: tuple[Swept, ...]) -> set[Swept]:
    """Those that no other is as good as in both, and better in one."""
    found: set[Swept] = set()
    most = 0.0
    for point in sorted(points, key=lambda each: (each.per_token_s, -each.tokens_per_s)):
        if point.tokens_per_s > most:
            found.add(point)
            most = point.tokens_per_s
    return found


def sweep(found: Service, width: float) -> Markup:
    """Tokens a second against seconds a token, both by ratio."""
    best, percent = found.best, found.limits.percent
    own = (best.per_token.at(percent), best.tokens_per_s)
    frame = Frame(width=width, height=400.0, left=50.0, right=18.0, top=34.0, bottom=46.0)
    across, up = _scales(found, own, frame)
    beside = [(mark, ticks.prefixed(mark)) for mark in ticks.logarithmic(up.low, up.high, 6)]
    beneath = [
        (mark, ticks.prefixed(mark)) for mark in ticks.logarithmic(across.low, across.high, 6)
    ]
    leading = front(found.sweep)
    discs = [
        element(
            "circle", cx=across.at(each.per_token_s), cy=up.at(each.tokens_per_s), r=4.0,
            class_="predicted front" if each in leading else "predicted", **told(_tip(each)),
        )
        for each in found.sweep
    ]  # fmt: skip
    here = (across.at(own[0]), up.at(own[1]))
    chosen = element(
        "circle", cx=here[0], cy=here[1], r=7.5, class_="chosen", tabindex=0,
        **told(Phrase("this plan: {tokens} tokens/s, {each} a token",
                      "本方案：每秒 {tokens} token，每 token {each}").filled(
            tokens=compact(own[1]), each=duration(own[0]))),
    )  # fmt: skip
    return drawing(
        frame,
        left_axis(frame, up, beside, Phrase("tokens a second", "每秒 token")),
        bottom_axis(frame, across, beneath, Phrase(
            f"seconds between tokens, p{percent}", f"token 间隔（秒），p{percent}"
        )),
        _limit(found, frame, across), list(_lines(found, across, up)), discs, chosen,
        _names(found, frame, across, up, here),
        name="Tokens a second against seconds between tokens", data_plot="sweep",
    )  # fmt: skip


def _scales(
    found: Service, own: tuple[float, float], frame: Frame
) -> tuple[Logarithmic, Logarithmic]:
    waits = [own[0], *(each.per_token_s for each in found.sweep)]
    if found.limits.per_token_s is not None:
        waits.append(found.limits.per_token_s)
    rates = [own[1], *(each.tokens_per_s for each in found.sweep)]
    across = Logarithmic(
        low=0.85 * min(waits), high=1.25 * max(waits), start=frame.left, end=frame.x_end
    )
    up = Logarithmic(low=0.7 * min(rates), high=1.5 * max(rates), start=frame.y_end, end=frame.top)
    return across, up


def _lines(found: Service, across: Logarithmic, up: Logarithmic) -> Iterator[Markup]:
    for _, points in groupby(found.sweep, key=lambda each: each.placement.tensor):
        yield line(
            [(across.at(each.per_token_s), up.at(each.tokens_per_s)) for each in points], "load"
        )


def _names(
    found: Service, frame: Frame, across: Logarithmic, up: Logarithmic, here: tuple[float, float]
) -> list[Markup]:
    """How wide a replica is, where its line begins."""
    discs = [labels.Disc(x=here[0], y=here[1], radius=8.0)]
    names: list[Phrase] = [Phrase("this plan", "本方案")]
    for tensor, points in groupby(found.sweep, key=lambda each: each.placement.tensor):
        *_, last = points
        discs.append(labels.Disc(x=across.at(last.per_token_s), y=up.at(last.tokens_per_s),
                                 radius=5.0))  # fmt: skip
        names.append(Phrase(f"replicas of {tensor}", f"每副本 {tensor} 卡"))
    widths = [text_width(name, 11.5) + 3 for name in names]
    others = [
        labels.Disc(x=across.at(each.per_token_s), y=up.at(each.tokens_per_s), radius=4.0).box
        for each in found.sweep
    ]
    drawn = []
    for name, placed in zip(names, labels.place(discs, widths, frame, others), strict=True):
        if placed is not None:
            box = placed.box
            x = box.x + {"start": 0.0, "middle": 0.5, "end": 1.0}[placed.anchor] * box.width
            drawn.append(
                text(x, box.y + 10, name, anchor=placed.anchor, class_="operation-name")
            )  # fmt: skip
    return drawn


def _limit(found: Service, frame: Frame, across: Logarithmic) -> Markup | None:
    most = found.limits.per_token_s
    if most is None:
        return None
    edge = across.at(most)
    return element("path", d=f"M{edge:.1f} {frame.top}V{frame.y_end}", class_="roof")


def _tip(each: Swept) -> Phrase:
    placed = each.placement
    return Phrase(
        "{sets} × {tensor}, {several} requests at a time: {tokens} tokens/s, first token after "
        "{first}, {more} a token",
        "{sets} × {tensor}，同时 {several} 个请求：每秒 {tokens} token，首个 token {first}，"
        "其后每个 {more}",
    ).filled(
        sets=placed.replicas, tensor=placed.tensor, several=significant(each.concurrency),
        tokens=compact(each.tokens_per_s), first=duration(each.first_token_s),
        more=duration(each.per_token_s),
    )  # fmt: skip
