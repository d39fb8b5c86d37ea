"""Tables of a forecast: what a budget buys, what a change is worth, other machines, the facts."""

from __future__ import annotations

from narrows.report.grid import row, table
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import compact, dollars, duration, percent, significant, size
from narrows.report.reasons import reason
from narrows.report.sections import section
from narrows.report.words import LAYOUT, VALUES, Phrase, same, spoken
from narrows.spec.fleet import Spread
from narrows.spec.forecast import Elsewhere, Forecast, Sizing

_AXES = ("data", "replicas", "tensor", "pipeline", "context", "expert", "interleave")
_GOALS = {
    "time": Phrase("time", "时间"), "money": Phrase("money", "费用"),
    "energy": Phrase("energy", "能量"), "memory": Phrase("memory", "显存"),
}  # fmt: skip
_TECHNIQUES = {
    "recompute": "重计算：", "shard": "分片：", "kernels:": "算子：",
    "attention through memory": "注意力经由显存", "optimizer states in 8 bits": "优化器状态 8 位",
    "optimizer offloaded:": "优化器卸载至：", "no sequence parallelism": "不用序列并行",
    "contexts by": "上下文交换：", "parameters dropped after use: true": "参数用后释放",
    "parameters dropped after use: false": "参数用后保留",
    "placed": "放置：",
}  # fmt: skip
_PIPELINE = " pipeline"
RESOURCES = {
    "compute": Phrase("compute", "算力"),
    "memory_bandwidth": Phrase("memory bandwidth", "显存带宽"),
    "memory_capacity": Phrase("memory capacity", "显存容量"),
    "link_bandwidth_inside_a_node": Phrase("link bandwidth inside a node", "节点内带宽"),
    "network_bandwidth": Phrase("network bandwidth", "网络带宽"),
    "link_latency": Phrase("link latency", "通信延迟"),
}


def layout(spread: Spread) -> Phrase:
    """A layout in words."""
    english, chinese = [], []
    for name in _AXES:
        word, count = LAYOUT[name], getattr(spread, name)
        if count > 1 or name == "data":
            english.append(f"{word.en} {count}")
            chinese.append(f"{word.zh} {count}")
    micro = f"{spread.micro_batch} × {spread.accumulation}"
    english.append(f"micro-batch {micro}")
    chinese.append(f"微批 {micro}")
    for name, value in {"sharding": spread.sharding, **spread.unusual}.items():
        word, said = LAYOUT[name], VALUES.get(str(value), same(str(value)))
        english.append(f"{word.en} {said.en}")
        chinese.append(f"{word.zh} {said.zh}")
    return Phrase(", ".join(english), "、".join(chinese))


def dial(forecast: Forecast) -> Markup | None:
    """What the budget buys, by each of its bounds."""
    dial = forecast.dial
    if dial is None:
        return None
    rows = [
        row(same(each.bound), compact(each.tokens), first=each is dial.limits[0])
        for each in dial.limits
    ]
    told = [Phrase(
        "The first bound is the tightest; {tokens} tokens are whole steps within it. "
        "Compute-optimal for this size: {optimal} tokens.",
        "第一项约束最紧；在其内的整步共 {tokens} token。此规模的计算最优量：{optimal} token。",
    ).filled(tokens=compact(dial.tokens), optimal=compact(dial.tokens_optimal))]  # fmt: skip
    if dial.loss is not None:
        told.append(Phrase(
            "Loss by the scaling law, of its own text and tokenizer (arXiv:2404.10102): {loss}.",
            "按缩放定律的损失（以其自身的文本与分词器计，arXiv:2404.10102）：{loss}。",
        ).filled(loss=significant(dial.loss)))  # fmt: skip
    if dial.sizing is not None:
        told.append(_sizing(dial.sizing))
    heads = (Phrase("at most", "至多"), Phrase("tokens", "token 数"))
    notes = [element("p", each, class_="lede") for each in told[1:]]
    title = Phrase("What the budget buys", "预算能买到什么")
    return section(title, told[0], table(heads, rows), *notes)


def _sizing(sizing: Sizing) -> Phrase:
    if sizing.twice_parameters is None or sizing.twice_tokens is None:
        return Phrase(
            "Of {sizes} sizes, the one that these tokens are compute-optimal for.",
            "在 {sizes} 种规模中，这些 token 恰为其计算最优量的一种。",
        ).filled(sizes=sizing.sizes)
    largest = (
        Phrase(" The next larger one does not fit.", "再大一号就放不下。")
        if sizing.largest
        else same("")
    )
    return Phrase(
        "Of {sizes} sizes, the one with the lowest loss, each at the throughput of its own best "
        "layout.{largest} Twice as much would make it {parameters} parameters on {tokens} tokens.",
        "在 {sizes} 种规模中损失最低的一种，每种都以其最优布局的吞吐计。{largest}预算加倍则为 "
        "{parameters} 参数、{tokens} token。",
    ).filled(
        sizes=sizing.sizes, largest=largest, parameters=compact(sizing.twice_parameters),
        tokens=compact(sizing.twice_tokens),
    )  # fmt: skip


def doubling(forecast: Forecast) -> Markup:
    """What twice as much of each resource would save."""
    rows = [
        row(spoken(RESOURCES, each.resource), percent(-each.saving), duration(each.step_seconds),
             first=each.resource == forecast.bottleneck)
        for each in forecast.doubling
    ]  # fmt: skip
    lede = Phrase("What twice as much of each resource would save of a step.",
                  "每种资源加倍后，每步能省多少。")  # fmt: skip
    heads = (Phrase("twice the", "加倍"), Phrase("saves", "节省"), Phrase("step", "每步"))
    return section(Phrase("If one had twice as much", "若资源加倍"), lede, table(heads, rows))


def techniques(forecast: Forecast) -> Markup:
    """The chosen layout with one thing changed."""
    now = forecast.predicted.step_seconds
    rows = [
        row(_technique(each.verdict.rpartition(": ")[0]), f"{each.step_seconds / now:.2f}×",
             _room(each.memory_peak, forecast.memory_limit), first=False)
        for each in forecast.techniques
    ]  # fmt: skip
    lede = Phrase("The chosen layout with one thing changed.", "在选定布局上只改一项。")
    heads = (Phrase("changed", "改动"), Phrase("time", "时间"), Phrase("memory", "显存"))
    return section(Phrase("What a technique is worth", "每种技术值多少"), lede,
                   table(heads, rows))  # fmt: skip


def _technique(name: str) -> Phrase:
    """What was changed; its value stands behind a word of ours, or before it."""
    for start, chinese in _TECHNIQUES.items():
        if name.startswith(start):
            value = spoken(VALUES, name.removeprefix(start).strip())
            return Phrase(name, f"{chinese}{value.zh}")
    if name.endswith(_PIPELINE):
        return Phrase(name, f"流水线：{spoken(VALUES, name.removesuffix(_PIPELINE)).zh}")
    return same(name)


def _room(peak: float, limit: float) -> Node:
    """Bytes, and where a device has fewer, that."""
    if peak <= limit:
        return size(peak)
    over = Phrase("{peak}, does not fit", "{peak}，放不下").filled(peak=size(peak))
    return element("span", over, class_="warn")


def layouts(forecast: Forecast) -> Markup | None:
    """The best layouts of other kinds."""
    if not forecast.runners_up:
        return None
    rows = [
        row(layout(each.spread), duration(each.step_seconds), size(each.memory_peak), first=False)
        for each in forecast.runners_up
    ]
    heads = (Phrase("layout", "布局"), Phrase("step", "每步"), Phrase("memory", "显存"))
    lede = Phrase("The next best of other kinds.", "其他类型中的次优者。")
    return section(Phrase("Layouts that lose", "落选的布局"), lede, table(heads, rows))


def elsewhere(forecast: Forecast) -> Markup | None:
    """The same step on other machines."""
    if not forecast.elsewhere:
        return None
    heads = (
        Phrase("machine", "机器"), Phrase("step", "每步"), Phrase("tokens/s", "每秒 token"),
        Phrase("$ for a billion tokens", "每十亿 token 费用"),
        Phrase("J a token", "每 token 焦耳"),
    )  # fmt: skip
    rows = [_place(each, first=each is forecast.elsewhere[0]) for each in forecast.elsewhere]
    lede = Phrase(
        "The same step at its best on each; the best for {goal} first.",
        "同样的一步，在各处的最优；{goal}最优者在前。",
    ).filled(goal=spoken(_GOALS, forecast.goal))
    return section(Phrase("Elsewhere", "换一台机器"), lede, table(heads, rows))


def _place(each: Elsewhere, *, first: bool) -> Markup:
    if each.step_seconds is None or each.tokens_per_s is None:
        return element("tr", element("th", each.fleet, scope="row"),
                       element("td", reason(each.verdict), colspan="4"))  # fmt: skip
    money, joules = each.dollars_per_billion_tokens, each.joules_per_token
    return row(
        same(each.fleet), duration(each.step_seconds), f"{each.tokens_per_s:,.0f}",
        "–" if money is None else dollars(money),
        "–" if joules is None else significant(joules), first=first,
    )  # fmt: skip
