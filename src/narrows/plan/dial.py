"""The dial: a budget of time, energy, money or tokens → a size of model and its tokens."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from narrows.plan import scaling
from narrows.plan.family import family
from narrows.plan.layouts import Array, Shapes
from narrows.plan.search import candidates, search
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.job import Budget, Job, LayoutIntent
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec
from narrows.spec.units import Dollars, Joules, Seconds, Tokens

# Importing torch, building the model and opening the data, before the first step.
START_SECONDS = 5.0
# Kept back from every budget: the step time is predicted to about this much.
MARGIN = 0.05
# Of the seconds left after start-up, evaluating and saving take up to this much (see `recipe`).
AUXILIARY_SHARE = 0.05
# Compute that a processor turns into training; only to guess a batch before the size is known.
_UTILISATION_GUESS = 0.4
_DIAL_CHUNK = 1024


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """A budget in the two currencies of training, and which limit binds the seconds."""

    seconds: float | None
    tokens: float | None
    binding: str


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What of a training is known before its size; `unique_tokens` None: data does not run out."""

    vocabulary: int
    context: int
    batch: int
    unique_tokens: float | None


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A model, the tokens it should see, why, and what twice the budget would buy."""

    model: ModelSpec
    tokens: float
    why: str
    twice: str | None


def allowance(budget: Budget, machine: Machine) -> Allowance:
    """What `budget` allows on `machine`; raises BadInput where that is nothing or unknown."""
    limits: list[tuple[float, str]] = []
    if budget.time is not None:
        limits.append((float(budget.time), f"{Seconds(budget.time).text()} of time"))
    if budget.energy is not None:
        watts = machine.device.power_full
        if watts is None:
            raise BadInput(
                f"the power of {machine.name} is not known, so energy cannot be budgeted",
                hint="give budget.time, or add device.power_full to machine.toml",
            )
        seconds = float(budget.energy) / float(watts.value)
        limits.append((seconds, f"{Joules(budget.energy).text()} of energy"))
    if budget.money is not None:
        price = float(machine.electricity.price.value)
        if price <= 0:
            raise BadInput(
                f"an hour of {machine.name} costs nothing, so money does not limit the run",
                hint="give budget.time, or set electricity.price in machine.toml",
            )
        limits.append((float(budget.money) / price * 3600, f"{Dollars(budget.money).text()}"))
    tokens = float(budget.tokens) if budget.tokens is not None else None
    if not limits:
        text = Tokens(tokens).text() if tokens is not None else "nothing"
        return Allowance(seconds=None, tokens=tokens, binding=text)
    seconds, binding = min(limits)
    return Allowance(seconds=seconds, tokens=tokens, binding=binding)


def flop_guess(machine: Machine, seconds: float) -> float:
    """Training FLOP that the machine does in `seconds`, before any model is known."""
    peak = max(float(curve.peak.value) for curve in machine.device.matmul)
    return peak * machine.devices * seconds * _UTILISATION_GUESS


def start_seconds(machine: Machine) -> float:
    """From the command to the first step, compiling left out."""
    return START_SECONDS * machine.calibration.get("start", 1.0)


def dial(job: Job, machine: Machine, limits: Allowance, known: Known) -> Chosen:
    """The member of the family with the lowest loss by the law, at this machine's own throughput.

    Raises DoesNotFit where no member fits memory, BadInput where the budget is over at the start.
    """
    models = family(job.model, known.vocabulary, known.context)
    rate = tokens_per_second(models, job.layout, machine, batch=known.batch)
    if limits.seconds is None:
        assert limits.tokens is not None, "a budget has a limit"
        return _optimal_for_tokens(models, rate > 0, limits.tokens)
    starting = start_seconds(machine)
    left = usable_seconds(limits.seconds, starting)
    if left <= 0:
        raise BadInput(
            f"{limits.binding} is over before the first step: starting takes "
            f"{Seconds(starting).text()}",
            hint=f'--set budget.time="{round(60 + 10 * starting)} s", or more',
        )
    most = min(limits.tokens or math.inf, worthwhile_tokens(known.unique_tokens))
    tokens = np.minimum(rate * left * (1 - AUXILIARY_SHARE), most)
    best = _lowest_loss(models, tokens, known.unique_tokens)
    twice = np.minimum(rate * (left + limits.seconds) * (1 - AUXILIARY_SHARE), most)
    better = _lowest_loss(models, twice, known.unique_tokens)
    return Chosen(
        model=models[best], tokens=float(tokens[best]),
        why=_reason(len(models), float(tokens[best]), limits, known.unique_tokens),
        twice=f"twice as much would make it {models[better].parameters / 1e6:.3g}M parameters on "
        f"{Tokens(float(twice[better])).text()}, instead of {models[best].parameters / 1e6:.3g}M",
    )  # fmt: skip


def worthwhile_tokens(unique_tokens: float | None) -> float:
    """Tokens after which reading the text again teaches nothing; infinite where it never ends."""
    return float("inf") if unique_tokens is None else scaling.EPOCHS_MOST * unique_tokens


def usable_seconds(seconds: float, starting: float) -> float:
    """Of a time budget, what is left for steps, evaluation and saving."""
    return seconds * (1 - MARGIN) - starting


def _optimal_for_tokens(
    models: tuple[ModelSpec, ...], fits: npt.NDArray[np.bool_], tokens: float
) -> Chosen:
    """Tokens alone bound nothing but tokens: the size for which they are compute-optimal."""
    parameters = np.array([float(model.parameters) for model in models])
    wanted = float(scaling.optimal_parameters(tokens))
    distance = np.where(fits, np.abs(np.log(parameters / wanted)), np.inf)
    why = f"compute-optimal for {Tokens(tokens).text()} (arXiv:2404.10102)"
    return Chosen(model=models[int(distance.argmin())], tokens=tokens, why=why, twice=None)


def _lowest_loss(models: tuple[ModelSpec, ...], tokens: Array, unique: float | None) -> int:
    parameters = np.array([float(model.parameters) for model in models])
    losses = scaling.loss(parameters, np.maximum(tokens, 1.0), unique)
    return int(np.where(tokens > 0, losses, np.inf).argmin())


def _reason(sizes: int, tokens: float, limits: Allowance, unique: float | None) -> str:
    why, law = f"lowest loss by the law of {sizes} sizes for {limits.binding}", "arXiv:2404.10102"
    if unique is not None and tokens > unique:
        why += f", {tokens / unique:.1f} epochs of {Tokens(unique).text()} discounted"
        law += ", arXiv:2305.16264"
    return f"{why} ({law})"


def tokens_per_second(
    models: tuple[ModelSpec, ...], intent: LayoutIntent, machine: Machine, *, batch: int
) -> Array:
    """Of each model by its fastest fitting layout; 0 where none fits.

    Raises DoesNotFit where not one of them does.
    """
    shapes = Shapes.of(models)
    context = models[0].context
    open_chunk = LayoutIntent(
        micro_batch=intent.micro_batch, precision=intent.precision, recompute=intent.recompute,
        compile=intent.compile or False, kernels=intent.kernels, threads=intent.threads,
        loss_chunk=intent.loss_chunk or _DIAL_CHUNK,
    )  # fmt: skip
    found = search(
        shapes, candidates(open_chunk, machine, batch, context), machine, reads_text=True
    )
    step = np.where(found.peak <= found.limit, found.step, np.inf).min(axis=1)
    if not np.isfinite(step).any():
        least = float(found.peak.min())
        raise DoesNotFit(
            f"no model of this kind fits: {least / 1e9:.1f} GB needed by the smallest, "
            f"{found.limit / 1e9:.1f} GB free on {machine.device.name}",
            hint="free some memory, or a smaller vocabulary: --set data.vocabulary=1024",
        )
    return np.asarray(batch * context / step)
