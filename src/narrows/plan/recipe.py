"""How to train: batch, learning rate, warm-up, and how often to evaluate and to save."""

from __future__ import annotations

import msgspec

from narrows.plan import scaling
from narrows.plan.gradients import due
from narrows.spec.errors import BadInput
from narrows.spec.job import Shape, TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec
from narrows.spec.optimizer import SGD, Adagrad, Adam, Optimizer, ScheduleFree, name_of
from narrows.spec.plan import Checkpointing, Evaluation, Schedule
from narrows.spec.units import Tokens

Whys = dict[str, str]

# The law was fitted above 60M parameters. Followed down to 1M it asks for 0.02; measured there, on
# 7M tokens of plays, 0.004 beats 0.002 and 0.008.
_LEARNING_RATE_MOST = 4e-3
# Peak rates over AdamW's: of the one or two that were tried with each rule on a model of 1M, over
# 200 steps (LOG.md), the better; Muon's steps are made as long as AdamW's (arXiv:2502.16982).
OVER_ADAMW = {
    "adamw": 1.0, "adam": 1.0, "muon": 1.0, "schedule_free": 1.0, "lion": 0.2, "adagrad": 3.0,
    "adafactor": 25.0, "sgd": 100.0,
}  # fmt: skip
_CLIP, _WEIGHT_DECAY = 1.0, 0.1
# For a rule that has none of its own: AdamW's.
_BETA2 = 0.95
# Final learning rate over the peak: a tenth (Hoffmann et al. 2022, appendix B); linear to zero
# (Bergsma et al. 2025, arXiv:2502.15938).
# What a plateau shrinks the rate to at last is a choice.
_FLOOR = {"cosine": 0.1, "wsd": 0.0, "linear": 0.0, "constant": 1.0, "plateau": 0.01}
# Share of the steps in which WSD decays (Hägele et al. 2024, arXiv:2405.18392).
_WSD_DECAY = 0.2
_WARMUP_MOST = 0.1
# A training needs this many updates before more tokens in each of them pay.
_STEPS_LEAST = 200

# Evaluating and saving may take these shares of the training time.
_EVALUATING_SHARE = 0.03
_SAVING_SHARE = 0.02
_EVALUATIONS = 20
_EVALUATIONS_LEAST = 4
_EVALUATION_SEQUENCES_LEAST = 16
_EVALUATION_TOKENS_MOST = 1_000_000
_CHECKPOINT_SECONDS_MOST = 1800.0
# Checkpoints that stay: the last good one beside the one being written.
KEEP = 2


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step and of one sequence's forward pass, bytes of a checkpoint, and how many
    validation sequences there are.
    """

    step_seconds: float
    sequence_seconds: float
    save_bytes: float
    validation_sequences: int
    context: int


class Cadence(msgspec.Struct, frozen=True, kw_only=True):
    """When to evaluate and save, and what both cost over the run."""

    evaluation: Evaluation
    checkpoints: Checkpointing
    seconds_evaluating: float
    seconds_saving: float


def batch_sequences(
    intent: TrainIntent, context: int, tokens: float, why: Whys, *, multiple: int = 1
) -> int:
    """Sequences of an optimizer step: as asked, else by the law for a training on `tokens`, and
    then a multiple of `multiple`.

    Raises BadInput where the intent contradicts itself.
    """
    wanted, tokens_wanted = intent.batch_sequences, intent.batch_tokens
    if wanted is not None and tokens_wanted is not None and wanted * context != int(tokens_wanted):
        raise BadInput(
            f"train.batch_sequences = {wanted} of {context} tokens is {wanted * context} tokens, "
            f"and train.batch_tokens is {int(tokens_wanted)}",
            hint="give one of the two",
        )
    if wanted is not None:
        return wanted
    if tokens_wanted is not None:
        if tokens_wanted < context:
            raise BadInput(
                f"train.batch_tokens is {int(tokens_wanted)}, less than one sequence of {context}",
                hint=f'--set train.batch_tokens="{context} tokens", or a shorter model.context',
            )
        sequences = round(tokens_wanted / context)
        why["train.batch_sequences"] = f"{int(tokens_wanted)} tokens in sequences of {context}"
        return sequences
    law = scaling.batch_tokens(tokens)
    most = tokens / _STEPS_LEAST
    sequences = _round(min(law, most) / context / multiple) * multiple
    why["train.batch_sequences"] = (
        f"{sequences * context} tokens a step: the law for {Tokens(tokens).text()} gives "
        f"{law:.0f} (arXiv:2503.04715)"
        + (f", cut so that there are {_STEPS_LEAST} steps" if law > most else "")
    )
    return sequences


def optimizer(
    intent: TrainIntent, model: ModelSpec, tokens: float, step_tokens: float, why: Whys
) -> Optimizer:
    """The intent's rule and numbers, the learning rate by the law where it is absent."""
    rule = intent.rule
    rate = intent.learning_rate
    if rate is None:
        law = scaling.learning_rate(model.parameters - model.embedding_parameters, tokens)
        # Adam's rate goes with the root of the batch (Malladi et al. 2022, arXiv:2205.10287).
        ratio = (step_tokens / scaling.batch_tokens(tokens)) ** 0.5
        over = OVER_ADAMW[name_of(rule)]
        held = min(law * ratio, _LEARNING_RATE_MOST)
        rate = float(f"{over * held:.3g}")
        why["optimizer.learning_rate"] = (
            f"the law for this size and {Tokens(tokens).text()} gives {law:.2g} (arXiv:2503.04715)"
            f", times {ratio:.2g} for this batch (arXiv:2205.10287)"
            + (f", held at {held:g}" if law * ratio > _LEARNING_RATE_MOST else "")
            + (f", times {over:g} for {name_of(rule)}, tried on a small model"
               if over != 1.0 else "")
        )  # fmt: skip
    decay = intent.weight_decay
    if decay is None:
        # Where it is a part of the gradient, the rule divides it again: none is the habit there.
        decay = 0.0 if isinstance(rule, (Adam, Adagrad, SGD)) else _WEIGHT_DECAY
    clip = intent.clip
    if clip is None:
        clip = 0.0 if intent.fused else _CLIP
    return Optimizer(
        rule=rule, learning_rate=rate, weight_decay=decay, decayed=intent.decayed,
        undecayed=intent.undecayed, clip=clip, ema=intent.ema, state_bits=intent.state_bits,
        fused=intent.fused,
    )  # fmt: skip


def schedule(
    intent: TrainIntent, model: ModelSpec, steps: int, step_tokens: int, why: Whys
) -> Schedule:
    """Warm-up and decay. `decay_steps` counts the steps in which the rate falls."""
    shape = _shape(intent)
    warmup = intent.warmup_steps
    if warmup is None:
        settled = round(2 / (1 - getattr(intent.rule, "beta2", _BETA2)))
        by_size = round(model.parameters / step_tokens)
        most = max(1, int(steps * _WARMUP_MOST))
        warmup = min(max(settled, by_size), most)
        why["schedule.warmup_steps"] = (
            f"the larger of {settled} = 2 / (1 - beta2) (arXiv:1910.04209) and {by_size}, a token "
            "for each parameter (arXiv:2406.19146)"
            + (f", at most {_WARMUP_MOST:.0%} of the steps" if warmup == most else "")
        )
    elif warmup >= steps:
        raise BadInput(
            f"{warmup} warm-up steps leave nothing of {steps} steps",
            hint=f"--set train.warmup_steps={max(1, steps // 20)}",
        )
    remaining = max(1, steps - warmup)
    decay = {"constant": 0, "plateau": 0, "wsd": max(1, round(steps * _WSD_DECAY))}.get(
        shape, remaining
    )
    plateau = shape == "plateau"
    return Schedule(
        shape=shape, warmup_steps=warmup, decay_steps=min(decay, remaining), floor=_FLOOR[shape],
        cycles=intent.cycles, patience=intent.patience if plateau else 0,
        shrink=intent.shrink if plateau else 1.0,
    )  # fmt: skip


def _shape(intent: TrainIntent) -> Shape:
    """As asked for, else a cosine; what averages its steps keeps its rate."""
    free = isinstance(intent.rule, ScheduleFree)
    shape = intent.schedule or ("constant" if free else "cosine")
    if free and shape != "constant":
        raise BadInput(
            f"schedule_free takes the place of a schedule, and train.schedule is {shape}",
            hint="leave train.schedule out",
        )
    if intent.cycles > 1 and shape != "cosine":
        raise BadInput(
            f"train.cycles is {intent.cycles}, and train.schedule is {shape}: cosines come in "
            "cycles",
            hint="--set train.schedule=cosine, or leave train.cycles out",
        )
    return shape


def cadence(intent: TrainIntent, machine: Machine, pace: Pace, steps: int) -> Cadence:
    """Evaluate and save as often as their shares of the time allow, every so many steps and at
    the end.
    """
    training = steps * pace.step_seconds
    affordable = training * _EVALUATING_SHARE / pace.sequence_seconds
    sequences, times = _evaluations(intent, affordable, pace)
    every = intent.evaluate_every or due(intent.exchange, max(1, -(-steps // times)))
    once = pace.save_bytes / float(machine.disk.write.value)
    saves = _saves(training, once, -(-steps // every))
    each = intent.checkpoint_every or due(intent.exchange, _multiple(every, -(-steps // saves)))
    evaluating = _times(steps, every) * sequences * pace.sequence_seconds
    return Cadence(
        evaluation=Evaluation(every=every, sequences=sequences),
        checkpoints=Checkpointing(every=each, keep=KEEP),
        seconds_evaluating=evaluating,
        seconds_saving=_times(steps, each) * once,
    )


def _evaluations(intent: TrainIntent, affordable: float, pace: Pace) -> tuple[int, int]:
    """Sequences of an evaluation and how many evaluations, for `affordable` sequences in all."""
    available = pace.validation_sequences
    most = min(available, max(1, _EVALUATION_TOKENS_MOST // pace.context))
    if intent.evaluate_sequences is not None:
        sequences = min(intent.evaluate_sequences, available)
    else:
        sequences = int(min(most, max(_EVALUATION_SEQUENCES_LEAST, affordable / _EVALUATIONS)))
    times = int(affordable / max(1, sequences))
    return sequences, min(_EVALUATIONS, max(_EVALUATIONS_LEAST, times))


def _saves(training: float, once: float, evaluations: int) -> int:
    """Checkpoints over the run: with each evaluation where cheap, and no half hour without one."""
    affordable = max(1, int(training * _SAVING_SHARE / once))
    wanted = max(evaluations, int(training / _CHECKPOINT_SECONDS_MOST))
    return min(affordable, wanted)


def _multiple(every: int, wanted: int) -> int:
    """A multiple of `every`, or a part of it where checkpoints come oftener than evaluations."""
    if wanted >= every:
        return every * -(-wanted // every)
    return -(-every // -(-every // wanted))


def _times(steps: int, every: int) -> int:
    """How often something happens that is due each `every` steps and at the end."""
    return -(-steps // every)


def _round(sequences: float) -> int:
    """The nearest number with many divisors: 2^n or 3 · 2^n."""
    near = [factor << power for power in range(24) for factor in (1, 3)]
    return min(near, key=lambda each: abs(each - sequences))
