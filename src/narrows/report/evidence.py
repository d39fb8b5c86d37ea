"""How each number of a prediction is known, and what stands below all of them."""

from __future__ import annotations

from narrows.report.grid import table
from narrows.report.markup import Markup, element
from narrows.report.sections import section
from narrows.report.words import BASES, Phrase, spoken
from narrows.spec.forecast import Evidence

_EVIDENCE = {
    "step": Phrase("step", "每步"), "memory_of_a_device": Phrase("memory of a device", "每卡显存"),
    "power": Phrase("power", "功率"), "goodput": Phrase("goodput", "有效时间"),
    "whole_training": Phrase("whole training", "全程"), "energy": Phrase("energy", "能量"),
    "money": Phrase("money", "费用"), "carbon": Phrase("carbon", "碳排放"),
    "loss": Phrase("loss", "损失"), "memory": Phrase("memory", "显存"),
    "memory_bandwidth": Phrase("memory bandwidth", "显存带宽"),
    "power_idle": Phrase("power, idle", "空闲功率"),
    "power_full": Phrase("power, full", "满载功率"),
    "price_of_a_device": Phrase("price of a device", "单卡租价"),
    "carbon_of_electricity": Phrase("carbon of electricity", "电力碳强度"),
    "power_usage_effectiveness": Phrase("power usage effectiveness", "电能使用效率（PUE）"),
    "reach": Phrase("reach", "可达比例"),
    "first_token": Phrase("first token", "首个 token"),
    "each_token_more": Phrase("each token more", "其后每个 token"),
    "tokens_a_second": Phrase("tokens a second", "每秒 token"),
    "energy_of_a_token": Phrase("energy of a token", "每 token 能量"),
    "money_for_a_million_tokens": Phrase("money for a million tokens", "每百万 token 费用"),
}  # fmt: skip


def evidence(answers: tuple[Evidence, ...], facts: tuple[Evidence, ...]) -> Markup:
    """How each number is known: what is predicted, then what it was made from."""
    groups = (
        (Phrase("what is said", "结论"), answers),
        (Phrase("what it rests on", "所依据的事实"), facts),
    )
    tables = [
        table((head, Phrase("value", "取值"), Phrase("basis", "依据"), Phrase("source", "来源")),
               [_known(each) for each in known], words=(0, 2, 3))
        for head, known in groups
    ]  # fmt: skip
    lede = Phrase("Each number with its basis: measured, datasheet, fitted, estimated or assumed.",
                  "每个数都注明依据：实测、规格书、拟合、估算或假定。")  # fmt: skip
    return section(Phrase("How it is known", "依据"), lede, *tables)


def footer() -> Markup:
    """The last line of a page that predicts."""
    return element("footer", Phrase(
        "Written by narrows. A prediction; the page loads nothing.",
        "由 narrows 生成。此为预测；本页不加载任何外部内容。",
    ))  # fmt: skip


def _known(each: Evidence) -> Markup:
    return element(
        "tr", element("th", spoken(_EVIDENCE, each.name), scope="row"),
        element("td", each.value, class_="number"),
        element("td", spoken(BASES, each.basis), class_="basis"),
        element("td", each.source, class_="source"),
    )  # fmt: skip
