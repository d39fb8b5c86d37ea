"""Whatever a plan, a forecast or a search gives as a reason is said in Chinese, too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from narrows.hardware.fleet import fleet
from narrows.model.presets import preset
from narrows.plan import explain
from narrows.plan.change import relaid
from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.service import service
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.ways import Demand
from narrows.plan.plan import make_plan
from narrows.report import outlook, served
from narrows.report.choices import choices
from narrows.report.reasons import SENTENCES, event, reason
from narrows.report.words import Phrase, same
from narrows.spec.adapter import Biases, LowRank
from narrows.spec.dataset import Dataset, Examples
from narrows.spec.exchange import PowerSGD
from narrows.spec.job import DataSpec, Job, LayoutIntent, ModelIntent, TrainIntent, budget
from narrows.spec.layout import Layout
from narrows.spec.machine import Link, Machine
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.objective import Chat, Classify, Distil, Masked, NextToken, Prefer, Regress
from narrows.spec.plan import Plan, Start
from narrows.spec.ramp import BatchRamp
from narrows.spec.service import Limits, Requests
from tests.plan.test_network import link_of
from tests.report.sources import templates

MakeMachine = Callable[..., Machine]
MakeDataset = Callable[..., Dataset]

CHINESE = re.compile("[\u4e00-\u9fff]")
ENGLISH = re.compile(r"(?<![\w.:])[a-z]{2,} [a-z]{2,}(?![\w:])")
"""Two words in a row: names and commands aside, a part that nobody translated."""
COMMAND = re.compile(r"narrows probe --link --processes \d|\d ranks on \d")
SOURCES = re.compile(r"（[^（）]*）")

SMALL = {"layers": 4, "width": 256, "heads": 4, "context": 256}
SIZED = {"layers": 2, "width": 128}
BEGUN = {"start": "small.gguf"}
ROWS = Examples(
    rows_train=1000, rows_validation=50, longest=200, longest_row="rows line 7",
    learned_train=1000, attended=60.0, labels=("no", "yes", "maybe"), files={},
)  # fmt: skip


def plays(*budgets: str, **parts: Any) -> Job:
    """Shakespeare, with a model, a training and a layout of which little is said."""
    known: dict[str, Any] = {"model": {}, "train": {}, "layout": {}} | parts
    return Job(
        name="plays", data=DataSpec(corpus="shakespeare"),
        budget=budget(*budgets) if budgets else None, model=ModelIntent(**known["model"]),
        train=TrainIntent(**known["train"]), layout=LayoutIntent(**known["layout"]),
    )  # fmt: skip


def start(model: ModelSpec) -> Start:
    return Start(path="small.gguf", family="llama", digest="0", model=model, words="/words")


def expect(texts: set[str]) -> None:
    """All of them are said in Chinese, and no part of them in English."""
    assert texts
    said = {text: reason(text).zh for text in texts}
    assert [text for text, chinese in said.items() if not CHINESE.search(chinese)] == []
    bare = {text: SOURCES.sub("", COMMAND.sub("", chinese)) for text, chinese in said.items()}
    assert [text for text, chinese in bare.items() if ENGLISH.search(chinese)] == []
    assert all(reason(text).en == text for text in texts)


def given(plan: Plan) -> set[str]:
    """Its reasons; what they are of has a Chinese name, too."""
    for choice in choices(plan):
        assert CHINESE.search(choice.label.zh), choice.name
    return {*plan.why.values(), *(each.verdict for each in plan.alternatives)}


@pytest.mark.parametrize("job", [
    plays(),
    *(plays(each) for each in ("1min", "2h", "30 d", "20 kJ", "$0.05", "3.2M tokens")),
    plays("10min", "1M tokens", "$1"),
    plays("5min", model={"width": 256}),
    plays("5min", model={"width": 96}, train={"epochs": 0.5}),
    plays(model={"layers": 4, "kind": "gpt2"}),
    plays(model=SIZED, train={"epochs": 2.0}),
    plays(model=SIZED, train={"steps": 90, "batch_tokens": 16384.0, "optimizer": "lion"}),
    plays(train={"steps": 300}),
    plays(model=SIZED, train={"objective": Masked()}),
    plays(model=SIZED, train={"steps": 90, "batch_sequences": 4,
                              "batch_ramp": BatchRamp(most_sequences=40)}),
    plays(model=SIZED, train={"adapter": LowRank(rule="rslora")}),
    plays(model=SIZED, train={"adapter": LowRank(rule="dora", rank=4)}),
    plays(model=SIZED | {"kind": "gpt2"}, train={"adapter": Biases()}),
    plays(model=SIZED, layout={"kernels": "torch", "precision": "bf16"}, train={"steps": 3}),
])  # fmt: skip
def test_what_a_job_leaves_open_is_explained_in_chinese(
    job: Job, make_machine: MakeMachine, make_dataset: MakeDataset
) -> None:
    expect(given(make_plan(job, make_machine(), make_dataset())))


def test_little_memory_and_a_little_text_are_reasons(
    make_machine: MakeMachine, make_dataset: MakeDataset
) -> None:
    wide = plays(model={"kind": "gpt2", "width": 768}, train={"steps": 9, "batch_sequences": 16})
    tight = given(make_plan(wide, make_machine(gigabytes=1.6), None))
    assert "nothing else fits memory" in tight
    assert any(text.startswith("does not fit: ") for text in tight)
    few = make_dataset(tokens_train=3000, tokens_validation=500)
    short = given(make_plan(plays(model=SIZED), make_machine(), few))
    assert any("only 500 tokens" in text for text in short)
    one = make_plan(plays(model=SIZED, layout={"micro_batch": 4}), make_machine(), None)
    expect({*tight, *short, *given(one)})


@pytest.mark.parametrize(("count", "links"), [
    (4, ()), (2, (link_of(3),)), (2, (link_of(2, 2, rate=1e6, wait=1e-6),)),
])  # fmt: skip
def test_several_processes_and_their_links_are_explained(
    count: int, links: tuple[Link, ...], make_machine: MakeMachine
) -> None:
    machine = msgspec.structs.replace(make_machine(), links=links)
    few: dict[str, Any] = {"layout": {"processes": count}, "train": {"steps": 9}}
    expect(given(make_plan(plays(model=SMALL, **few), machine, None)))


def test_a_run_laid_out_anew_is_explained(make_machine: MakeMachine) -> None:
    machine = msgspec.structs.replace(make_machine(), links=(link_of(4),))
    plan = make_plan(plays(
        model=SMALL, train={"steps": 9, "batch_sequences": 8, "exchange": PowerSGD()},
        layout={"data": 4, "sharding": "none", "micro_batch": 2},
    ), machine, None)  # fmt: skip
    layout = msgspec.structs.replace(plan.layout, data=2, accumulation=2)
    again = relaid(plan, layout, machine)
    assert {"network", "exchange"} <= again.why.keys()
    assert again.why["network"] != plan.why["network"]
    expect({*given(plan), *given(again)})


def tuned() -> Iterator[tuple[Job, Start]]:
    """A published model that goes on learning, in many ways."""
    small = start(llama(layers=2, width=128, heads=2, vocabulary=4096, context=2048))
    biased = start(gpt2(layers=2, width=128, heads=2, vocabulary=4096, context=512))
    large = start(llama(layers=24, width=2048, heads=16, vocabulary=32_000, context=512))
    for objective in (Chat(), Classify(), Regress(), Prefer(), Distil(teacher="big")):
        yield plays(model=BEGUN, train={"objective": objective}), small
    yield plays("5min", model=BEGUN, train={"objective": Chat(), "adapter": LowRank()}), small
    yield plays(model=BEGUN, train={"adapter": Biases(), "epochs": 3.0}), biased
    yield plays(model=BEGUN), small
    yield plays(model=BEGUN, train={"steps": 9}), large


def test_what_tuning_takes_from_habit_is_explained(
    make_machine: MakeMachine, make_dataset: MakeDataset
) -> None:
    rows = make_dataset(tokens_train=50_000, tokens_validation=2_500, examples=ROWS)
    long = msgspec.structs.replace(rows, examples=msgspec.structs.replace(ROWS, longest=1500))
    machine, found = make_machine(disk_gigabytes=100.0), set[str]()
    for job, begun in tuned():
        objective = job.train.objective
        text = make_dataset(vocabulary=begun.model.vocabulary)
        data = text if isinstance(objective, NextToken | Distil) else rows
        teacher = begun if isinstance(objective, Distil) else None
        found |= given(make_plan(job, machine, data, begun, teacher))
    found |= given(make_plan(*next((job, machine, long, begun) for job, begun in tuned())))
    assert "the longest example has 1500 tokens" in found
    expect(found)


def test_every_choice_of_a_layout_has_its_name() -> None:
    fields = {each.name: each.type for each in msgspec.inspect.type_info(Layout).fields}
    named = {
        name: fields[name].values
        for name in ("precision", "recompute", "sharding", "schedule", "kernels")
    }
    counted = dict.fromkeys(
        ("processes", "data", "tensor", "pipeline", "interleave", "micro_batch", "loss_chunk"), (2,)
    )
    options = {**named, **counted, "compile": (False, True)}
    assert set(options) == {*explain._CHOICES, *explain._SPREAD}
    texts = {
        f"next best, {explain._said(name, value)}: as quick, 1.00x the memory"
        for name, values in options.items() for value in values
    }  # fmt: skip
    expect(texts)
    chinese = {reason(text).zh for text in texts}
    assert any("（2 个进程）" in each for each in chinese)
    assert any("（不编译）" in each for each in chinese)


def test_every_reason_in_the_source_has_its_chinese() -> None:
    """With 7 for whatever is put into it."""
    found = templates()
    assert len(found) > 60 and "nothing else fits memory" in found
    expect(found)


def test_each_chinese_sentence_has_the_holes_of_the_english_one() -> None:
    holes = re.compile(r"\{\w+\}")
    for english, chinese in SENTENCES.items():
        assert sorted(holes.findall(english)) == sorted(holes.findall(chinese)), english


@pytest.mark.parametrize(("english", "chinese"), [
    ("next best, fp32: 1.83x the time, 1.90x the memory",
     "次优（fp32）：时间 1.83 倍，内存 1.90 倍"),
    ("next best, torch.compile: saves 9.1 s and costs 1.2 min to compile",
     "次优（torch.compile）：省 9.1 秒，编译却要 1.2 分"),
    ("compute-optimal for 3.2 M tokens (arXiv:2404.10102)",
     "对 3.2M 词元而言计算最优（arXiv:2404.10102）"),
    ("measured between 4 ranks on 2, 4 ranks; groups of 2, 3 by the ring's share",
     "实测：4 ranks on 2，4 个进程；2, 3 个进程的组按环的份额推算"),
    ("a process kept failing: process 1 of 2 ended by signal 9",
     "一个进程反复失败：进程 1（共 2 个）被信号 9 终止"),
    ("the smoothed loss is lowest, 3.215, at 0.02, where the sweep ended: a higher one may do; "
     "a 4th of it leaves room for a whole training",
     "平滑后的损失在 0.02 处最低，为 3.215，扫描到此为止：更高的学习率或许可行；"
     "取其 1/4，为整个训练留出余地"),
    ("1.5 h are over", "1.5 小时已用完"),
])  # fmt: skip
def test_parts_are_translated_where_they_stand(english: str, chinese: str) -> None:
    assert reason(english) == Phrase(english, chinese)


@pytest.mark.parametrize(("english", "chinese"), [
    ("from step-00000060", "自 step-00000060 继续"),
    ("the loss jumped to 9.100 at step 7 (recent median 2.000); gradient norm 31.4 before "
     "clipping: back to step-00000004, and on with the data that follows",
     "第 7 步损失突跳至 9.100（近期中位数 2.000）；裁剪前梯度范数 31.4：退回 step-00000004，"
     "以其后的数据继续"),
    ("the loss was not finite at step 3; first: output of blocks.0: its update is left out",
     "第 3 步损失不是有限值；起于 blocks.0 的输出：跳过此次更新"),
    ("data 2, 4 x 1 sequences each -> one process, 4 x 2 sequences each; on a spike: skip",
     "数据 2，每个 4 x 1 条序列 → 一个进程，每个 4 x 2 条序列；损失突跳时：skip"),
    ("the training hangs: no sign of life for 61 s at step 9; starting again from step 5\n"
     "process 0: training\n  loop in run.py:7",
     "训练无响应：第 9 步已 61 秒没有动静；从第 5 步重新开始\n"
     "process 0: training\n  loop in run.py:7"),
    ("ValueError: of somebody else; starting again from step 0",
     "ValueError: of somebody else；从第 0 步重新开始"),
])  # fmt: skip
def test_what_happened_is_told_line_by_line(english: str, chinese: str) -> None:
    assert event(english) == Phrase(english, chinese)


@pytest.mark.parametrize("text", [
    "", "because", "activations leave the cache", "next best, a thing: of another kind",
    "something new; twice the rank, the habit", "{n} of {limit} tokens\nin two lines",
])  # fmt: skip
def test_an_unknown_reason_stays_english_whole(text: str) -> None:
    assert reason(text) == same(text)


def test_what_a_forecast_says_of_other_ways_and_places_is_chinese_too() -> None:
    own = fleet("2x8xa100-80gb")
    formless = msgspec.structs.replace(
        own, name="formless", peak={"int8": own.peak["bf16"]}, accelerator="NVIDIA Old One"
    )
    lone = msgspec.structs.replace(own, name="lone", host_link=None)
    found = forecast(Question(
        name="llama-2-7b", model=preset("llama-2-7b").spec, fleet=own, batch=64,
        wanted=Wanted(pipeline=1, sharding="parameters", offload="host"),
        against=(fleet("rtx-3060"), formless, lone, fleet("61xrtx-3060")),
    ))  # fmt: skip
    verdicts = {each.verdict for each in found.elsewhere if each.verdict}
    assert len(verdicts) == 4
    expect({*verdicts, *(each.verdict for each in found.runners_up)})
    html = outlook.html(found)
    assert "NVIDIA Old One 没有 bf16 数据" in html and "放不下：至少需" in html
    names = [each.verdict.rpartition(": ")[0] for each in found.techniques]
    assert "parameters dropped after use: false" in names
    assert [name for name in names if f'<span lang="en">{name}</span>' not in html] == []


def test_each_change_of_a_served_model_is_chinese_too() -> None:
    found = service(Demand(
        name="llama-3.1-8b", model=preset("llama-3.1-8b").spec, fleet=fleet("4xl40s"),
        requests=Requests(prompt=1024, answer=256, rate=4.0),
        limits=Limits(first_token_s=0.9, per_token_s=0.04, percent=99),
        smaller=fleet("2xl40s"), larger=(fleet("8xl40s"),),
    ))  # fmt: skip
    html = served.html(found)
    names = [each.name for each in found.changes]
    assert len(names) > 8
    assert [name for name in names if f'<span lang="en">{name}</span>' not in html] == []
