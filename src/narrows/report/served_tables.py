"""Tables of a served model: what a change is worth, and why other layouts lose."""

from __future__ import annotations

from narrows.report.grid import row, table
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import compact, dollars, duration, percent, plain, significant
from narrows.report.outlook_tables import RESOURCES
from narrows.report.sections import section
from narrows.report.words import Phrase, same, spoken
from narrows.spec.plan import Doubling
from narrows.spec.service import Changed, Loss, Placement, Service, Serving

_CHANGES = {
    "weights_of_16_bits": Phrase("weights of 16 bits", "权重 16 位"),
    "weights_of_8_bits": Phrase("weights of 8 bits", "权重 8 位"),
    "weights_of_4_bits": Phrase("weights of 4 bits", "权重 4 位"),
    "cache_of_16_bits": Phrase("cache of 16 bits", "缓存 16 位"),
    "cache_of_8_bits": Phrase("cache of 8 bits", "缓存 8 位"),
    "attention_by_request": Phrase("attention by request", "注意力按请求分配"),
    "attention_over_all_ranks": Phrase("attention over all ranks", "注意力分到所有卡"),
    "prompts_beside_the_answers": Phrase("prompts beside the answers", "提示与解码同机"),
    "prompts_on_devices_of_their_own": Phrase(
        "prompts on devices of their own", "提示由专用设备计算"
    ),
    "prompts_whole": Phrase("prompts whole", "提示不分块"),
    "prompts_in_chunks_of_512": Phrase("prompts in chunks of 512", "提示按 512 分块"),
    "no_tokens_kept_of_a_prompt": Phrase("no tokens kept of a prompt", "不缓存提示前缀"),
    "half_of_each_prompt_kept": Phrase("half of each prompt kept", "缓存每个提示的一半"),
    "no_guesses": Phrase("no guesses", "不作猜测"),
    "4_tokens_guessed_ahead,_70%_right": Phrase(
        "4 tokens guessed ahead, 70% right", "超前猜 4 个 token，猜中 70%"
    ),
    "half_the_requests": Phrase("half the requests", "请求减半"),
    "twice_the_requests": Phrase("twice the requests", "请求加倍"),
    "half_the_devices": Phrase("half the devices", "设备减半"),
    "twice_the_devices": Phrase("twice the devices", "设备加倍"),
}
_LOSSES = {
    "first token too late": Phrase(
        "first token {times} times the limit", "首个 token 为上限的 {times} 倍"
    ),
    "tokens too slow": Phrase("tokens {times} times the limit", "token 间隔为上限的 {times} 倍"),
    "too little room": Phrase(
        "{times} times as many requests as there is room for", "请求为可容纳数的 {times} 倍"
    ),
    "narrower weights": Phrase("weights are stored narrower", "权重位数更少"),
    "narrower cache": Phrase("keys and values are stored narrower", "键值位数更少"),
    "fewer tokens": Phrase("{times} times the tokens a second", "每秒 token 为 {times} 倍"),
    "slower tokens": Phrase(
        "as many tokens, each {times} times as long", "吞吐相同，间隔为 {times} 倍"
    ),
}
_STARTS = {"kernels'_starts_a_second": Phrase("kernels' starts a second", "核函数启动速率")}


def placement(placed: Placement) -> Phrase:
    """A layout in words."""
    sets = f"{placed.replicas} replicas" if placed.replicas > 1 else "one replica"
    english, chinese = (
        f"{sets} of {placed.tensor}",
        f"{placed.replicas} 个副本，每个 {placed.tensor} 卡",
    )
    if placed.groups > 1:
        english += ", attention by request"
        chinese += "，注意力按请求分配"
    if placed.apart:
        english += f" + {placed.apart} for prompts"
        chinese += f"，另有 {placed.apart} 组专算提示"
    weights, cache = _bits(placed.weight_bits), _bits(placed.cache_bits)
    return Phrase(
        f"{english}; {weights}-bit weights, {cache}-bit cache",
        f"{chinese}；权重 {weights} 位，缓存 {cache} 位",
    )


def _bits(bits: float) -> str:
    return "4" if bits == 4.5 else f"{bits:g}"


def doubling(rows: tuple[Doubling, ...], title: Phrase) -> Markup:
    """What twice as much of each resource would save of a pass."""
    known = {**RESOURCES, **_STARTS}
    found = [
        row(spoken(known, each.resource), percent(-each.saving), duration(each.step_seconds),
            first=each is rows[0])
        for each in rows
    ]  # fmt: skip
    lede = Phrase("{first} holds it back.", "受限于{first}。").filled(
        first=spoken(known, rows[0].resource)
    )
    heads = (Phrase("twice the", "加倍"), Phrase("saves", "节省"), Phrase("takes", "用时"))
    return section(title, lede, table(heads, found))


def changes(found: Service) -> Markup:
    """What one change is worth, beside this plan."""
    rows = [
        _way(Phrase("this plan", "本方案"), found.best, same(""), first=True),
        *(_changed(each, found.best.placement) for each in found.changes),
    ]
    lede = Phrase(
        "Each alone, all else as it is; of other numbers of requests and devices, the best one. "
        "Times are those of nine in ten requests. What narrower weights and keys cost in quality "
        "is not told.",
        "每次只改一项，其余不变；请求数或设备数改变时取最优布局。时间为十之九的请求所不超过者。"
        "位数减少对质量的影响不在其列。",
    )
    heads = (Phrase("changed", "改动"), *_HEADS, Phrase("verdict", "结论"))
    title = Phrase("What a change is worth", "改一项值多少")
    return _listed(title, lede, heads, rows)


_HEADS = (
    Phrase("first token", "首个 token"), Phrase("each more", "其后每个"),
    Phrase("tokens/s", "每秒 token"), Phrase("J a token", "每 token 焦耳"),
    Phrase("$ for a million", "每百万费用"),
)  # fmt: skip


def _changed(each: Changed, mine: Placement) -> Markup:
    name = spoken(_CHANGES, each.name)
    if each.way is None:
        told = Phrase("does not fit", "放不下")
        if each.outcome == "saturated":
            told = Phrase(
                "too many come: {most} requests a second at most", "请求过多：每秒至多 {most} 个"
            ).filled(most=plain(each.most or 0.0))  # fmt: skip
        return element("tr", element("th", name, scope="row"),
                       element("td", told, colspan="6", class_="why warn"))  # fmt: skip
    late = each.outcome == "late"
    told = Phrase("later than the limits", "超出上限") if late else same("")
    if each.searched and each.way.placement != mine:
        own = placement(each.way.placement)
        told = Phrase("{own}; {late}", "{own}；{late}").filled(own=own, late=told) if late else own
    return _way(name, each.way, told, warn=late)


def others(found: Service) -> Markup | None:
    """The next best layouts, and why they lose."""
    if not found.others:
        return None
    rows = [_way(placement(way.placement), way, _loss(found.loses(way))) for way in found.others]
    heads = (Phrase("layout", "布局"), *_HEADS, Phrase("why it loses", "落选原因"))
    lede = Phrase(
        "The widest weights and keys that meet the limits are taken, then the most tokens, then "
        "the soonest. Those that come too late stand last.",
        "在满足上限者中先取位数最多的权重与键值，再取吞吐最高者，再取最快者；超出上限者列在最后。",
    )
    title = Phrase("Layouts that lose", "落选的布局")
    return _listed(title, lede, heads, rows)


def _listed(title: Phrase, lede: Phrase, heads: tuple[Phrase, ...], rows: list[Markup]) -> Markup:
    """Numbers between a name and a verdict; on a phone each row is a paragraph."""
    told = section(title, lede, table(heads, rows, words=(0, len(heads) - 1)))
    return element("div", told, class_="layouts")


def _loss(loss: Loss) -> Phrase:
    return _LOSSES[loss.reason].filled(times=f"{loss.times:.2f}")


def _way(
    name: Phrase, way: Serving, told: Phrase, *, first: bool = False, warn: bool = False
) -> Markup:
    usage = way.usage
    joules, money = usage.joules_per_token, usage.dollars_per_million_tokens
    numbers: tuple[Node, ...] = (
        duration(way.first_token.p90), duration(way.per_token.p90), compact(way.tokens_per_s),
        "–" if joules is None else significant(joules),
        "–" if money is None else dollars(money),
    )  # fmt: skip
    return element(
        "tr", element("th", name, scope="row"),
        [
            element("td", element("span", head, " ", class_="of-phone"), number, class_="number")
            for head, number in zip(_HEADS, numbers, strict=True)
        ],
        element("td", told, class_="why warn" if warn else "why"),
        class_="first" if first else None,
    )  # fmt: skip
