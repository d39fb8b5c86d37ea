"""The run in a sentence, its state, and what its model had learned by the end."""

from __future__ import annotations

import math
from pathlib import PurePath

from narrows.report.choices import family
from narrows.report.numbers import compact, duration, share, significant
from narrows.report.run import Run
from narrows.report.words import Phrase, same


def sentence(run: Run) -> Phrase:
    """What was trained, on what and where, how long it took, and what had been predicted."""
    kind = family(run.plan.model)
    model = Phrase(
        f"A {kind}-style model of {{parameters}} parameters" if kind
        else "A model of {parameters} parameters",
        f"{kind} 式模型（{{parameters}} 参数）" if kind else "模型（{parameters} 参数）",
    ).filled(parameters=compact(run.plan.model.parameters))  # fmt: skip
    values: dict[str, object] = {
        "model": model,
        "corpus": corpus(run),
        "place": _place(run),
        "predicted": duration(run.plan.predicted.total.seconds),
        "planned": compact(run.plan.predicted.total.tokens),
    }
    if run.measured is None:
        return _PLANNED.filled(**values)
    values |= {
        "tokens": compact(run.measured.total.tokens),
        "measured": duration(run.measured.total.seconds),
    }
    return (_FINISHED if run.finished else _UNFINISHED).filled(**values)


_FINISHED = Phrase(
    "{model} was trained on {tokens} tokens of {corpus} in {measured}{place}. "
    "The plan had predicted {predicted}.",
    "{model}{place}用 {measured}在 {corpus} 的 {tokens} 词元上完成训练。"
    "计划事先预测为 {predicted}。",
)
_UNFINISHED = Phrase(
    "{model} has seen {tokens} of {planned} tokens of {corpus} in {measured}{place}. "
    "The plan predicts {predicted} for all of them.",
    "{model}{place}用 {measured}训练了 {corpus} 的 {tokens} 词元（共 {planned}）。"
    "计划预测全程需要 {predicted}。",
)
_PLANNED = Phrase(
    "{model} is to be trained on {planned} tokens of {corpus}{place}. "
    "The plan predicts {predicted}; nothing has been measured yet.",
    "{model}将{place}在 {corpus} 的 {planned} 词元上训练。计划预测需要 {predicted}；尚无实测数据。",
)


def state(run: Run) -> tuple[Phrase, bool]:
    """How the run stands, and whether that asks for attention."""
    counted = {"done": f"{run.steps_done:,}", "planned": f"{run.plan.steps:,}"}
    if run.diverged_at is not None:
        return Phrase(
            "stopped: the loss was not finite at step {bad} ({done} of {planned} steps)",
            "已停止：第 {bad} 步损失不是有限值（{done}／{planned} 步）",
        ).filled(bad=run.diverged_at, **counted), True
    if run.measured is None:
        return Phrase("planned: {planned} steps", "已计划：{planned} 步").filled(**counted), False
    if not run.finished:
        return Phrase(
            "unfinished: {done} of {planned} steps", "未完成：{done}／{planned} 步"
        ).filled(**counted), True
    return Phrase("finished: {done} steps", "已完成：{done} 步").filled(**counted), False


def outcome(run: Run) -> Phrase:
    """The loss that was reached, on held-out text where that was measured."""
    best = run.best
    if best is not None and math.isfinite(best.accuracy):
        return Phrase(
            "Of examples it had not seen it gets {share} right, at step {step}, where the loss is "
            "{loss}.",
            "在未见过的样本上，第 {step} 步答对 {share}，损失为 {loss}。",
        ).filled(
            share=share(best.accuracy), loss=significant(best.validation_loss, 4),
            step=f"{best.step:,}",
        )  # fmt: skip
    if best is not None and not math.isfinite(best.bits_per_byte):
        return Phrase(
            "On examples it had not seen it reaches a loss of {loss}, at step {step}.",
            "在未见过的样本上，第 {step} 步的损失为 {loss}。",
        ).filled(loss=significant(best.validation_loss, 4), step=f"{best.step:,}")
    if best is not None:
        return Phrase(
            "On text it had not seen it reaches a loss of {loss} nats a token, "
            "{bits} bits per byte, at step {step}.",
            "在未见过的文本上，第 {step} 步达到每词元 {loss} nat 的损失，即每字节 {bits} 比特。",
        ).filled(
            loss=significant(best.validation_loss, 4),
            bits=significant(best.bits_per_byte, 4),
            step=f"{best.step:,}",
        )
    if run.steps:
        return Phrase(
            "No evaluation was made yet; the last training loss is {loss} nats a token.",
            "尚未评估；最近的训练损失为每词元 {loss} nat。",
        ).filled(loss=significant(run.steps[-1].loss, 4))
    return run.unlogged


def corpus(run: Run) -> Phrase:
    """The name of what was read."""
    if run.dataset is not None:
        return same(run.dataset.name)
    if run.plan.data is not None:
        return same(PurePath(run.plan.data.folder).name)
    return Phrase("a dataset without a name", "未命名的数据集")


def _place(run: Run) -> Phrase:
    if run.machine is None:
        return same("")
    name = " ".join(run.machine.device.name.split())
    if run.machine.device.kind == "cpu":
        threads = run.plan.layout.threads
        english = f"{threads} thread{'s' if threads != 1 else ''}"
        return Phrase(f" on {english} of {name}", f"在 {name}（{threads} 线程）上")
    count = f"{run.machine.devices} × " if run.machine.devices > 1 else ""
    return Phrase(f" on {count}{name}", f"在 {count}{name} 上")
