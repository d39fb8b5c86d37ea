"""A model, a fleet and a batch → the best layout and what is to be known about it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np

from narrows.plan.fleet.bend import bend
from narrows.plan.fleet.dial import Pace, bought, refuse_unknown_bounds
from narrows.plan.fleet.energy import joules
from narrows.plan.fleet.evidence import answers, facts, host
from narrows.plan.fleet.failures import goodput, run
from narrows.plan.fleet.machines import against, place, refuse_unknown, scaling
from narrows.plan.fleet.memory import fullest, memory
from narrows.plan.fleet.optimizer import host_bytes, overfills_host
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.rows import rows
from narrows.plan.fleet.search import Found, Goal, search
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.techniques import techniques
from narrows.plan.fleet.time import step
from narrows.plan.fleet.work import Work
from narrows.spec.errors import DoesNotFit
from narrows.spec.fleet import Fleet, Spread
from narrows.spec.forecast import Evidence, Forecast, Moment, Option
from narrows.spec.ledger import Ledger, MemoryPeak, Total
from narrows.spec.machine import Fact
from narrows.spec.plan import Doubling
from narrows.spec.units import Bytes

_RUNNERS_UP = 5


def forecast(question: Question) -> Forecast:
    """Raises BadInput where no layout is possible, DoesNotFit where none fits."""
    refuse_unknown(question)
    refuse_unknown_bounds(question.budget, question.fleet)
    work = Work.of(question.model, question.model.context)
    found = search(work, question.fleet, question.batch, question.wanted, question.goal)
    chosen = found.best(question.goal)
    if chosen is None:
        raise _refusal(question, found)
    spread = found.spreads.spread(chosen)
    hosts = tuple(_hosts(work, spread, question.fleet))
    doubled = _doubling(work, spread, question, found)
    good = goodput(work, question.fleet, question.wanted.trained)
    step_tokens = float(question.batch * work.positions)
    dial = bought(question, Pace.of(found, chosen, question.fleet, step_tokens, good.share))
    tokens = None if dial is None else dial.tokens
    predicted = ledger(work, spread, question.fleet, question.batch, tokens)
    own = place(work, question, question.fleet, found)
    others = scaling(work, question, own)
    bent, whole = bend(others), run(predicted.total, good, question.fleet) if tokens else None
    return Forecast(
        model_name=question.name,
        model=question.model,
        fleet=question.fleet,
        positions=question.model.context,
        batch_sequences=question.batch,
        goal=question.goal,
        spread=spread,
        predicted=predicted,
        memory_limit=found.limit,
        peak_at=_moment(work, spread, predicted.memory),
        layouts_evaluated=found.spreads.size,
        layouts_fitting=int(found.fits.sum()),
        bottleneck=doubled[0].resource,
        doubling=doubled,
        front=tuple(found.option(i) for i in found.pareto()[:12]),
        runners_up=tuple(_runners_up(found, chosen, question.goal)),
        techniques=tuple(techniques(work, spread, question.fleet, found.limit)),
        goodput=good,
        run=whole,
        dial=dial,
        elsewhere=against(work, question, own),
        scaling=others,
        bend=bent,
        answers=(*answers(question.fleet, predicted, good, whole, dial, bent), *hosts),
        facts=tuple(facts(question.fleet, spread.precision)),
        tokens=tokens,
    )


def ledger(work: Work, spread: Spread, fleet: Fleet, batch: int, tokens: float | None) -> Ledger:
    """One layout's step by operation, its memory by kind, and the whole run where it has an end."""
    spreads = Spreads.of([spread])
    taken, held = step(work, spreads, fleet), memory(work, spreads)
    seconds = float(taken.seconds[0])
    energy = float(joules(taken, fleet)[0])
    step_tokens = float(batch * work.positions)
    peak = fleet.peak_of(spread.precision) * fleet.devices
    flop = flop_per_token(work, spread) * step_tokens
    steps = math.ceil(tokens / step_tokens) if tokens else 1
    price = float(fleet.price.value) if fleet.price else 0.0
    total = steps * seconds
    return Ledger(
        basis="predicted",
        energy_basis="estimated",
        rows=tuple(rows(work, spread, fleet, taken, energy)),
        step_seconds=seconds,
        step_tokens=step_tokens,
        mfu=flop / (seconds * peak),
        memory=held.record(0),
        total=Total(
            steps=steps, tokens=steps * step_tokens, seconds=total, seconds_training=total,
            seconds_start=0.0, seconds_evaluating=0.0, seconds_saving=0.0,
            joules=steps * energy, dollars=total / 3600 * price * fleet.devices,
            carbon_grams=steps * energy * fleet.overhead.value / 3.6e6
            * float(fleet.carbon.value),
        ),
    )  # fmt: skip


def flop_per_token(work: Work, spread: Spread) -> float:
    """Model FLOP of a token: of the 6 of a weight, 2 are its own gradient's, and 2 go back."""
    spec = work.spec
    products = float(spec.product_parameters_active)
    products -= 0.0 if spread.logits else float(spec.vocabulary * spec.width)
    scores = spec.flop_per_token - 6.0 * spec.product_parameters_active
    back = spread.reached
    return products * (2.0 + 2.0 * back + 2.0 * spread.trained) + scores * (1.0 + 2.0 * back) / 3.0


def _moment(work: Work, spread: Spread, peak: MemoryPeak) -> Moment:
    """Only the stage with the head has logits."""
    if peak.logits > 0.0:
        return "loss"
    first = int(fullest(work, Spreads.of([spread]))[0]) == 0
    return "first stage" if first else "middle stage"


def _runners_up(found: Found, chosen: int, goal: Goal) -> Iterator[Option]:
    """The next best of other tensor, pipeline, context or expert parallelism, and why they lose."""
    spreads, best = found.spreads, found.seconds[chosen]
    seen = {_structure(spreads, chosen)}
    for index in np.argsort(np.where(found.fits, found.values(goal), np.inf)):
        if len(seen) > _RUNNERS_UP or not found.fits[index]:
            return
        key = _structure(spreads, int(index))
        if key not in seen:
            seen.add(key)
            more = found.seconds[index] / best - 1.0
            memory_ratio = found.bytes[index] / found.bytes[chosen]
            slower = f"{abs(more):.1%} {'slower' if more >= 0.0 else 'quicker'}"
            yield found.option(int(index), f"{slower}, {memory_ratio:.2f}x the memory")


def _structure(spreads: Spreads, index: int) -> tuple[int, ...]:
    names = ("tensor", "pipeline", "context", "expert")
    return tuple(int(getattr(spreads, name)[index]) for name in names)


def _doubling(work: Work, spread: Spread, question: Question, found: Found) -> tuple[Doubling, ...]:
    """The chosen layout with twice of each resource; with twice the memory, the best of all."""
    fleet = question.fleet
    now = float(step(work, Spreads.of([spread]), fleet).seconds[0])
    steps = {
        name: float(step(work, Spreads.of([spread]), changed).seconds[0])
        for name, changed in doubled(fleet)
    }
    roomy = np.where(found.bytes <= 2.0 * found.limit, found.values(question.goal), np.inf)
    steps["memory capacity"] = min(now, float(found.seconds[roomy.argmin()]))
    rows = [
        Doubling(resource=name, step_seconds=seconds, saving=1.0 - seconds / now)
        for name, seconds in steps.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.saving))


def doubled(fleet: Fleet) -> Iterator[tuple[str, Fleet]]:
    """The fleet with twice of one resource, for each."""
    replace = msgspec.structs.replace
    peak = {name: replace(fact, value=2.0 * fact.value) for name, fact in fleet.peak.items()}
    yield "compute", replace(fleet, peak=peak)
    bandwidth = replace(fleet.memory_bandwidth, value=2.0 * fleet.memory_bandwidth.value)
    yield "memory bandwidth", replace(fleet, memory_bandwidth=bandwidth)

    def scaled(fact: Fact, factor: float) -> Fact:  # type: ignore[type-arg]
        return replace(fact, value=factor * fact.value)

    inner, *outer = fleet.domains
    for name, which in (("link bandwidth inside a node", 0), ("network bandwidth", 1)):
        if which == 1 and not outer:
            continue
        domains = tuple(
            replace(domain, bandwidth=scaled(domain.bandwidth, 2.0))
            if (place == 0) == (which == 0) else domain
            for place, domain in enumerate((inner, *outer))
        )  # fmt: skip
        yield name, replace(fleet, domains=domains)
    quick = tuple(replace(each, latency=scaled(each.latency, 0.5)) for each in fleet.domains)
    yield "link latency", replace(fleet, domains=quick)


def _hosts(work: Work, spread: Spread, fleet: Fleet) -> Iterator[Evidence]:
    """What the optimizer takes of its host; raises DoesNotFit where that is known to have less."""
    if spread.offload != "host":
        return
    wanted, known = host_bytes(work, spread, fleet), fleet.host_memory
    if known is not None and overfills_host(work, spread, fleet):
        raise DoesNotFit(
            f"the optimizer does not fit the host: {Bytes(wanted).text()} for "
            f"{fleet.devices_per_node} devices, {known.value.text()} in a node",
            hint="--set layout.offload=disk, or more nodes",
        )
    yield from host(fleet, wanted)


def _refusal(question: Question, found: Found) -> DoesNotFit:
    least = int(found.bytes.argmin())
    spreads = Spreads.of([found.spreads.spread(least)])
    held = memory(Work.of(question.model, question.model.context), spreads).record(0)
    return DoesNotFit(
        f"the job does not fit: {held.peak / 1e9:.1f} GB needed by the leanest of "
        f"{found.spreads.size:,} layouts, {found.limit / 1e9:.1f} GB free on each "
        f"{question.fleet.accelerator}",
        causes=(", ".join(f"{name} {value / 1e9:.1f} GB" for name, value in held.ranked()[:3]),),
    )
