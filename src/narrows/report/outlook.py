"""The page of a forecast: one HTML file about a model on machines that one may rent."""

from __future__ import annotations

from pathlib import Path

from narrows.report import outlook_plots as plots
from narrows.report import outlook_tables as tables
from narrows.report import roofline
from narrows.report.document import document
from narrows.report.evidence import evidence, footer
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import (
    compact,
    dollars,
    duration,
    energy,
    flop_rate,
    grams,
    share,
    significant,
    size,
)
from narrows.report.roofs import roofs_of_device
from narrows.report.sections import HALF, MAIN, both, cards, figure, key, movers, section
from narrows.report.words import MEMORY, OPERATIONS, VALUES, Phrase, same, spoken
from narrows.spec.forecast import Bend, Forecast
from narrows.spec.record import write_atomically

_PARTS = {
    "products": Phrase("products", "矩阵乘法"), "attention": Phrase("attention", "注意力"),
    "memory-bound_operations": Phrase("memory-bound operations", "受带宽限制的运算"),
    "head_and_loss": Phrase("head and loss", "输出层与损失"),
    "tensor-parallel_collectives": Phrase("tensor-parallel collectives", "张量并行通信"),
    "tokens_to_experts": Phrase("tokens to experts", "专家路由通信"),
    "context-parallel_ring": Phrase("context-parallel ring", "上下文并行环"),
    "pipeline_hops": Phrase("pipeline hops", "流水线传递"),
    "pipeline_bubble": Phrase("pipeline bubble", "流水线气泡"),
    "data-parallel_collectives": Phrase("data-parallel collectives", "数据并行通信"),
    "optimizer": Phrase("optimizer", "优化器"),
    "stragglers,_host_and_data": Phrase("stragglers, host and data", "掉队、主机与数据"),
}  # fmt: skip

_MOMENTS = {
    "first stage": Phrase("on the first stage, its forwards in flight", "首级，前向在途时"),
    "middle stage": Phrase("on the second stage, its forwards in flight", "第二级，前向在途时"),
    "loss": Phrase("at the loss", "计算损失时"),
}


def write(forecast: Forecast, page: Path) -> None:
    """Write the page; raises OSError where it cannot be written."""
    write_atomically(page, html(forecast).encode("utf-8"))


def html(forecast: Forecast) -> str:
    """The whole page."""
    wide = "columns"
    return document(
        f"{forecast.model_name} · {forecast.fleet.name}",
        _hero(forecast),
        element("div", _cards(forecast), class_="cards"),
        tables.dial(forecast),
        element("div", _time(forecast), _memory(forecast), class_=wide),
        element("div", _roofline(forecast), tables.doubling(forecast),
                class_="columns wide-first"),
        element("div", _front(forecast), _scaling(forecast), class_=wide),
        _pipeline(forecast),
        tables.techniques(forecast),
        tables.layouts(forecast),
        tables.elsewhere(forecast),
        evidence(forecast.answers, forecast.facts),
        footer(),
    )  # fmt: skip


def _hero(forecast: Forecast) -> Markup:
    fleet, said = forecast.fleet, tables.layout(forecast.spread)
    counts = {"all": f"{forecast.layouts_evaluated:,}", "fit": f"{forecast.layouts_fitting:,}"}
    return element(
        "div",
        element("p", element("span", Phrase("forecast", "预测")), class_="status"),
        element("h1", Phrase(
            f"{forecast.model_name} on {fleet.devices:,} × {fleet.accelerator}",
            f"{forecast.model_name}，{fleet.devices:,} × {fleet.accelerator}",
        )),
        element("p", said, class_="aside"),
        element("p", Phrase(
            "The best of {all} layouts, of which {fit} fit.",
            "共 {all} 种布局，{fit} 种放得下；此为最优。",
        ).filled(**counts), class_="aside"),
        class_="hero",
    )  # fmt: skip


def _cards(forecast: Forecast) -> list[Markup]:
    ledger = forecast.predicted
    rate = ledger.tokens_per_s
    found: list[tuple[Phrase, Node, Node]] = [
        (Phrase("step", "每步"), duration(ledger.step_seconds),
         Phrase(f"{compact(rate)} tokens/s", f"每秒 {compact(rate)} token")),
        (Phrase("memory of a device", "每卡显存"), size(ledger.memory.peak),
         Phrase(f"of {size(forecast.memory_limit)}", f"上限 {size(forecast.memory_limit)}")),
        (Phrase("model work of a device", "每卡有效算力"), flop_rate(forecast.flop_per_s_device),
         Phrase(f"{share(ledger.mfu)} of the peak", f"峰值的 {share(ledger.mfu)}")),
        (Phrase("goodput", "有效时间"), share(forecast.goodput.share),
         Phrase("after failures and checkpoints", "扣除故障与检查点之后")),
    ]  # fmt: skip
    if watts := ledger.watts:
        found.append((Phrase("power", "功率"), f"{significant(watts / 1e3)} kW",
                      Phrase("all devices", "全部加速器")))  # fmt: skip
    if (run := forecast.run) is not None:
        found.append((Phrase("whole training", "全程"), duration(run.seconds),
                      "" if run.joules is None else energy(run.joules)))  # fmt: skip
        if run.dollars is not None:
            found.append((Phrase("money", "费用"), dollars(run.dollars),
                          Phrase("at rental prices", "按租价")))  # fmt: skip
        if run.carbon_grams is not None:
            found.append((Phrase("carbon", "碳排放"), grams(run.carbon_grams),
                          Phrase("CO₂ equivalent", "CO₂ 当量")))  # fmt: skip
    return cards(found)


def _time(forecast: Forecast) -> Markup:
    parts = forecast.predicted.seconds_by_part()
    bars = [
        (spoken(_PARTS, name), seconds, duration(seconds))
        for name, seconds in parts.items() if seconds > 0.0
    ]  # fmt: skip
    plot = both(lambda width: plots.bars(bars, width, "Seconds of a step"), HALF)
    lede = Phrase("Seconds by part of a step.", "一步之中各部分所用时间。")
    return section(Phrase("Where a step goes", "时间去向"), lede, element("figure", plot))


def _roofline(forecast: Forecast) -> Markup:
    """What bounds each operation, under the roofs of the data sheet."""
    rows, precision = forecast.predicted.rows, forecast.spread.precision
    shown = roofline.expected(
        rows, forecast.predicted.step_seconds, lambda row: spoken(OPERATIONS, row.operation)
    )
    limits = roofs_of_device(forecast.fleet, precision)
    lede = Phrase(
        "No operation can pass the slope (memory) or the flat roof (arithmetic) of a device's data "
        "sheet. Larger rings take more of the step; → forward, ← backward. {movers}",
        "任何运算都无法越过规格书所定的斜线（显存）与平顶（算力）。圆环越大，占一步的时间越多；"
        "→ 前向，← 反向。{movers}",
    ).filled(movers=movers(rows))
    plot = both(lambda width: roofline.roofline(shown, limits, precision, width), MAIN)
    return section(Phrase("Roofline", "屋顶线"), lede, element("figure", plot))


def _memory(forecast: Forecast) -> Markup:
    peak = forecast.predicted.memory
    bars = [
        (spoken(MEMORY, name), value, same(size(value)))
        for name, value in peak.ranked() if value > 0
    ]  # fmt: skip
    plot = both(
        lambda width: plots.bars(
            bars, width, "Bytes of the fullest device", limit=forecast.memory_limit, stacked=True
        ),
        HALF,
    )
    when = _MOMENTS[forecast.peak_at]
    if forecast.peak_at == "loss" and forecast.spread.pipeline > 1:
        when = Phrase("on the stage of the head, at the loss", "输出层所在级，计算损失时")
    lede = Phrase(
        "Bytes of the fullest device at its peak: {when}. Dashed: what it has.",
        "最满的一张卡在峰值时的显存：{when}。虚线：可用量。",
    ).filled(when=when)
    return section(Phrase("Where memory goes", "显存去向"), lede, element("figure", plot))


def _front(forecast: Forecast) -> Markup:
    points = [
        (option.memory_peak / 1e9, option.step_seconds, tables.layout(option.spread))
        for option in (*forecast.front, *forecast.runners_up)
    ]
    lede = Phrase("No layout is both quicker and leaner than those on the left edge.",
                  "左下边缘上的布局，没有哪个既更快又更省。")  # fmt: skip
    plot = both(lambda width: plots.front(points, forecast.memory_limit / 1e9, width), HALF)
    title = Phrase("Time against memory", "时间与显存")
    return section(title, lede, element("figure", plot))


def _scaling(forecast: Forecast) -> Markup:
    known = [(each.devices, each.tokens_per_s) for each in forecast.scaling if each.tokens_per_s]
    title = Phrase("More devices, the same batch", "更多加速器，同样的批")
    if len(known) < 2:
        return section(title, Phrase("No other number fits.", "没有其他数量放得下。"))
    bend = forecast.bend
    lede = Phrase("Dashed: as many times the tokens as devices.", "虚线：吞吐与加速器数成正比。")
    own = forecast.fleet.devices
    if bend is None:
        plot = both(lambda width: plots.scaling(known, own, width), HALF)
        return section(title, lede, element("figure", plot))
    tokens = forecast.predicted.step_tokens
    plot = both(
        lambda width: plots.scaling(known, own, width, lambda n: tokens / bend.step_seconds(n)),
        HALF,
    )
    legend = [
        key("line", Phrase("the model", "模型")),
        key("line validation", same("T = a n/p + b p")),
    ]
    note = element("p", _bend(bend, max(n for n, _ in known)), class_="lede")
    return section(title, lede, figure(legend, plot), note)


def _bend(bend: Bend, most: int) -> Phrase:
    """At how many devices the articles' formula bends, and at how many the model does."""
    formula = Phrase("does not bend (b = 0)", "不弯折（b = 0）")
    if bend.devices is not None:
        formula = Phrase(
            "bends at √(a n/b) = {n} devices", "在 √(a n/b) = {n} 张卡处弯折"
        ).filled(n=f"{bend.devices:,.0f}")  # fmt: skip
    real = Phrase("has not bent by {n}", "到 {n} 张卡仍未弯折").filled(n=f"{most:,}")
    if bend.devices_real is not None:
        real = Phrase("bends at {n}", "在 {n} 张卡处弯折").filled(n=f"{bend.devices_real:,.0f}")
    return Phrase(
        "Where half of the devices' time is lost: the formula, fitted to these steps within "
        "{error}, {formula}; the model {real}.",
        "以一半卡时被浪费为准：公式（与这些步的拟合误差在 {error} 以内）{formula}；模型{real}。",
    ).filled(error=share(bend.error), formula=formula, real=real)


def _pipeline(forecast: Forecast) -> Markup | None:
    spread = forecast.spread
    if spread.pipeline == 1:
        return None
    plot = both(lambda width: plots.pipeline(spread, width), 2 * HALF)
    lede = Phrase(
        "{schedule}: what runs on the first ranks for the first micro-batches, forward, backward "
        "and gradients of weights; gaps are the bubble.",
        "{schedule}：前几个设备在前几个微批上的前向、反向与权重梯度；空白即气泡。",
    ).filled(schedule=VALUES[spread.schedule])
    return section(Phrase("The pipeline", "流水线"), lede, element("figure", plot))
