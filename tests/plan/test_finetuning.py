from __future__ import annotations

from typing import Any

import msgspec
import pytest

from narrows.plan import finetuning
from narrows.plan.design import Design, design
from narrows.plan.plan import make_plan
from narrows.plan.text import Text
from narrows.spec.adapter import Biases, LowRank
from narrows.spec.dataset import Dataset, Examples
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec, Job, LayoutIntent, ModelIntent, TrainIntent, budget
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.objective import (
    Chat,
    Classify,
    Distil,
    Masked,
    Objective,
    Prefer,
    Regress,
    refuse_unable,
)
from narrows.spec.plan import Start

SMALL = llama(layers=2, width=128, heads=2, vocabulary=4096, context=2048)
ENCODER = msgspec.structs.replace(
    gpt2(layers=2, width=128, heads=2, vocabulary=4096, context=512), causal=False, pooler=True
)
MASKS = Masked()


def rows(**changes: Any) -> Text:
    """A thousand rows of fifty tokens."""
    known: dict[str, Any] = {
        "rows_train": 1000, "rows_validation": 50, "longest": 200, "longest_row": "rows line 7",
        "learned_train": 1000, "attended": 60.0, "labels": ("no", "yes", "maybe"), "files": {},
    }  # fmt: skip
    return Text(vocabulary=4096, tokens_train=50_000, tokens_validation=2_500,
                examples=Examples(**(known | changes)))  # fmt: skip


PLAYS = Text(vocabulary=4096, tokens_train=1_400_000, tokens_validation=74_000)


def start(model: ModelSpec = SMALL) -> Start:
    return Start(path="small.gguf", family="llama", digest="0", model=model, words="/words")


def job(objective: Objective | None = None, *, model: Any = None, layout: Any = None,
        **train: Any) -> Job:  # fmt: skip
    if objective is not None:
        train["objective"] = objective
    return Job(
        name="tuned", data=DataSpec(corpus="rows.jsonl"), train=TrainIntent(**train),
        model=ModelIntent(**{"start": "small.gguf", **(model or {})}),
        layout=LayoutIntent(**(layout or {})),
    )  # fmt: skip


FRESH = {"start": None, "layers": 2, "width": 128}


def test_rows_are_as_long_as_habits_say_and_the_longest_needs() -> None:
    why: dict[str, str] = {}
    assert finetuning.context_of(job(Classify()), rows(), start(), why) == 512
    assert finetuning.context_of(job(Chat()), rows(), start(), why) == 1024
    assert finetuning.context_of(job(Chat()), rows(longest=1500), start(), why) == 1536
    assert why["model.context"] == "the longest example has 1500 tokens"
    assert finetuning.context_of(job(), PLAYS, start(), {}) == 1024
    assert finetuning.context_of(job(Classify()), rows(), start(ENCODER), {}) == 512
    assert finetuning.context_of(job(Chat(), model={"context": 256}), rows(), start(), {}) == 256
    assert finetuning.context_of(job(MASKS, model=FRESH), PLAYS, None, {}) is None


@pytest.mark.parametrize(
    ("context", "longest", "what"),
    [
        (4096, 200, "model.context is 4096, and small.gguf was made for 2048"),
        (128, 200, "rows line 7 has 200 tokens, and the context is 128"),
        (None, 3000, "rows line 7 has 3,000 tokens, and the context is 2,048"),
    ],
)
def test_no_example_is_cut(context: int | None, longest: int, what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        asked = job(Chat(), model={"context": context})
        finetuning.context_of(asked, rows(longest=longest), start(), {})
    # A published model reads no more than it was made for: what helps is to leave rows out.
    helps = "--set data.longest=2048" if longest > 2048 else "--set model.context="
    assert helps in str(caught.value.hint)


def test_the_head_is_the_objectives() -> None:
    def shaped(objective: Objective, model: ModelSpec = SMALL, **intent: Any) -> ModelSpec:
        return finetuning.shaped(model, job(objective, model=intent), rows())

    classes = shaped(Classify())
    assert (classes.classes, classes.pooling) == (3, "last")
    number = shaped(Regress(), ENCODER)
    assert (number.classes, number.pooling, number.pooler) == (1, "mean", False)
    first = shaped(Classify(), ENCODER, pooling="first")
    assert (first.pooling, first.pooler) == ("first", True)
    # One that learned masked tokens comes without it, and transformers' classes have one.
    bare = msgspec.structs.replace(ENCODER, pooler=False)
    assert shaped(Classify(), bare, pooling="first").pooler
    assert not shaped(Classify(), bare).pooler
    assert not shaped(Classify(), pooling="first").pooler
    assert shaped(Chat()) == SMALL
    assert shaped(Chat(), dropout=0.1).dropout == 0.1
    assert not shaped(MASKS, start=None, layers=2).causal
    assert shaped(MASKS).causal  # the model to start from has settled it
    named = finetuning.objective_of(job(Classify()), rows())
    assert named == Classify(labels=("no", "yes", "maybe"))


def test_whole_models_are_taught() -> None:
    for objective in (Classify(), Chat(), Prefer(), Distil(teacher="big")):
        for axis in ("tensor", "pipeline", "context"):
            with pytest.raises(BadInput, match=f"layout.{axis} is 2, and the objective"):
                finetuning.layout_of(job(objective, layout={axis: 2}))
        for layout in ({}, {"processes": 2}):
            found = finetuning.layout_of(job(objective, layout=layout))
            assert (found.tensor, found.pipeline, found.context) == (1, 1, 1)
    with pytest.raises(BadInput, match="compiled blocks are made for one cut"):
        finetuning.layout_of(job(Chat(), layout={"compile": True}))
    assert finetuning.layout_of(job(Chat())).compile is False
    assert finetuning.layout_of(job(Distil(teacher="big"), layout={"compile": True})).compile
    assert finetuning.layout_of(job(MASKS, layout={"tensor": 2})).tensor == 2


def test_a_step_has_about_32_examples_and_a_run_50_steps() -> None:
    why: dict[str, str] = {}
    assert finetuning.batch_of(job(Chat(), steps=9), rows(), 512, 0.0, why) == 3
    assert "about 31 examples of 50 tokens" in why["train.batch_sequences"]
    assert finetuning.batch_of(job(Chat()), rows(), 512, 150_000.0, why) == 3
    assert finetuning.batch_of(job(Chat()), rows(), 512, 60_000.0, why) == 2
    assert finetuning.batch_of(job(Chat(), layout={"data": 2}), rows(), 512, 150_000.0, why) == 4
    assert finetuning.batch_of(job(), PLAYS, 512, 1e6, why) is None


def test_tuning_takes_small_steps() -> None:
    def rate(model: ModelSpec = SMALL, **train: Any) -> float | None:
        return finetuning.intent_of(TrainIntent(**train), model, {}).learning_rate

    large = llama(layers=24, width=2048, heads=16, vocabulary=32_000, context=512)
    assert large.parameters > 1e9
    assert (rate(), rate(large), rate(learning_rate=0.1)) == (5e-5, 2e-5, 0.1)
    assert rate(adapter=LowRank()) == 2e-4 and rate(adapter=Biases()) == 1e-3


@pytest.mark.parametrize(
    ("asked", "text", "begun", "epochs"),
    [
        (job(Chat()), rows(), start(), 3.0),
        (job(), PLAYS, start(), 1.0),
        (job(Chat(), epochs=0.5), rows(), start(), 0.5),
        (job(Classify(), model=FRESH, epochs=6.0), rows(), None, 6.0),
        (job(model=FRESH, epochs=2.0), PLAYS, None, 2.0),
    ],
)
def test_epochs_end_a_training_where_nothing_else_does(
    asked: Job, text: Text, begun: Start | None, epochs: float, machine: Machine
) -> None:
    assert text.tokens_train
    found = design(asked, machine, text, begun)
    assert found.tokens == epochs * text.tokens_train
    assert found.why["train.steps"] == found.why["train.epochs"]


def test_epochs_end_a_budget_that_would_hold_more(machine: Machine, dataset: Dataset) -> None:
    def tokens(epochs: float | None, time: str) -> tuple[float, str]:
        asked = job(model=FRESH, epochs=epochs)
        plan = make_plan(msgspec.structs.replace(asked, budget=budget(time)), machine, dataset)
        return plan.steps * plan.batch_sequences * plan.context, plan.why["train.steps"]

    most, _ = tokens(None, "10 min")
    few, why = tokens(0.5, "10 min")
    assert few == pytest.approx(0.5 * dataset.tokens_train, rel=0.05) and few < most
    assert why == "0.5 epochs, as asked"
    short, why = tokens(40.0, "1 min")
    assert short < 40 * dataset.tokens_train and "1 min" in why
    assert short == tokens(None, "1 min")[0]


def test_steps_count_for_more_than_epochs(machine: Machine) -> None:
    found: Design = design(job(Chat(), steps=7, epochs=9.0), machine, rows(), start())
    assert found.steps == 7


def test_what_a_model_cannot_learn_is_refused_in_the_plan_as_in_training(
    machine: Machine,
) -> None:
    for objective in (Chat(), Prefer(), Distil(teacher="big")):
        with pytest.raises(BadInput, match="a model that sees what follows"):
            refuse_unable(objective, ENCODER)
        with pytest.raises(BadInput, match="a model that sees what follows"):
            design(job(objective), machine, rows(), start(ENCODER))
    with pytest.raises(BadInput, match="a causal model cannot tell a masked token"):
        design(job(MASKS), machine, PLAYS, start())


def test_a_teacher_that_reads_other_tokens_or_shorter_rows_is_refused() -> None:
    asked = Distil(teacher="big")
    asked.check(SMALL, SMALL, SMALL.context)
    other = msgspec.structs.replace(SMALL, vocabulary=SMALL.vocabulary + 1)
    with pytest.raises(BadInput, match="they do not read the same text"):
        asked.check(other, SMALL, 64)
    with pytest.raises(BadInput, match="was made for 2048 positions, and rows have 4096"):
        asked.check(SMALL, SMALL, 4096)
    with pytest.raises(BadInput, match="does not say which token is next"):
        asked.check(ENCODER, SMALL, 64)
