"""The page of a forecast: one HTML file about a model on machines that one may rent."""

from __future__ import annotations

from pathlib import Path

from narrows.report import outlook_plots as plots
from narrows.report.document import document
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import (
    compact,
    duration,
    energy,
    flop_rate,
    grams,
    percent,
    share,
    significant,
    size,
)
from narrows.report.sections import HALF, both, section
from narrows.report.words import BASES, Phrase, same, spoken
from narrows.spec.fleet import Spread
from narrows.spec.forecast import Elsewhere, Forecast
from narrows.spec.record import write_atomically

_AXES = {
    "data": Phrase("data", "数据"), "replicas": Phrase("copies", "副本"),
    "tensor": Phrase("tensor", "张量"), "pipeline": Phrase("pipeline", "流水线"),
    "context": Phrase("context", "上下文"), "expert": Phrase("expert", "专家"),
    "interleave": Phrase("pieces a stage", "每级分块"),
}  # fmt: skip
_RESOURCES = {
    "compute": Phrase("compute", "算力"),
    "memory bandwidth": Phrase("memory bandwidth", "显存带宽"),
    "memory capacity": Phrase("memory capacity", "显存容量"),
    "link bandwidth inside a node": Phrase("link bandwidth inside a node", "节点内带宽"),
    "network bandwidth": Phrase("network bandwidth", "网络带宽"),
    "link latency": Phrase("link latency", "通信延迟"),
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
        element("div", _time(forecast), _memory(forecast), class_=wide),
        element("div", _front(forecast), _scaling(forecast), class_=wide),
        _pipeline(forecast),
        element("div", _doubling(forecast), _techniques(forecast), class_=wide),
        _layouts(forecast),
        _elsewhere(forecast),
        _facts(forecast),
        element("footer", Phrase(
            "Written by narrows. Nothing here was measured: data sheets, and what published runs "
            "kept up of them. The page loads nothing.",
            "由 narrows 生成。此处没有实测值：依据规格书，以及公开测量所达到的比例。"
            "本页不加载任何外部内容。",
        )),
    )  # fmt: skip


def layout(spread: Spread) -> Phrase:
    """A layout in words."""
    english, chinese = [], []
    for name, word in _AXES.items():
        count = getattr(spread, name)
        if count > 1 or name == "data":
            english.append(f"{word.en} {count}")
            chinese.append(f"{word.zh} {count}")
    micro = f"{spread.micro_batch} × {spread.accumulation}"
    recompute = "" if spread.recompute == "none" else f", recompute {spread.recompute}"
    return Phrase(
        f"{', '.join(english)}; micro-batch {micro}; {spread.sharding} sharded{recompute}",
        f"{'、'.join(chinese)}；微批 {micro}；分片 {spread.sharding}"
        + ("" if not recompute else f"；重计算 {spread.recompute}"),
    )


def _hero(forecast: Forecast) -> Markup:
    fleet, said = forecast.fleet, layout(forecast.spread)
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
    cards: list[tuple[Phrase, Node, Node]] = [
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
        cards.append((Phrase("power", "功率"), f"{significant(watts / 1e3)} kW",
                      Phrase("all devices", "全部加速器")))  # fmt: skip
    if (run := forecast.run) is not None:
        cards.append((Phrase("whole training", "全程"), duration(run.seconds),
                      "" if run.joules is None else energy(run.joules)))  # fmt: skip
        if run.dollars is not None:
            cards.append((Phrase("money", "费用"), f"${run.dollars:,.0f}",
                          Phrase("at rental prices", "按租价")))  # fmt: skip
        if run.carbon_grams is not None:
            cards.append((Phrase("carbon", "碳排放"), grams(run.carbon_grams),
                          Phrase("CO₂ equivalent", "CO₂ 当量")))  # fmt: skip
    return [
        element("div", element("p", name, class_="name"), element("p", value, class_="figure"),
                element("p", beside, class_="was"), class_="card")
        for name, value, beside in cards
    ]  # fmt: skip


def _time(forecast: Forecast) -> Markup:
    rows = sorted(forecast.predicted.rows, key=lambda row: -row.seconds)
    bars = [(same(row.operation), row.seconds, duration(row.seconds)) for row in rows]
    plot = both(lambda width: plots.bars(bars, width, "Seconds of a step"), HALF)
    lede = Phrase("Seconds by part of a step.", "一步之中各部分所用时间。")
    return section(Phrase("Where a step goes", "时间去向"), lede, element("figure", plot))


def _memory(forecast: Forecast) -> Markup:
    peak = forecast.predicted.memory
    bars = [
        (spoken({}, name), value, same(size(value)))
        for name, value in peak.ranked() if value > 0
    ]  # fmt: skip
    plot = both(lambda width: plots.bars(bars, width, "Bytes of the fullest device"), HALF)
    lede = Phrase("Bytes of the fullest device at its peak.", "最满的一张卡在峰值时的显存。")
    return section(Phrase("Where memory goes", "显存去向"), lede, element("figure", plot))


def _front(forecast: Forecast) -> Markup:
    points = [
        (option.memory_peak / 1e9, option.step_seconds, layout(option.spread))
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
    plot = both(lambda width: plots.scaling(known, forecast.fleet.devices, width), HALF)
    lede = Phrase("Dashed: as many times the tokens as devices.", "虚线：吞吐与加速器数成正比。")
    return section(title, lede, element("figure", plot))


def _pipeline(forecast: Forecast) -> Markup | None:
    spread = forecast.spread
    if spread.pipeline == 1:
        return None
    plot = both(lambda width: plots.pipeline(spread, width), 2 * HALF)
    lede = Phrase(
        "One forward, one backward: what runs on the first stages for the first micro-batches; "
        "gaps are the bubble.",
        "一前一后（1F1B）：前几级流水线在前几个微批上的执行；空白即气泡。",
    )
    return section(Phrase("The pipeline", "流水线"), lede, element("figure", plot))


def _doubling(forecast: Forecast) -> Markup:
    rows = [
        _row(spoken(_RESOURCES, each.resource), percent(-each.saving), duration(each.step_seconds),
             first=each.resource == forecast.bottleneck)
        for each in forecast.doubling
    ]  # fmt: skip
    lede = Phrase("What twice as much of each resource would save of a step.",
                  "每种资源加倍后，每步能省多少。")  # fmt: skip
    heads = (Phrase("twice the", "加倍"), Phrase("saves", "节省"), Phrase("step", "每步"))
    return section(Phrase("If one had twice as much", "若资源加倍"), lede, _table(heads, rows))


def _techniques(forecast: Forecast) -> Markup:
    now = forecast.predicted.step_seconds
    rows = [
        _row(same(each.verdict.partition(":")[0]), f"{each.step_seconds / now:.2f}×",
             size(each.memory_peak), first=False)
        for each in forecast.techniques
    ]  # fmt: skip
    lede = Phrase("The chosen layout with one thing changed.", "在选定布局上只改一项。")
    heads = (Phrase("changed", "改动"), Phrase("time", "时间"), Phrase("memory", "显存"))
    return section(Phrase("What a technique is worth", "每种技术值多少"), lede,
                   _table(heads, rows))  # fmt: skip


def _layouts(forecast: Forecast) -> Markup | None:
    if not forecast.runners_up:
        return None
    rows = [
        _row(layout(each.spread), duration(each.step_seconds), size(each.memory_peak), first=False)
        for each in forecast.runners_up
    ]
    heads = (Phrase("layout", "布局"), Phrase("step", "每步"), Phrase("memory", "显存"))
    lede = Phrase("The next best of other kinds.", "其他类型中的次优者。")
    return section(Phrase("Layouts that lose", "落选的布局"), lede, _table(heads, rows))


def _elsewhere(forecast: Forecast) -> Markup | None:
    if not forecast.elsewhere:
        return None
    heads = (
        Phrase("machine", "机器"), Phrase("step", "每步"), Phrase("tokens/s", "每秒 token"),
        Phrase("$ for a billion tokens", "每十亿 token 费用"),
        Phrase("J a token", "每 token 焦耳"),
    )  # fmt: skip
    rows = [_place(each) for each in forecast.elsewhere]
    lede = Phrase("The same step at its best on each.", "同样的一步，在各处的最优。")
    return section(Phrase("Elsewhere", "换一台机器"), lede, _table(heads, rows))


def _place(each: Elsewhere) -> Markup:
    if each.step_seconds is None or each.tokens_per_s is None:
        return element("tr", element("th", each.fleet, scope="row"),
                       element("td", each.verdict, colspan="4"))  # fmt: skip
    money, joules = each.dollars_per_billion_tokens, each.joules_per_token
    return _row(
        same(each.fleet), duration(each.step_seconds), f"{each.tokens_per_s:,.0f}",
        "–" if money is None else f"${money:,.0f}",
        "–" if joules is None else significant(joules), first=False,
    )  # fmt: skip


def _facts(forecast: Forecast) -> Markup:
    fleet = forecast.fleet
    facts = [(f"peak {name}", fact) for name, fact in fleet.peak.items()]
    told: list[tuple[str, str, str, str]] = [
        (name, fact.value.text(4), fact.basis, fact.source) for name, fact in facts
    ]
    for name, fact in (("memory", fleet.memory_capacity), ("bandwidth", fleet.memory_bandwidth),
                       ("carbon", fleet.carbon), ("price", fleet.price)):  # fmt: skip
        if fact is not None:
            told.append((name, fact.value.text(4), fact.basis, fact.source))
    told += [
        (
            domain.name,
            domain.bandwidth.value.text(4),
            domain.bandwidth.basis,
            domain.bandwidth.source,
        )
        for domain in fleet.domains
    ]
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value, class_="number"),
                element("td", spoken(BASES, basis), class_="basis"),
                element("td", source, class_="source"))
        for name, value, basis, source in told
    ]  # fmt: skip
    heads = (Phrase("fact", "事实"), Phrase("value", "取值"), Phrase("basis", "依据"),
             Phrase("source", "来源"))  # fmt: skip
    lede = Phrase(f"Reach: {fleet.reach.source}.", f"可达比例：{fleet.reach.source}。")
    return section(Phrase("What it is computed from", "计算依据"), lede, _table(heads, rows))


def _row(name: Phrase, *values: Node, first: bool) -> Markup:
    cells = [element("td", value, class_="number") for value in values]
    return element("tr", element("th", name, scope="row"), cells,
                   class_="first" if first else None)  # fmt: skip


def _table(heads: tuple[Phrase, ...], rows: list[Markup]) -> Markup:
    cells = [
        element("th", head, scope="col", class_="number" if place else None)
        for place, head in enumerate(heads)
    ]
    table = element("table", element("thead", element("tr", cells)), element("tbody", rows))
    return element("div", table, class_="scroll")
