"""The page of a model that is served: one HTML file about how it would answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from narrows.report import outlook_plots as plots
from narrows.report import roofline
from narrows.report import served_tables as tables
from narrows.report.document import document
from narrows.report.evidence import evidence, footer
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import compact, dollars, duration, plain, share, significant, size
from narrows.report.roofs import roofs_of_device
from narrows.report.sections import HALF, MAIN, both, cards, figure, key, movers, section
from narrows.report.served_plots import sweep
from narrows.report.words import MEMORY, OPERATIONS, Phrase, same, spoken
from narrows.spec.ledger import Row
from narrows.spec.record import write_atomically
from narrows.spec.service import ENGINE_NAMES, Quantiles, Requests, Service

_PERCENTS = (50, 90, 99)


def write(found: Service, page: Path) -> None:
    """Write the page; raises OSError where it cannot be written."""
    write_atomically(page, html(found).encode("utf-8"))


def html(found: Service) -> str:
    """The whole page."""
    return document(
        f"{found.model_name} · {found.fleet.name}",
        _hero(found),
        element("div", _cards(found), class_="cards"),
        element("div", _times(found), _memory(found), class_="columns"),
        _sweep(found),
        element("div", _prefill(found), _decode(found), class_="columns"),
        element("div", *_doubling(found), class_="columns"),
        tables.changes(found),
        tables.others(found),
        evidence(found.answers, found.facts),
        footer(),
    )  # fmt: skip


def _doubling(found: Service) -> Iterator[Markup]:
    passes = (
        (found.doubling_prefill, Phrase("A prompt with twice", "提示：若加倍")),
        (found.doubling_decode, Phrase("A step with twice", "解码：若加倍")),
    )
    yield from (tables.doubling(rows, title) for rows, title in passes if rows)


def _hero(found: Service) -> Markup:
    fleet = found.fleet
    asides = [tables.placement(found.best.placement), _load(found), _engine(found)]
    if found.guesses is not None:
        by = same(f" ({found.guesses.draft})" if found.guesses.draft else "")
        asides.append(Phrase(
            "{ahead} tokens guessed ahead{by}, {accept} of them right: {tokens} a step.",
            "超前猜测 {ahead} 个 token{by}，猜中 {accept}：每步 {tokens} 个。",
        ).filled(
            ahead=found.guesses.ahead, by=by, accept=share(found.guesses.accept),
            tokens=significant(found.guesses.tokens),
        ))  # fmt: skip
    return element(
        "div",
        element("p", element("span", Phrase("forecast", "预测")), class_="status"),
        element("h1", Phrase(
            f"{found.model_name} served by {fleet.devices:,} × {fleet.accelerator}",
            f"{found.model_name} 的推理服务，{fleet.devices:,} × {fleet.accelerator}",
        )),
        [element("p", each, class_="aside") for each in asides],
        class_="hero",
    )  # fmt: skip


def _engine(found: Service) -> Phrase:
    named = ENGINE_NAMES[found.engine]
    return Phrase(
        f"Engine: {named}.", f"推理引擎：{'无服务器' if found.engine == 'bare' else named}。"
    )


def _load(found: Service) -> Phrase:
    requests, several = found.requests, plain(found.best.concurrency)
    plural = "s" if found.best.concurrency != 1.0 else ""
    arriving = Phrase(f"{several} request{plural} at a time", f"同时 {several} 个请求")
    if requests.rate is not None:
        arriving = Phrase(
            "{rate} requests a second, {several} at a time",
            "每秒 {rate} 个请求，同时 {several} 个",
        ).filled(rate=plain(requests.rate), several=several)
    return Phrase(
        "{arriving}, each of {prompt} tokens in and {answer} out{more}.",
        "{arriving}，每个输入 {prompt} token、输出 {answer} token{more}。",
    ).filled(
        arriving=arriving, prompt=f"{requests.prompt:,}", answer=f"{requests.answer:,}",
        more=_more(requests),
    )  # fmt: skip


def _more(requests: Requests) -> Phrase:
    english = chinese = ""
    if requests.shared:
        english += f", the first {requests.shared:,} kept already"
        chinese += f"，其中前 {requests.shared:,} 个已缓存"
    if requests.chunk is not None:
        english += f", prompts in chunks of {requests.chunk:,}"
        chinese += f"，提示按 {requests.chunk:,} 分块"
    return Phrase(english, chinese)


def _cards(found: Service) -> list[Markup]:
    best, limits = found.best, found.limits
    percent = limits.percent
    rate = best.tokens_per_s
    told: list[tuple[Phrase, Node, Node]] = [
        (Phrase(f"first token, p{percent}", f"首个 token，p{percent}"),
         duration(best.first_token.at(percent)), _target(limits.first_token_s)),
        (Phrase(f"each token more, p{percent}", f"其后每个 token，p{percent}"),
         duration(best.per_token.at(percent)), _target(limits.per_token_s)),
        (Phrase("tokens a second", "每秒 token"), compact(rate),
         Phrase("{rate} requests a second", "每秒 {rate} 个请求").filled(
             rate=plain(rate / found.requests.answer))),
        (Phrase("memory of a device", "每卡显存"), size(best.held.total),
         Phrase(f"of {size(found.memory_limit)}", f"上限 {size(found.memory_limit)}")),
    ]  # fmt: skip
    usage = best.usage
    told.append((
        Phrase("prompts take", "提示占用"), share(usage.prefilling),
        Phrase("of the time", "的时间"),
    ))  # fmt: skip
    told.append((
        Phrase("products take", "矩阵乘法占用"), share(usage.computing),
        Phrase("of the devices' time", "的设备时间"),
    ))  # fmt: skip
    if (joules := usage.joules_per_token) is not None:
        told.append((Phrase("energy of a token", "每 token 能量"), f"{significant(joules)} J",
                     Phrase("written, all devices", "生成，全部加速器")))  # fmt: skip
    if (money := usage.dollars_per_million_tokens) is not None:
        told.append((Phrase("a million tokens", "每百万 token"), dollars(money),
                     Phrase("at rental prices", "按租价")))  # fmt: skip
    return cards(told)


def _target(most: float | None) -> Phrase:
    if most is None:
        return Phrase("no limit was given", "未设上限")
    return Phrase("at most {most}", "上限 {most}").filled(most=duration(most))


def _times(found: Service) -> Markup:
    best, limits = found.best, found.limits
    pause = duration(best.pause_s)
    lede = Phrase(
        "Of 100 requests, so many wait no longer. While a prompt is computed, {pause} pass between "
        "two tokens. Dashed: the limit, of {percent} in 100.",
        "每 100 个请求中有这么多不会等得更久。计算提示期间，两个 token 之间相隔 {pause}。"
        "虚线：上限，须对 100 个中的 {percent} 个成立。",
    ).filled(pause=pause, percent=limits.percent)
    return section(
        Phrase("How long requests wait", "请求要等多久"), lede,
        _quantiles(Phrase("first token", "首个 token"), best.first_token, limits.first_token_s),
        _quantiles(Phrase("each token more", "其后每个"), best.per_token, limits.per_token_s),
    )  # fmt: skip


def _quantiles(name: Phrase, times: Quantiles, limit: float | None) -> Markup:
    rows = [
        (Phrase("{name}, {of} of 100", "{name}，{of}%").filled(name=name, of=percent),
         times.at(percent), duration(times.at(percent)))
        for percent in _PERCENTS
    ]  # fmt: skip
    mean = Phrase("{name}, mean", "{name}，平均").filled(name=name)
    rows.append((mean, times.mean, duration(times.mean)))
    plot = both(lambda width: plots.bars(rows, width, f"Seconds: {name}", limit=limit), HALF)
    return element("figure", plot)


def _memory(found: Service) -> Markup:
    best = found.best
    held = (("weights", best.held.weights), ("runtime", best.held.runtime),
            ("cache", best.held.cache))  # fmt: skip
    bars = [(spoken(MEMORY, name), value, same(size(value))) for name, value in held if value > 0]
    room = f"{best.room:,.0f}"
    lede = Phrase(
        "Bytes of one device; dashed: what an engine uses of it. {room} requests' keys and values "
        "fit at a time.",
        "一张卡的显存；虚线：引擎可用量。可同时容纳 {room} 个请求的键值。",
    )
    if best.room < best.concurrency:
        lede = Phrase(
            "Bytes of one device; dashed: what an engine uses of it. {room} requests' keys and "
            "values fit at a time: the others wait.",
            "一张卡的显存；虚线：引擎可用量。只能同时容纳 {room} 个请求的键值，其余等待。",
        )
    plot = both(
        lambda width: plots.bars(
            bars, width, "Bytes of one device", limit=found.memory_limit, stacked=True
        ),
        HALF,
    )
    return section(
        Phrase("Where memory goes", "显存去向"), lede.filled(room=room), element("figure", plot)
    )  # fmt: skip


def _sweep(found: Service) -> Markup | None:
    if not found.sweep:
        return None
    lede = Phrase(
        "Each line is a width of a replica, all devices in use, from one request on each to as "
        "many as fit, prompts computed beside the answers. Filled points are the front: no other "
        "gives more tokens sooner. The large one is this plan.",
        "每条线是一种副本宽度，使用全部设备，从每副本一个请求直到放满，提示与解码同机计算；实心点为"
        "前沿：没有别的点在两方面都更好。大圆点是本方案。",
    )
    legend = [
        key("ring", Phrase("a load", "一种负载")),
        key("predicted disc", Phrase("the front", "前沿")),
        key("chosen disc", Phrase("this plan", "本方案")),
    ]
    plot = both(lambda width: sweep(found, width), MAIN * 1.3)
    title = Phrase("Throughput against latency", "吞吐与延迟")
    return section(title, lede, figure(legend, plot))


def _prefill(found: Service) -> Markup:
    prompt, shared = found.requests.prompt, found.requests.shared
    lede = Phrase(
        "One prompt in a pass of its own, {new} tokens: {seconds}.",
        "单独计算一个提示（{new} token）：{seconds}。",
    ).filled(new=f"{prompt - shared:,}", seconds=duration(_seconds(found.prefill)))
    return _pass(found, Phrase("Where a prompt goes", "提示的时间去向"), lede, found.prefill)


def _decode(found: Service) -> Markup:
    lede = Phrase(
        "One step of all that write on a replica: {seconds}.",
        "一个副本上全部请求的一步解码：{seconds}。",
    ).filled(seconds=duration(_seconds(found.decode)))
    return _pass(found, Phrase("Where a decode step goes", "解码的时间去向"), lede, found.decode)


def _seconds(rows: tuple[Row, ...]) -> float:
    return sum(row.seconds for row in rows)


def _pass(found: Service, title: Phrase, lede: Phrase, rows: tuple[Row, ...]) -> Markup:
    """Seconds by operation, and what of them bounds each: the roofline."""
    ordered = sorted(rows, key=lambda row: -row.seconds)
    bars = [(_name(row), row.seconds, duration(row.seconds)) for row in ordered]
    own = _precision(found)
    shown = roofline.expected(rows, _seconds(rows), _name)
    limits = roofs_of_device(found.fleet, own)
    told = Phrase("{lede} {movers}", "{lede}{movers}").filled(lede=lede, movers=movers(rows))
    return section(
        title, told,
        element("figure", both(lambda width: plots.bars(bars, width, "Seconds of a pass"), HALF)),
        element("figure", both(lambda w: roofline.roofline(shown, limits, own, w), HALF)),
    )  # fmt: skip


def _name(row: Row) -> Phrase:
    return spoken(OPERATIONS, row.operation)


def _precision(found: Service) -> str:
    """The format whose roof most products are under."""
    bits, known = found.best.placement.weight_bits, found.fleet.peak
    narrow = ("fp4",) if bits < 8.0 else ("fp8",) if bits < 16.0 else ()
    return next(name for name in (*narrow, "bf16", "fp16", *known) if name in known)
