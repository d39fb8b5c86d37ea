"""What each rank did when: computation above what was exchanged meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from narrows.report import ticks
from narrows.report.markup import Markup, element
from narrows.report.numbers import duration, share
from narrows.report.plot import Frame, Linear, bottom_axis, drawing, text, told
from narrows.report.run import Run
from narrows.report.sections import MAIN, both, figure, key
from narrows.report.sections import section as titled
from narrows.report.words import TRACKS, Phrase
from narrows.spec.timeline import Lane, Span, Timeline

_ROW, _PITCH = 11.0, 34.0
_RANKS_MOST = 16
_SECONDS, _MILLISECONDS = Phrase("seconds", "秒"), Phrase("milliseconds", "毫秒")
_CLASSES = {"compute": "computing", "data": "reading", "link": "exchanging", "waiting": "waiting"}


def section(run: Run) -> Markup | None:
    """The timeline of a run that noted one."""
    found = run.timeline
    if found is None:
        return None
    plot = both(lambda width: lanes(found, width), MAIN)
    legend = [key(class_, TRACKS[track]) for track, class_ in _CLASSES.items()]
    beside = Phrase(
        "Open timeline.trace.json.gz in ui.perfetto.dev to see every operation.",
        "用 ui.perfetto.dev 打开 timeline.trace.json.gz，可查看每个运算。",
    )
    title = Phrase("What is hidden behind what", "通信与计算的重叠")
    return titled(title, [sentence(found), " ", beside], figure(legend, plot))


def sentence(found: Timeline) -> Phrase:
    """How much of a step's exchange is hidden."""
    if not found.exchanging_s:
        return Phrase("Nothing is exchanged.", "没有通信。")
    return Phrase(
        "Of {whole} of exchange in a step {hidden} are hidden behind computation ({part}).",
        "每步通信 {whole}，其中 {hidden} 被计算掩盖（{part}）。",
    ).filled(
        whole=duration(found.exchanging_s), hidden=duration(found.hidden_s),
        part=share(found.hidden_s / found.exchanging_s),
    )  # fmt: skip


def lanes(found: Timeline, width: float) -> Markup:
    """Two rows a rank, of the first ranks; dashed lines are where steps begin."""
    shown = found.lanes[:_RANKS_MOST]
    frame = Frame(width=width, height=_PITCH * len(shown) + 46, left=50.0, right=14.0, top=0.0,
                  bottom=42.0)  # fmt: skip
    across = Linear(low=0.0, high=found.seconds, start=frame.left, end=frame.x_end)
    marks: list[Markup] = []
    for place, lane in enumerate(shown):
        top = _PITCH * place + 6.0
        name = Phrase("rank {rank}", "进程 {rank}").filled(rank=lane.rank)
        marks.append(text(frame.left - 8, top + 14, name, anchor="end"))
        said = told(_told(lane, found.steps))
        for track, class_ in _CLASSES.items():
            row = top + (_ROW + 1.0 if track in ("link", "waiting") else 0.0)
            spans = getattr(lane, track)
            if spans:
                marks.append(element("path", d=_boxes(spans, across, row), class_=class_, **said))
    starts = [
        element("path", d=f"M{across.at(begin):.1f} 0V{frame.y_end:g}", class_="roof")
        for begin in found.begins
    ]
    # Round numbers of milliseconds, or of seconds.
    unit, often = (_SECONDS, 1.0) if found.seconds > 10.0 else (_MILLISECONDS, 1e3)
    end = found.seconds * often
    scale = Linear(low=0.0, high=end, start=frame.left, end=frame.x_end)
    beneath = ticks.linear(0.0, end, 6)
    axis = bottom_axis(frame, scale, list(zip(beneath, ticks.labels(beneath), strict=True)), unit)
    return drawing(
        frame, starts, marks, axis, name="Computation and exchange of each rank",
        data_plot="timeline",
    )  # fmt: skip


def _told(lane: Lane, steps: int) -> Phrase:
    return Phrase(
        "rank {rank}: {whole} of exchange a step, {hidden} hidden",
        "进程 {rank}：每步通信 {whole}，掩盖 {hidden}",
    ).filled(
        rank=lane.rank, whole=duration(lane.exchanging_s / steps),
        hidden=duration(lane.hidden_s / steps),
    )  # fmt: skip


def _boxes(spans: Sequence[Span], across: Linear, top: float) -> str:
    """Rectangles of one height, as one path."""
    return "".join(
        f"M{across.at(start):.1f} {top:g}h{max(0.3, across.at(end) - across.at(start)):.1f}"
        f"v{_ROW:g}H{across.at(start):.1f}z"
        for start, end in spans
    )
