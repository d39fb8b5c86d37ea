"""The sections of the page that draw: learning, time, memory, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from narrows.report import bars, comparison, curves
from narrows.report import roofline as roofs
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import (
    bandwidth,
    compact,
    duration,
    percent,
    share,
    show,
    significant,
    size,
)
from narrows.report.roofs import roofs_of
from narrows.report.run import Run
from narrows.report.words import (
    ABSENT,
    MEASURED,
    PHASES,
    PREDICTED,
    RESOURCES,
    SCHEDULES,
    Phrase,
    same,
    spoken,
)
from narrows.spec.ledger import Row

_SEEN = 0.0005
PHONE, THIRD, HALF, MAIN = 328.0, 312.0, 488.0, 656.0


def loss(run: Run) -> Markup:
    """Loss over steps."""
    title = Phrase("Loss", "损失")
    if not run.steps:
        return section(title, run.unlogged)
    legend = [key("line", curves.TRAINING)]
    if run.evaluations:
        legend.append(key("line validation", curves.VALIDATION))
    else:
        legend.append(element("span", Phrase("not evaluated yet", "尚未评估")))
    if any(each.event != "checkpoint" for each in run.events):
        legend.append(key("flag", Phrase("event", "事件")))
    lede = Phrase(
        "Each step's loss is drawn thin, its running mean strong.",
        "细线为每步损失，粗线为滑动平均。",
    )
    if run.diverged_at is not None:
        lede = Phrase(
            "The curve breaks at step {step}, where the loss was not finite.",
            "曲线在第 {step} 步中断：该步损失不是有限值。",
        ).filled(step=run.diverged_at)
    plot = both(lambda width: curves.loss_curve(run, width), MAIN)
    return section(title, lede, figure(legend, plot, points=curves.loss_points(run)))


def learning_rate(run: Run) -> Markup:
    """The learning rate over steps."""
    title = Phrase("Learning rate", "学习率")
    if not run.steps:
        return section(title, run.unlogged)
    schedule = run.plan.schedule
    lede = Phrase(
        "Warm-up over {warmup} steps, then {shape} to {floor} of the peak.",
        "预热 {warmup} 步，随后{shape}，降至峰值的 {floor}。",
    ).filled(
        warmup=schedule.warmup_steps,
        shape=spoken(SCHEDULES, schedule.shape),
        floor=share(schedule.floor),
    )
    if schedule.shape == "constant":
        lede = Phrase("Warm-up over {warmup} steps, then constant.", "预热 {warmup} 步，随后不变。")
        lede = lede.filled(warmup=schedule.warmup_steps)
    plot = both(lambda width: curves.learning_rate_curve(run, width), THIRD)
    legend = key("line", curves.LEARNING_RATE)
    return section(title, lede, figure(legend, plot, points=curves.learning_rate_points(run)))


def time(run: Run) -> Markup:
    """A step's time by kind of operation, and every operation in a table."""
    pair = comparison.step(run)[0]
    lede = Phrase(
        "A step takes {measured}; {predicted} was predicted, {error}.",
        "每步实测 {measured}，预测 {predicted}，{error}。",
    ).filled(
        measured=show(pair.measured, "seconds"),
        predicted=show(pair.predicted, "seconds"),
        error=pair.verdict or "",
    )
    if pair.measured is None:
        lede = Phrase("A step is predicted to take {predicted}.", "预测每步 {predicted}。").filled(
            predicted=show(pair.predicted, "seconds")
        )
    elif run.measured is not None and not run.measured.rows:
        more = Phrase(
            "{lede} The ledger is not written yet, so kinds are predicted only.",
            "{lede}账本尚未写出，因此分类只有预测值。",
        )
        lede = more.filled(lede=lede)
    plot = both(lambda width: bars.kind_bars(run, width), HALF)
    legend = _legend(run.measured is not None and bool(run.measured.rows))
    title = Phrase("Where the time goes", "时间去向")
    return section(title, lede, figure(legend, plot), _operations(run))


def memory(run: Run) -> Markup:
    """The memory peak by kind."""
    pair = next(each for each in comparison.whole(run) if each.name == "memory")
    lede = Phrase("Predicted peak {predicted}.", "预测峰值 {predicted}。")
    if pair.error is not None:
        lede = Phrase(
            "The peak was {measured}; {predicted} was predicted, {error}.",
            "峰值实测 {measured}，预测 {predicted}，{error}。",
        )
    lede = lede.filled(
        measured=show(pair.measured, "bytes"),
        predicted=show(pair.predicted, "bytes"),
        error=pair.verdict or "",
    )
    if run.machine is not None:
        free = float(run.machine.device.memory.free.value)
        more = Phrase("{lede} {free} was free.", "{lede}可用 {free}。")
        lede = more.filled(lede=lede, free=size(free))
    plot = both(lambda width: bars.memory_stairs(run, width), HALF)
    legend = _legend(run.measured is not None)
    return section(Phrase("Where the memory goes", "内存去向"), lede, figure(legend, plot))


def roofline(run: Run) -> Markup:
    """The machine's limits and the model's operations under them."""
    title = Phrase("Roofline", "屋顶线")
    machine = run.machine
    if machine is None or not machine.device.matmul:
        absent = Phrase(
            "The machine's peaks are not known, so there is no roof to draw.",
            "机器的峰值未知，无法绘制屋顶线。",
        )
        return section(title, absent)
    shown = roofs.points(run)
    lede = Phrase(
        "No operation can pass the slope (memory) or the flat roof (arithmetic), unless its data "
        "stay in a cache. Larger discs take more of the step; → forward, ← backward. "
        "{movers}",
        "除非数据留在缓存中，任何运算都无法越过斜线（内存）与平顶（算力）。圆越大，占一步的时间越多；"
        "→ 前向，← 反向。{movers}",
    ).filled(movers=movers(run.plan.predicted.rows))
    limits, own = roofs_of(machine), run.plan.layout.precision
    plot = both(lambda width: roofs.roofline(shown, limits, own, width), MAIN)
    legend = [key("ring", PREDICTED)]
    if any(point.measured for point in shown):
        together = not any(point.predicted and point.measured for point in shown)
        by_kind = Phrase("measured, all of a kind", "实测（按类合计）")
        legend.append(key("measured disc", by_kind if together else MEASURED))
    return section(title, lede, figure(legend, plot))


def doubling(run: Run) -> Markup:
    """What twice as much of each resource would save."""
    title = Phrase("If one had twice as much", "若资源加倍")
    savings = comparison.savings(run)
    if not savings:
        return section(title, Phrase("The plan does not say.", "计划中没有给出。"))
    lede = Phrase(
        "The bottleneck is <{name}>: doubling it shortens the step most.",
        "瓶颈是<{name}>：将它加倍最能缩短每步时间。",
    )
    parts = [_around(lede, spoken(RESOURCES, run.plan.bottleneck))]
    most = max(saving for _, saving in savings)
    rows = [
        element(
            "tr",
            element("th", spoken(RESOURCES, resource), scope="row"),
            element("td", percent(-saving), class_="number"),
            element("td", _saving_bar(saving, most), class_="saving"),
            class_="first" if resource == run.plan.bottleneck else None,
        )
        for resource, saving in savings
    ]
    head = element(
        "thead",
        element(
            "tr",
            element("th", Phrase("twice the", "加倍"), scope="col"),
            element("th", Phrase("step time", "每步时间"), scope="col", class_="number"),
            element("td"),
        ),
    )
    table = element("table", head, element("tbody", rows))
    return section(title, parts, element("div", table, class_="scroll"))


def section(title: Phrase, lede: Node, *children: Node) -> Markup:
    """A titled part of the page."""
    return element("section", element("h2", title), element("p", lede, class_="lede"), children)


def cards(figures: Sequence[tuple[Phrase, Node, Node]]) -> list[Markup]:
    """The numbers of a headline: a name, the figure, and what is told beneath it."""
    return [
        element("div", element("p", name, class_="name"), element("p", value, class_="figure"),
                element("p", beside, class_="was"), class_="card")
        for name, value, beside in figures
    ]  # fmt: skip


def figure(legend: Node, plot: Node, *, points: str | None = None) -> Markup:
    """A plot under its legend; `points` is what the hover reads."""
    above = element("div", legend, class_="legend") if legend else None
    return element("figure", above, plot, data_points=points)


def both(draw: Callable[[float], Markup], wide: float) -> list[Markup]:
    """The plot drawn for a desk and again for a phone: text keeps its size on both."""
    return [
        element("div", draw(wide), class_="plot wide", style=f"max-width:{wide * 1.15:g}px"),
        element("div", draw(PHONE), class_="plot narrow"),
    ]


def key(class_: str, name: Phrase) -> Markup:
    """A legend entry."""
    return element("span", element("i", class_=class_), name, class_="key")


def _legend(measured: bool) -> list[Markup]:
    both = ((True, "predicted", PREDICTED), (measured, "measured", MEASURED))
    return [key(class_, name) for there, class_, name in both if there]


def movers(rows: Sequence[Row]) -> Phrase:
    """What is expected of the operations that have no place under the roofs."""
    found = roofs.traffic(rows)
    if found is None:
        return same("")
    count, rate = found
    return Phrase(
        "Not drawn: what only moves bytes ({count} operation{s}), together at {rate} by the plan.",
        "未画出：只搬运数据的运算（{count} 个），计划预计合计 {rate}。",
    ).filled(count=count, s="" if count == 1 else "s", rate=bandwidth(rate))


def _saving_bar(saving: float, most: float) -> Markup | None:
    if saving < _SEEN:
        return None
    return element("i", class_="predicted", style=f"width:{saving / most * 100:.1f}%")


def _around(sentence: Phrase, name: Phrase) -> list[Node]:
    """A sentence with `<{name}>` in bold, in both languages."""
    spans = []
    for language, text, bold in (("en", sentence.en, name.en), ("zh-Hans", sentence.zh, name.zh)):
        before, _, after = text.partition("<{name}>")
        spans.append(element("span", before, element("b", bold), after, lang=language))
    return list(spans)


def _operations(run: Run) -> Markup:
    """Every operation of a step, in both ledgers."""
    columns = (
        Phrase("operation", "运算"),
        Phrase("phase", "阶段"),
        Phrase("calls", "次数"),
        same("FLOP"),
        Phrase("memory", "访存"),
        PREDICTED,
        MEASURED,
        Phrase("error", "误差"),
    )
    head = [
        element("th", name, scope="col", class_="number" if place > 1 else None)
        for place, name in enumerate(columns)
    ]
    pairs = comparison.rows(run)
    body = [_operation(pair) for pair in pairs]
    table = element("table", element("thead", element("tr", head)), element("tbody", body))
    summary = Phrase("All {count} operations of a step", "一步的全部 {count} 个运算")
    return element(
        "details",
        element("summary", summary.filled(count=len(pairs))),
        element("div", table, class_="scroll"),
    )


def _operation(pair: comparison.RowPair) -> Markup:
    row = pair.either
    predicted, measured = pair.predicted, pair.measured
    numbers = (
        significant(row.count),
        compact(row.flop),
        size(row.memory_bytes),
        duration(predicted.seconds) if predicted else ABSENT,
        duration(measured.seconds) if measured else ABSENT,
        percent(pair.error),
    )
    return element(
        "tr",
        element("th", comparison.row_label(pair), scope="row"),
        element("td", spoken(PHASES, pair.phase)),
        [element("td", number, class_="number") for number in numbers],
    )
