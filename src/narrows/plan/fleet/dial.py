"""The dial of a fleet: a budget of time, energy, money or tokens → tokens, and a size for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np

from narrows.plan import scaling
from narrows.plan.family import resolve
from narrows.plan.fleet.best import best_alone
from narrows.plan.fleet.failures import goodput
from narrows.plan.fleet.question import Question, Wish
from narrows.plan.fleet.search import Found, search
from narrows.plan.fleet.work import Work
from narrows.plan.words import count, dollars
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Dial, Limit, Sizing
from narrows.spec.job import Budget, ModelIntent
from narrows.spec.model import ModelSpec
from narrows.spec.units import Joules, Seconds, Tokens

# As many layers as heads, each of 128: Llama 7B has 32 of both, 13B 40 (arXiv:2302.13971). From
# 9M parameters to 1.4T; the wide ones by fours and eights, so that tensor ranks divide their heads.
_HEADS = (*range(2, 17), *range(18, 41, 2), *range(44, 81, 4), *range(88, 193, 8))
_HEAD_WIDTH = 128
# Llama's vocabulary, and about that of the models that the law was fitted to.
_VOCABULARY = 32_000
# Of a device's peak, to begin the search for a size near its end.
_UTILISATION_GUESS = 0.4
_NEIGHBOURS = 2


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What a layout makes of a second, a joule and a dollar, failures counted; None: not known."""

    tokens_per_s: float
    tokens_per_joule: float | None
    tokens_per_dollar: float | None

    @classmethod
    def of(cls, found: Found, chosen: int, fleet: Fleet, step_tokens: float, kept: float) -> Pace:
        """Of one layout of those found, where failures leave the share `kept` of the time."""
        energy, rate = float(found.joules[chosen]), kept * step_tokens / found.seconds[chosen]
        price = 0.0 if fleet.price is None else float(fleet.price.value) * fleet.devices / 3600.0
        return cls(
            tokens_per_s=float(rate),
            tokens_per_joule=kept * step_tokens / energy if energy else None,
            tokens_per_dollar=float(rate) / price if price else None,
        )


class _Sized(msgspec.Struct, frozen=True, kw_only=True):
    """A size at the best of its layouts, and the tokens that the budget allows it."""

    model: ModelSpec
    batch: int
    limits: tuple[Limit, ...]

    def loss(self, times: float) -> float:
        """By the law, with so many times the budget."""
        return _loss(float(self.model.parameters), times * self.limits[0].tokens)


Try = Callable[[int], _Sized | None]


def limits(budget: Budget, pace: Pace, fleet: Fleet) -> tuple[Limit, ...]:
    """Each bound of the budget with the tokens that it buys, the tightest first.

    Raises BadInput where a bound is of what is not known of the fleet.
    """
    found: list[tuple[str, float]] = []
    if budget.time is not None:
        found.append((Seconds(budget.time).text(), float(budget.time) * pace.tokens_per_s))
    if budget.energy is not None:
        tokens = float(budget.energy) * _known(pace.tokens_per_joule, "power", fleet)
        found.append((Joules(budget.energy).text(), tokens))
    if budget.money is not None:
        money = float(budget.money)
        found.append((dollars(money), money * _known(pace.tokens_per_dollar, "price", fleet)))
    if budget.tokens is not None:
        found.append((Tokens(budget.tokens).text(), float(budget.tokens)))
    found.sort(key=lambda pair: pair[1])
    return tuple(Limit(bound=bound, tokens=tokens) for bound, tokens in found)


def refuse_unknown_bounds(budget: Budget | None, fleet: Fleet) -> None:
    """Raises BadInput where a bound of the budget is of what is not known of the fleet."""
    if budget is None:
        return
    if budget.energy is not None and fleet.power_full is None:
        raise _unknown("power", fleet)
    if budget.money is not None and fleet.price is None:
        raise _unknown("price", fleet)


def bought(question: Question, pace: Pace) -> Dial | None:
    """What the question's budget buys of its model; None where there is no budget.

    Raises BadInput where that is less than one step.
    """
    budget = question.budget
    if budget is None:
        return None
    found = limits(budget, pace, question.fleet)
    step = question.batch * question.model.context
    steps = found[0].tokens / step
    # Tokens asked for are all trained on; no other bound may be passed.
    whole = math.ceil(steps) if found[0].tokens == budget.tokens else math.floor(steps)
    if whole < 1:
        raise BadInput(
            f"{found[0].bound} is over before the end of the first step: it buys "
            f"{Tokens(found[0].tokens).text()}, and a step has {Tokens(step).text()}",
            hint="a smaller --batch, or a larger --budget",
        )
    parameters, tokens = float(question.model.parameters), float(whole * step)
    smallest, largest = scaling.FITTED_PARAMETERS
    return Dial(
        limits=found,
        tokens=tokens,
        tokens_optimal=float(scaling.optimal_tokens(parameters)),
        loss=_loss(parameters, tokens) if smallest <= parameters <= largest else None,
        sizing=question.sizing,
    )


def dial(wish: Wish) -> Question:
    """The size with the lowest loss by the law, each at the throughput of its own best layout.

    Raises DoesNotFit where no size fits, BadInput where the budget speaks of what is not known.
    """
    models, known = _family(wish.context), dict[int, _Sized | None]()

    def tried(place: int) -> _Sized | None:
        if place not in known:
            known[place] = _sized(wish, models[place])
        return known[place]

    budget = wish.budget
    if not (budget.time or budget.energy or budget.money):
        assert budget.tokens is not None, "a budget has a limit"
        start = _nearest(models, float(scaling.optimal_parameters(float(budget.tokens))))
        best = next((each for place in range(start, -1, -1) if (each := tried(place))), None)
        return _question(wish, _fitting(best, wish, models[0]), Sizing(sizes=len(models)))
    place = _lowest(tried, _nearest(models, _guess(wish)), len(models), 1.0)
    chosen = _fitting(tried(place), wish, models[0])
    more = _fitting(tried(_lowest(tried, place, len(models), 2.0)), wish, models[0])
    return _question(wish, chosen, Sizing(
        sizes=len(models), largest=place + 1 < len(models) and tried(place + 1) is None,
        twice_parameters=float(more.model.parameters), twice_tokens=2.0 * more.limits[0].tokens,
    ))  # fmt: skip


def _lowest(tried: Try, place: int, count: int, times: float) -> int:
    """Downhill from `place`, where what does not fit is higher than all else and ties go down."""

    def height(place: int) -> float:
        sized = tried(place)
        return math.inf if sized is None else sized.loss(times)

    while True:
        around = range(max(0, place - _NEIGHBOURS), min(count, place + _NEIGHBOURS + 1))
        best = min(around, key=height)
        if best == place:
            return place
        place = best


def _sized(wish: Wish, model: ModelSpec) -> _Sized | None:
    """None where no layout of this size is possible or fits."""
    work = Work.of(model, wish.context)
    batch = wish.batch or _batch(wish, float(scaling.optimal_tokens(model.parameters)))
    try:
        found = best_alone(work, wish.fleet, batch, wish.wanted, wish.goal)
    except BadInput:
        return None
    chosen = found.best(wish.goal)
    if chosen is None:
        return None
    kept = goodput(work, wish.fleet).share
    pace = Pace.of(found, chosen, wish.fleet, float(batch * wish.context), kept)
    return _Sized(model=model, batch=batch, limits=limits(wish.budget, pace, wish.fleet))


def _batch(wish: Wish, tokens: float) -> int:
    """Sequences of a step by the law, in a number that the devices divide into."""
    devices = wish.fleet.devices
    odd = devices // (devices & -devices)
    wanted = scaling.batch_tokens(tokens) / wish.context / odd
    return odd << max(0, round(math.log2(wanted)))


def _guess(wish: Wish) -> float:
    """Parameters that are compute-optimal (C = 6 N D, D = 20 N) where a guess of all is right."""
    fleet, budget, bounds = wish.fleet, wish.budget, list[float]()
    if budget.time is not None:
        bounds.append(float(budget.time))
    if budget.money is not None and fleet.price is not None and fleet.price.value > 0.0:
        bounds.append(float(budget.money) / (float(fleet.price.value) * fleet.devices) * 3600.0)
    if budget.energy is not None and fleet.power_full is not None:
        bounds.append(float(budget.energy) / (float(fleet.power_full.value) * fleet.devices))
    flop = _UTILISATION_GUESS * fleet.peak_of(wish.wanted.precision) * fleet.devices
    seconds = min(bounds, default=0.0)
    return max(1.0, math.sqrt(flop * seconds / (6 * scaling.TOKENS_PER_PARAMETER)))


def _question(wish: Wish, chosen: _Sized, sizing: Sizing) -> Question:
    return Question(
        name=f"a llama of {count(chosen.model.parameters)} parameters", model=chosen.model,
        fleet=wish.fleet, batch=chosen.batch, wanted=wish.wanted, goal=wish.goal,
        budget=wish.budget, against=wish.against, ladder=wish.ladder,
        sizing=sizing,
    )  # fmt: skip


def _family(context: int) -> tuple[ModelSpec, ...]:
    intents = (
        ModelIntent(layers=heads, width=_HEAD_WIDTH * heads, head_width=_HEAD_WIDTH)
        for heads in _HEADS
    )
    return tuple(resolve(intent, _VOCABULARY, context)[0] for intent in intents)


def _nearest(models: tuple[ModelSpec, ...], parameters: float) -> int:
    distance = [abs(math.log(model.parameters / parameters)) for model in models]
    return distance.index(min(distance))


def _fitting(sized: _Sized | None, wish: Wish, smallest: ModelSpec) -> _Sized:
    """Raises BadInput where not even the smallest can be laid out as asked, else DoesNotFit."""
    if sized is not None:
        return sized
    search(
        Work.of(smallest, wish.context), wish.fleet, wish.batch or _batch(wish, 1e9), wish.wanted
    )
    raise DoesNotFit(
        f"no model of this kind fits {wish.fleet.devices} x {wish.fleet.accelerator} with what is "
        "asked of the layout",
        hint="more devices, or leave --set and --batch out",
    )


def _known(value: float | None, what: str, fleet: Fleet) -> float:
    if value is None:
        raise _unknown(what, fleet)
    return value


def _unknown(what: str, fleet: Fleet) -> BadInput:
    spent = {"power": "energy", "price": "money"}[what]
    return BadInput(
        f"the {what} of {fleet.accelerator} is not known, so {spent} cannot be budgeted",
        hint='give a time or an amount, such as --budget "3 days" or --budget "20B tokens"',
    )


def _loss(parameters: float, tokens: float) -> float:
    return float(scaling.loss(np.array(parameters), np.array(tokens), None))
