"""What is to be learned: model, batch and tokens, from the intent, the budget or habit."""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from narrows.plan import dial, finetuning, recipe, scaling
from narrows.plan.family import is_sized, resolve
from narrows.plan.layouts import USUALLY, Judged, Shapes
from narrows.plan.text import Text, check_context
from narrows.spec.adapter import EVERYTHING, Learning
from narrows.spec.errors import BadInput
from narrows.spec.job import Budget, Job, TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec
from narrows.spec.objective import NextToken, Objective, refuse_unable
from narrows.spec.plan import Start
from narrows.spec.units import Seconds, Tokens

_BUDGET_DEFAULT = Budget(time=Seconds(300.0))
# Sequences in training: nanoGPT's small tasks, TinyStories (arXiv:2305.07759), GPT-2 and Llama 1,
# each up to the FLOP of training where the next one's habit begins.
_CONTEXTS = ((1e16, 256), (1e18, 512), (1e20, 1024), (float("inf"), 2048))
_CONTEXT_SIZED = 1024
_STEPS_UNKNOWN = 1000
"""Sequences of a tuning whose data nobody named."""


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """A model, a batch in sequences and the tokens it is meant to see; `steps` where asked for.
    `epochs` of the data are enough where they are known to be, and logits are made of a `said` part
    of the tokens, which are `judged` so. Where training starts from a model, `start` is it, and
    `teacher` who teaches.
    """

    model: ModelSpec
    batch: int
    tokens: float
    limits: dial.Allowance | None
    steps: int | None
    why: dict[str, str]
    objective: Objective = NextToken()
    epochs: float | None = None
    said: float = 1.0
    attended: float | None = None
    start: Start | None = None
    teacher: Start | None = None
    judged: Judged = USUALLY
    learning: Learning = EVERYTHING

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.batch * self.model.context

    @property
    def shapes(self) -> Shapes:
        """What is computed."""
        return Shapes.of(
            [self.model], said=self.said, attended=self.attended, learning=self.learning,
            judged=self.judged,
        )  # fmt: skip

    def intent(self, train: TrainIntent) -> TrainIntent:
        """The training's, with the habits of tuning where it starts from a model."""
        if self.start is None and self.learning.adapter is None:
            return train
        return finetuning.intent_of(train, self.model, self.why)


def design(
    job: Job, machine: Machine, text: Text, start: Start | None = None,
    teacher: Start | None = None,
) -> Design:  # fmt: skip
    """Raises BadInput where the job contradicts itself, DoesNotFit where no size fits a budget."""
    found = _design(job, machine, text, start)
    model = finetuning.shaped(found.model, job, text)
    refuse_unable(job.train.objective, model)
    return replace(
        found, model=model, start=start, teacher=teacher,
        judged=finetuning.judged(job, model, teacher),
        learning=finetuning.learning_of(job, model, found.why),
        objective=finetuning.objective_of(job, text), said=finetuning.said(job, text),
        attended=text.examples.attended if text.examples else None,
    )  # fmt: skip


def _design(job: Job, machine: Machine, text: Text, start: Start | None) -> Design:
    why: dict[str, str] = {}
    limits = _limits(job, machine, why)
    context = finetuning.context_of(job, text, start, why)
    if start is not None and context is not None:
        return _tuned(job, text, msgspec.structs.replace(start.model, context=context), limits, why)
    context = context or _context(job, machine, limits, text, why)
    if not is_sized(job.model):
        return _dialled(job, machine, limits, text, context, why)
    model, habits = resolve(job.model, text.vocabulary, context)
    why.update(habits)
    if job.train.steps is not None:
        batch = _batch_for_steps(job, text, context, why)
        tokens = float(job.train.steps * batch * context)
    else:
        tokens = _tokens(job, machine, model, limits, text, why)
        batch = _batch(job, text, context, tokens, why)
    return Design(
        model=model, batch=batch, tokens=tokens, limits=limits, steps=job.train.steps, why=why,
        epochs=_asked(job, text, why),
    )  # fmt: skip


def _tuned(
    job: Job, text: Text, model: ModelSpec, limits: dial.Allowance | None, why: dict[str, str]
) -> Design:
    """A published model goes on learning: for so many epochs, where nothing else is said."""
    if job.data is not None and not text.prepared:
        raise BadInput("the data are not prepared", hint="narrows train job.toml prepares them")
    epochs = finetuning.epochs_of(job, text, why)
    tokens = epochs * float(text.tokens_train or _STEPS_UNKNOWN * model.context)
    batch = _batch(job, text, model.context, tokens, why)
    if job.train.steps is None and (limits is None or limits.seconds is None):
        why["train.steps"] = why["train.epochs"]
    return Design(
        model=model, batch=batch, tokens=tokens, limits=limits, steps=job.train.steps, why=why,
        epochs=epochs,
    )  # fmt: skip


def _limits(job: Job, machine: Machine, why: dict[str, str]) -> dial.Allowance | None:
    """The budget to design by: the job's, or five minutes where nothing bounds the run."""
    budget, steps = job.budget, job.train.steps
    names = ("time", "energy", "money", "tokens")
    given = budget is not None and any(getattr(budget, name) is not None for name in names)
    if given and steps is not None and not is_sized(job.model) and job.model.start is None:
        raise BadInput(
            "train.steps and the budget both say how long to train, and nothing how large a model",
            hint="leave out train.steps, or give model.layers and model.width",
        )
    if budget is not None and given:
        return dial.allowance(budget, machine)
    if steps is not None or is_sized(job.model) or job.model.start is not None:
        return None
    why["budget"] = "neither a size nor a budget is given: five minutes, to see something soon"
    return dial.allowance(_BUDGET_DEFAULT, machine)


def _context(
    job: Job, machine: Machine, limits: dial.Allowance | None, text: Text, why: dict[str, str]
) -> int:
    context = job.model.context
    if context is None:
        context = _CONTEXT_SIZED
        reason = "GPT-2's"
        if limits is not None and limits.seconds is not None and not is_sized(job.model):
            flop = dial.flop_guess(machine, limits.seconds)
            context = next(habit for most, habit in _CONTEXTS if flop <= most)
            reason = f"the habit for a training of about {flop:.0e} FLOP"
        shortest = min(
            (each for each in (text.tokens_train, text.tokens_validation) if each is not None),
            default=None,
        )
        while shortest is not None and context > 8 and shortest < 4 * context:
            context //= 2
            reason = f"the text has only {shortest} tokens in one of its splits"
        why["model.context"] = reason
    check_context(context, text)
    return context


def _dialled(
    job: Job, machine: Machine, limits: dial.Allowance | None, text: Text, context: int,
    why: dict[str, str],
) -> Design:  # fmt: skip
    """The budget, or the tokens of the steps asked for, choose the size."""
    steps = job.train.steps
    if limits is None:
        assert steps is not None
        tokens = float(steps * _batch_for_steps(job, text, context, why) * context)
        limits = dial.Allowance(seconds=None, tokens=tokens, binding=Tokens(tokens).text())
    guess = _batch(job, text, context, _tokens_guess(machine, limits), {})
    known = dial.Known(
        vocabulary=text.vocabulary, context=context, batch=guess, unique_tokens=text.tokens_train
    )
    chosen = dial.dial(job, machine, limits, known)
    model = chosen.model
    why["model"] = chosen.why
    if chosen.twice is not None:
        why["budget"] = "; ".join([*([why["budget"]] if "budget" in why else []), chosen.twice])
    why.update(resolve(job.model, text.vocabulary, context, width=model.width)[1])
    if steps is None:
        batch = _batch(job, text, context, chosen.tokens, why)
    else:
        batch = _batch_for_steps(job, text, context, why)
    return Design(
        model=model, batch=batch, tokens=chosen.tokens, limits=limits, steps=steps, why=why,
        epochs=_asked(job, text, why),
    )  # fmt: skip


def _tokens(
    job: Job, machine: Machine, model: ModelSpec, limits: dial.Allowance | None, text: Text,
    why: dict[str, str],
) -> float:  # fmt: skip
    """Tokens for a model of a given size: what the budget allows and no more than the epochs that
    are asked for; where neither is there, compute-optimal.
    """
    epochs = _asked(job, text, why)
    read = float("inf") if epochs is None else epochs * float(text.tokens_train or 0)
    if limits is not None:
        most = min(limits.tokens or float("inf"), read)
        if limits.seconds is None:
            return most
        guess = dial.flop_guess(machine, limits.seconds) / model.flop_per_token
        batch = _batch(job, text, model.context, guess, {})
        rate = dial.tokens_per_second((model,), job.layout, machine, batch=batch)
        if not rate.any():
            return most if most < float("inf") else guess
        return min(most, float(rate[0]) * limits.seconds)
    if epochs is not None:
        why["train.steps"] = why["train.epochs"]
        return read
    tokens = float(scaling.TOKENS_PER_PARAMETER * model.parameters)
    reason = f"{scaling.TOKENS_PER_PARAMETER} tokens a parameter (arXiv:2203.15556)"
    if text.tokens_train is not None:
        free = float(scaling.EPOCHS_FREE * text.tokens_train)
        if free < tokens:
            reason = (
                f"{scaling.EPOCHS_FREE} epochs of {Tokens(text.tokens_train).text()}: up to there "
                "repeated text is nearly as good as new (arXiv:2305.16264)"
            )
        tokens = min(tokens, free)
    why["train.steps"] = f"neither steps nor a budget is given: {reason}"
    return tokens


def _asked(job: Job, text: Text, why: dict[str, str]) -> float | None:
    """The epochs that the job asks for, of a text whose length is known."""
    if job.train.epochs is None or not text.tokens_train:
        return None
    return finetuning.epochs_of(job, text, why)


def _batch(
    job: Job, text: Text, context: int, tokens: float, why: dict[str, str]
) -> int:  # fmt: skip
    if job.train.batch_sequences is None and job.train.batch_tokens is None:
        rows = finetuning.batch_of(job, text, context, tokens, why)
        if rows is not None:
            return rows
    multiple = (job.layout.micro_batch or 1) * (job.layout.processes or job.layout.batches)
    return recipe.batch_sequences(job.train, context, tokens, why, multiple=multiple)


def _batch_for_steps(job: Job, text: Text, context: int, why: dict[str, str]) -> int:
    """The law asks for the tokens of the whole training, which the batch decides."""
    steps = job.train.steps or 1
    return _batch(job, text, context, steps * scaling.batch_tokens_of_steps(steps), why)


def _tokens_guess(machine: Machine, limits: dial.Allowance) -> float:
    """Tokens that the limits allow a compute-optimal model: C = 6 N D with D = 20 N."""
    allowed = []
    if limits.seconds is not None:
        flop = dial.flop_guess(machine, limits.seconds)
        allowed.append(math.sqrt(flop * scaling.TOKENS_PER_PARAMETER / 6))
    if limits.tokens is not None:
        allowed.append(limits.tokens)
    return min(allowed)
