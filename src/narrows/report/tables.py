"""The sections of the page that list: choices, layouts, energy, samples, events, machine."""

from __future__ import annotations

from narrows.report import comparison
from narrows.report.choices import choices as decided
from narrows.report.choices import considered, listed, told
from narrows.report.known import machine_facts, summed_up
from narrows.report.markup import Markup, Node, element
from narrows.report.numbers import duration, percent, show, size
from narrows.report.reasons import event as happened
from narrows.report.run import Run, Sample
from narrows.report.sections import section
from narrows.report.words import BASES, EVENTS, MEASURED, PREDICTED, Phrase, same, spoken

SAMPLE_CHARACTERS_MOST = 4000
EVENTS_MOST = 200


def choices(run: Run) -> Markup:
    """What the plan decided, and why."""
    rows = [
        element(
            "tr",
            element("th", choice.label, scope="row"),
            element("td", choice.value, class_="value"),
            element("td", choice.why, class_="why"),
        )
        for choice in decided(run.plan)
    ]
    head = _head((Phrase("choice", "选择"), Phrase("value", "取值"), Phrase("why", "理由")))
    return section(
        Phrase("What the plan chose, and why", "计划的选择与理由"),
        Phrase(
            "Whatever the job left open was decided before anything ran.",
            "任务未指定的一切，都在运行之前定下。",
        ),
        element("div", element("table", head, element("tbody", rows), class_="stacked"),
                class_="scroll"),
    )  # fmt: skip


def layouts(run: Run) -> Markup:
    """The layouts that were considered."""
    title = Phrase("Layouts considered", "考虑过的布局")
    if not run.plan.alternatives:
        return section(title, Phrase("The plan lists no others.", "计划中没有列出其他布局。"))
    columns = (
        Phrase("layout", "布局"),
        Phrase("step", "每步"),
        Phrase("memory", "内存"),
        Phrase("whole run", "全程"),
        Phrase("verdict", "结论"),
    )
    rows = []
    for row in considered(run.plan):
        numbers: tuple[Node, ...] = (
            duration(row.step_seconds),
            size(row.memory_peak),
            duration(row.total_seconds),
        )
        cells = [
            element("td", element("span", name, " ", class_="of-phone"), number, class_="number")
            for name, number in zip(columns[1:], numbers, strict=False)
        ]
        said = Phrase("chosen", "选中") if row.chosen and not row.verdict.en else row.verdict
        rows.append(
            element(
                "tr",
                element("th", row.difference, scope="row"),
                cells,
                element("td", said, class_="why"),
                class_="chosen" if row.chosen else None,
            )
        )
    table = element("table", _head(columns, numbers=(1, 2, 3)), element("tbody", rows))
    lede = Phrase(
        "Chosen: {layout}. The others are told by what they do otherwise.",
        "选中：{layout}。其余布局只列出不同之处。",
    ).filled(layout=listed(run.plan.layout, told(run.plan.layout)))
    return section(title, lede, element("div", table, class_="scroll layouts"))


def energy(run: Run) -> Markup:
    """Energy, money and carbon, each by its basis."""
    basis = run.measured.energy_basis if run.measured else run.plan.predicted.energy_basis
    lede = Phrase(
        "Energy was measured by the hardware's own counters.", "能量由硬件自身的计数器测得。"
    )
    if basis == "estimated":
        lede = Phrase(
            "Energy is estimated: nothing here reads the real power, so it follows from the "
            "machine's assumed watts and the time.",
            "能量为估算值：此处无法读取真实功率，由假定的机器功率乘以时间得出。",
        )
    rows = [
        element(
            "tr",
            element("th", pair.label, scope="row"),
            element("td", show(pair.predicted, pair.unit), class_="number"),
            element("td", show(pair.measured, pair.unit), class_="number"),
            element("td", percent(pair.error) if pair.error is not None else _so_far(pair),
                    class_="number"),
        )
        for pair in comparison.spending(run)
    ]  # fmt: skip
    real = MEASURED if basis == "measured" else Phrase("run (estimated)", "本次（估算）")
    head = _head((same(""), PREDICTED, real, Phrase("error", "误差")), numbers=(1, 2, 3))
    table = element("table", head, element("tbody", rows))
    sources = None
    if run.machine is not None:
        power = run.machine.electricity
        text = Phrase(
            "Price {price} ({price_basis}: {price_source}); carbon {carbon} ({carbon_basis}: "
            "{carbon_source}).",
            "电价或租价 {price}（{price_basis}：{price_source}）；碳强度 {carbon}"
            "（{carbon_basis}：{carbon_source}）。",
        ).filled(
            price=power.price.value,
            price_basis=spoken(BASES, power.price.basis),
            price_source=power.price.source,
            carbon=power.carbon.value,
            carbon_basis=spoken(BASES, power.carbon.basis),
            carbon_source=power.carbon.source,
        )
        sources = element("p", text, class_="lede", style="margin-top:.8rem")
    title = Phrase("Energy, money, carbon", "能量、费用与碳排放")
    return section(title, lede, element("div", table, class_="scroll"), sources)


def samples(run: Run) -> Markup:
    """What the model writes: the last samples open, the earlier ones folded away."""
    title = Phrase("What it writes", "模型写出的文字")
    if not run.samples:
        return section(title, Phrase("No sample was written yet.", "尚无生成样例。"))
    last_step = run.samples[-1].step
    last = [each for each in run.samples if each.step == last_step]
    earlier = [each for each in run.samples if each.step != last_step]
    folded = None
    if earlier:
        summary = Phrase("{count} earlier samples", "更早的 {count} 个样例")
        folded = element(
            "details",
            element("summary", summary.filled(count=len(earlier))),
            [_sample(each) for each in reversed(earlier)],
        )
    lede = Phrase(
        "The prompt is in bold; everything after it is the model's.",
        "粗体为提示，其后均为模型所写。",
    )
    return section(title, lede, [_sample(each) for each in last], folded)


def events(run: Run) -> Markup:
    """What happened on the way, and what could not be read."""
    checkpoints = [each for each in run.events if each.event == "checkpoint"]
    others = [each for each in run.events if each.event != "checkpoint"]
    items = [
        element(
            "li",
            element(
                "span",
                Phrase(f"step {each.step:,}", f"第 {each.step:,} 步"),
                class_="when",
            ),
            spoken(EVENTS, each.event),
            [Phrase(": ", "："), happened(each.message)] if each.message else None,
        )
        for each in others[-EVENTS_MOST:]
    ]
    if checkpoints:
        count = Phrase(
            "{count} checkpoints, the last at step {step}", "{count} 个检查点，最后在第 {step} 步"
        )
        items.append(
            element("li", count.filled(count=len(checkpoints), step=f"{checkpoints[-1].step:,}"))
        )
    items.extend(element("li", note) for note in run.notes)
    lede = Phrase("Nothing out of the ordinary.", "一切正常。") if not others else Phrase(
        "What was worth a note.", "值得一提之事。"
    )  # fmt: skip
    if run.notes:
        lede = Phrase("Some of the run folder is missing.", "运行目录有所缺失。")
    return section(Phrase("Events", "事件"), lede, element("ul", items))


def machine(run: Run) -> Markup:
    """The machine in a sentence, and each fact with its basis and source."""
    title = Phrase("The machine", "机器")
    if run.machine is None:
        absent = Phrase("machine.toml is not in the run folder.", "运行目录中没有 machine.toml。")
        return section(title, absent)
    facts = machine_facts(run.machine)
    rows = [
        element(
            "tr",
            element("th", fact.label, scope="row"),
            element("td", fact.value, class_="value"),
            element("td", spoken(BASES, fact.basis), class_="basis"),
            element("td", fact.source, class_="source"),
        )
        for fact in facts
    ]
    head = _head(
        (Phrase("fact", "项目"), Phrase("value", "数值"), Phrase("basis", "依据"),
         Phrase("source", "来源")),
    )  # fmt: skip
    table = element("table", head, element("tbody", rows), class_="stacked")
    summary = Phrase("All {count} facts, each with its basis", "全部 {count} 项及其依据")
    return section(
        title,
        summed_up(run.machine),
        element(
            "details",
            element("summary", summary.filled(count=len(facts))),
            element("div", table, class_="scroll"),
        ),
    )


def provenance(run: Run) -> Markup:
    """The hashes that everything above was made from."""
    made = run.plan.made_from
    values = [
        (Phrase("job", "任务"), made.job),
        (Phrase("machine", "机器"), f"{made.machine} ({made.machine_name})"),
        (Phrase("dataset", "数据集"), made.dataset or "–"),
        (same("narrows"), made.narrows),
        (Phrase("seed", "随机种子"), str(run.plan.seed)),
    ]
    if run.machine is not None:
        values.append((same("torch"), run.machine.torch))
        values.append((Phrase("probed", "探测时间"), run.machine.probed_at))
    pairs = [
        element("div", element("dt", name), element("dd", element("code", value)))
        for name, value in values
    ]
    lede = Phrase(
        "The same job, machine and data give the same plan.",
        "相同的任务、机器与数据得出相同的计划。",
    )
    return section(Phrase("Made from", "来源"), lede, element("dl", pairs, class_="made"))


def _head(names: tuple[Phrase, ...], *, numbers: tuple[int, ...] = ()) -> Markup:
    cells = [
        element("th", name, scope="col", class_="number" if place in numbers else None)
        for place, name in enumerate(names)
    ]
    return element("thead", element("tr", cells))


def _so_far(pair: comparison.Pair) -> Phrase | str:
    return Phrase("so far", "截至目前") if pair.partial and pair.measured is not None else "–"


def _sample(sample: Sample) -> Markup:
    text = sample.text.removeprefix(sample.prompt)
    cut = text[:SAMPLE_CHARACTERS_MOST]
    return element(
        "div",
        element("p", Phrase(f"step {sample.step:,}", f"第 {sample.step:,} 步"), class_="when"),
        element("pre", element("b", sample.prompt), cut, " …" if cut != text else None),
        class_="sample",
    )
