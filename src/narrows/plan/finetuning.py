"""What a published model to start from, and rows of examples, decide of a training.

Habits where nothing is said: a learning rate of 5e-5, batches of 32 and three epochs (Devlin et al.
2019, arXiv:1810.04805, appendix A.3); of a billion parameters and more 2e-5 (Taori et al. 2023).
"""

from __future__ import annotations

import msgspec

from narrows.plan.layouts import Judged
from narrows.plan.recipe import OVER_ADAMW
from narrows.plan.text import Text
from narrows.spec.adapter import Biases, Learning, LowRank
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, LayoutIntent, TrainIntent
from narrows.spec.model import ModelSpec
from narrows.spec.objective import (
    OF_DOCUMENTS,
    OF_EXAMPLES,
    Classify,
    Distil,
    Masked,
    NextToken,
    Objective,
    Prefer,
    Regress,
)
from narrows.spec.optimizer import name_of
from narrows.spec.plan import Start

_EPOCHS = {True: 3.0, False: 1.0}
"""Of rows of examples, and of running text."""
_EXAMPLES = 32
_STEPS_LEAST = 50
_RATE, _RATE_LARGE, _LARGE = 5e-5, 2e-5, 1e9
_RATE_LOW_RANK, _RATE_BIASES = 2e-4, 1e-3
_CONTEXT, _CONTEXT_SHORT = 1024, 512
_ROUND = 64


def objective_of(job: Job, text: Text) -> Objective:
    """The job's, with the classes that the rows have."""
    asked = job.train.objective
    if isinstance(asked, Classify) and text.examples is not None:
        return msgspec.structs.replace(asked, labels=text.examples.labels)
    return asked


def said(job: Job, text: Text) -> float:
    """Share of the tokens whose logits are made."""
    asked = job.train.objective
    return asked.share if isinstance(asked, Masked) else text.said


def judged(job: Job, model: ModelSpec, teacher: Start | None) -> Judged:
    """How what the model says is judged; raises BadInput where the teacher cannot."""
    asked = job.train.objective
    if isinstance(asked, Distil) and teacher is not None:
        asked.check(teacher.model, model, model.context)
        return Judged(teacher=teacher.model)
    return Judged(twice=isinstance(asked, Prefer))


def context_of(job: Job, text: Text, start: Start | None, why: dict[str, str]) -> int | None:
    """How long rows are that hold examples, or that a published model is to read; None where
    neither is there and the habits of pre-training hold.
    """
    asked, examples = job.model.context, text.examples
    if examples is None and start is None:
        return None
    most = None if start is None else start.model.context
    if asked is not None and most is not None and asked > most:
        raise BadInput(
            f"model.context is {asked}, and {start.path if start else ''} was made for {most}",
            hint=f"--set model.context={most}",
        )
    context = asked
    if context is None:
        short = isinstance(job.train.objective, OF_DOCUMENTS)
        context, why["model.context"] = _habit(short, examples.longest if examples else 0)
        context = context if most is None else min(context, most)
    if examples is not None:
        examples.refuse_longer(context, most)
    return context


def shaped(model: ModelSpec, job: Job, text: Text) -> ModelSpec:
    """The model as the objective needs it: with a head for classes or a number, reading both ways
    where tokens are masked.
    """
    asked = job.train.objective
    if model.classes and not isinstance(asked, OF_DOCUMENTS):
        raise BadInput(
            f"{job.model.start} says one thing of a text, and can no longer write",
            hint='train.objective.type = "classify" or "regress", or start from a model that '
            "writes",
        )
    changes: dict[str, object] = {}
    if isinstance(asked, Masked) and job.model.start is None:
        changes["causal"] = bool(job.model.causal)
    elif job.model.causal is not None:
        changes["causal"] = job.model.causal
    if isinstance(asked, OF_DOCUMENTS):
        labels = text.examples.labels if text.examples else getattr(asked, "labels", ())
        causal = changes.get("causal", model.causal)
        pooling = job.model.pooling or ("last" if causal else "mean")
        classes = 1 if isinstance(asked, Regress) else max(2, len(labels))
        changes |= {
            "classes": classes, "pooling": pooling,
            # Without one no class of transformers reads a text's first state.
            "pooler": pooling == "first" and (model.pooler or not causal and bool(job.model.start)),
            "head_transform": False, "head_bias": False,
        }  # fmt: skip
    if job.model.start is not None and job.model.dropout:
        changes["dropout"] = job.model.dropout
    return msgspec.structs.replace(model, **changes)


def layout_of(job: Job) -> LayoutIntent:
    """The layouts that the objective can be taught in; raises BadInput where the job asks for
    another.
    """
    asked, layout = job.train.objective, job.layout
    learning = Learning(adapter=job.train.adapter, frozen=job.train.frozen)
    if isinstance(asked, NextToken | Masked) and learning.everything:
        return layout
    name = f"the objective {_named(asked)} is" if learning.everything else "an adapter or a rest is"
    for axis in ("tensor", "pipeline", "context"):
        if (getattr(layout, axis) or 1) > 1:
            raise BadInput(
                f"layout.{axis} is {getattr(layout, axis)}, and {name} taught to whole models",
                hint=f"leave out layout.{axis}; layout.data and layout.sharding spread it",
            )
    if layout.recompute == "selective" and isinstance(job.train.adapter, LowRank):
        raise BadInput(
            "low-rank products are added in place to those that selective recompute keeps",
            hint='--set layout.recompute="full", or leave it out',
        )
    changes: dict[str, object] = {"tensor": 1, "pipeline": 1, "context": 1}
    if isinstance(asked, OF_EXAMPLES):
        if layout.compile:
            raise BadInput(
                "compiled blocks are made for one cut of rows, and examples cut each otherwise",
                hint="--set layout.compile=false, or leave it out",
            )
        changes["compile"] = False
    return msgspec.structs.replace(layout, **changes)


def epochs_of(job: Job, text: Text, why: dict[str, str]) -> float:
    """How often the data are read, where nothing else ends the training."""
    if job.train.epochs is not None:
        why["train.epochs"] = f"{job.train.epochs:g} epochs, as asked"
        return job.train.epochs
    found = _EPOCHS[text.examples is not None]
    habit = "three, the habit of tuning on examples (arXiv:1810.04805)"
    why["train.epochs"] = habit if text.examples else "one epoch of the text, the habit of tuning"
    return found


def batch_of(job: Job, text: Text, context: int, tokens: float, why: dict[str, str]) -> int | None:
    """Rows of an optimizer step, where they are not asked for and the data are examples."""
    examples = text.examples
    if examples is None or not text.tokens_train:
        return None
    mean = text.tokens_train / max(1, examples.rows_train)
    batch = max(1, round(_EXAMPLES * mean / context))
    if job.train.steps is None:
        batch = min(batch, max(1, int(tokens / context / _STEPS_LEAST)))
    multiple = (job.layout.micro_batch or 1) * (job.layout.processes or job.layout.batches)
    batch = -(-batch // multiple) * multiple
    why["train.batch_sequences"] = (
        f"about {batch * context / mean:.0f} examples of {mean:.0f} tokens: the habit is "
        f"{_EXAMPLES} (arXiv:1810.04805), and {_STEPS_LEAST} steps at least"
    )
    return batch


def learning_of(job: Job, model: ModelSpec, why: dict[str, str]) -> Learning:
    """What of the model is trained; raises BadInput where the model has not what the job names."""
    adapter = job.train.adapter
    if isinstance(adapter, LowRank):
        asked, adapter = adapter, adapter.settled(model)
        if asked.rank is None:
            why["adapter.rank"] = "the habit; ranks of 4 and 64 learn about as much"
            why["adapter.rank"] += " (arXiv:2106.09685, table 6)"
        if asked.alpha is None:
            why["adapter.alpha"] = "twice the rank, the habit"
        if asked.targets is None:
            why["adapter.targets"] = "all matrices: fewer fall behind (arXiv:2305.14314, figure 2)"
        if asked.rule == "rslora":
            why["adapter.rule"] = "alpha over the rank's root (arXiv:2312.03732)"
        if asked.rule == "dora":
            why["adapter.rule"] = "rows have lengths of their own (arXiv:2402.09353)"
    learning = Learning(adapter=adapter, frozen=job.train.frozen)
    learning.check(model)
    return learning


def intent_of(train: TrainIntent, model: ModelSpec, why: dict[str, str]) -> TrainIntent:
    """The intent with the learning rate that tuning a published model takes, or an adapter."""
    if train.learning_rate is not None:
        return train
    if isinstance(train.adapter, LowRank):
        reason = "the habit of low-rank adapters (arXiv:2106.09685, arXiv:2305.14314)"
        why["optimizer.learning_rate"] = reason
        return msgspec.structs.replace(train, learning_rate=_RATE_LOW_RANK)
    if isinstance(train.adapter, Biases):
        reason = "biases alone take larger steps than all weights do (arXiv:2106.10199)"
        why["optimizer.learning_rate"] = reason
        return msgspec.structs.replace(train, learning_rate=_RATE_BIASES)
    rate = _RATE_LARGE if model.parameters >= _LARGE else _RATE
    why["optimizer.learning_rate"] = "the habit of tuning a model of this size" + (
        " (arXiv:1810.04805, appendix A.3)" if rate == _RATE else " (Alpaca, Taori et al. 2023)"
    )
    rate = float(f"{rate * OVER_ADAMW[name_of(train.rule)]:.3g}")
    return msgspec.structs.replace(train, learning_rate=rate)


def whole(model: ModelSpec, start: Start | None) -> ModelSpec:
    """The trained model with the context that it had."""
    if start is None:
        return model
    return msgspec.structs.replace(model, context=start.model.context)


def _habit(short: bool, longest: int) -> tuple[int, str]:
    usual = _CONTEXT_SHORT if short else _CONTEXT
    needed = -(-longest // _ROUND) * _ROUND
    if needed > usual:
        return needed, f"the longest example has {longest} tokens"
    return usual, "rows that hold several examples, or a usual length of text"


def _named(objective: Objective) -> str:
    return str(type(objective).__struct_config__.tag)
