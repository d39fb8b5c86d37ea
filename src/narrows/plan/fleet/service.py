"""A model, a fleet and its requests → the replicas that answer most within the limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from narrows.plan.fleet import constants, latency
from narrows.plan.fleet.energy import COMPUTING, IDLE_SHARE, MOVING, WAITING
from narrows.plan.fleet.forecast import doubled
from narrows.plan.fleet.passes import (
    Pass,
    Prompt,
    Replica,
    Tokens,
    decode_pass,
    decode_seconds,
    prefill_pass,
    prefill_seconds,
    seen,
)
from narrows.plan.fleet.serving import Apart, Load, Served, Speculation, serve
from narrows.plan.fleet.work import Work
from narrows.spec.errors import DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Doubling
from narrows.spec.service import (
    Guesses,
    Held,
    Placement,
    Requests,
    Service,
    Serving,
    Usage,
)
from narrows.spec.units import Bytes, Seconds

# Bits of a weight, its scale included, and of a key or value that may go with it. Narrower ones
# cost quality, so the widest that will do are taken.
_BITS = {16.0: (16.0, 8.0), 8.0: (16.0, 8.0), 4.5: (16.0, 8.0, 4.5)}
_OTHERS = 8
# Of a fleet's replicas, those that may compute nothing but prompts.
_APART = (0.25, 0.5)
_HALVINGS = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The latest that tokens may come, at a percentile of the requests; None: whenever."""

    first_token_s: float | None = None
    per_token_s: float | None = None
    percent: int = 90

    def kept(self, way: Serving) -> bool:
        """Whether a way to serve is quick enough."""
        first, each = self.first_token_s, self.per_token_s
        return (first is None or way.first_token.at(self.percent) <= first) and (
            each is None or way.per_token.at(self.percent) <= each
        )


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be served; `larger` fleets are looked at where this one will not do."""

    name: str
    model: ModelSpec
    fleet: Fleet
    requests: Requests
    limits: Limits = Limits()
    guesses: Guesses | None = None
    draft: ModelSpec | None = None
    weight_bits: float | None = None
    larger: tuple[Fleet, ...] = ()


class _TooMany(Exception):
    """More requests a second come than a layout can answer."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most


@dataclass(frozen=True, kw_only=True)
class _Found:
    """All ways that were looked at: those that will do, and the nearest of those that will not."""

    quick: list[Serving]
    slow: list[Serving]
    tight: list[Serving]
    most: float


def service(demand: Demand) -> Service:
    """Raises DoesNotFit where no replica fits, none is quick enough, or too many requests come."""
    found = _search(demand)
    if not found.quick:
        raise _refusal(demand, found)
    order = sorted(found.quick, key=_worth)
    best = order[0]
    work = Work.of(demand.model, demand.requests.prompt)
    return Service(
        model_name=demand.name, model=demand.model, fleet=demand.fleet, requests=demand.requests,
        percent=demand.limits.percent, memory_limit=limit_bytes(demand.fleet), best=best,
        others=tuple(order[1 : _OTHERS + 1]), guesses=demand.guesses,
        doubling_decode=_doubling(work, best, demand, "decode"),
        doubling_prefill=_doubling(work, best, demand, "prefill"),
    )  # fmt: skip


def limit_bytes(fleet: Fleet) -> float:
    """Of a device's memory, what engines use."""
    return constants.SERVING_HELD * float(fleet.memory_capacity.value)


def _worth(way: Serving) -> tuple[float, ...]:
    """Room for all first, then the widest weights and keys, then most tokens; what answers a rate
    answers as many tokens whatever the way, to a hundredth: then the soonest.
    """
    placed = way.placement
    tokens = round(math.log(way.tokens_per_s), 2)
    return (float(way.room < way.concurrency), -placed.weight_bits, -placed.cache_bits, -tokens,
            way.per_token.mean)  # fmt: skip


def _search(demand: Demand) -> _Found:
    quick, slow, tight = list[Serving](), list[Serving](), list[Serving]()
    work, most = Work.of(demand.model, demand.requests.prompt), 0.0
    for placed in _placements(demand):
        try:
            way = _way(work, placed, demand)
        except _TooMany as refused:
            most = max(most, refused.most)
            continue
        if way.room < placed.replicas:
            tight.append(way)
        else:
            (quick if demand.limits.kept(way) else slow).append(way)
    return _Found(quick=quick, slow=slow, tight=tight, most=most)


def _placements(demand: Demand) -> Iterator[Placement]:
    fleet, model = demand.fleet, demand.model
    for weights, caches in _BITS.items():
        if demand.weight_bits not in (None, weights):
            continue
        tensor = 1
        while tensor <= fleet.devices:
            sets, rest = divmod(fleet.devices, tensor)
            # Experts go with attention that each rank does for its own requests.
            groups = {1, tensor} if model.experts else {1}
            if not rest and model.heads % tensor == 0:
                for apart in sorted({0, *(int(share * sets) for share in _APART)}):
                    for cache in caches:
                        for group in sorted(groups):
                            yield Placement(
                                replicas=sets - apart, tensor=tensor, groups=group, apart=apart,
                                weight_bits=weights, cache_bits=cache,
                            )  # fmt: skip
            tensor *= 2


def replica_of(placed: Placement) -> Replica:
    """One of its replicas."""
    return Replica(
        tensor=placed.tensor, attention_data=placed.groups, weight_bits=placed.weight_bits,
        cache_bytes=placed.cache_bits / 8.0,
    )  # fmt: skip


def load_of(demand: Demand, placed: Placement, concurrency: float) -> Load:
    """What one replica gets of `concurrency` requests at a time in all."""
    requests, guesses = demand.requests, demand.guesses
    speculation = None
    if guesses is not None:
        draft = Work.of(demand.draft, requests.prompt) if demand.draft else None
        speculation = Speculation(accept=guesses.accept, ahead=guesses.ahead, draft=draft)
    apart = None
    if placed.apart:
        apart = Apart(replica=replica_of(placed), sets=placed.apart / placed.replicas)
    return Load(
        concurrency=max(1.0, concurrency / placed.replicas), prompt=float(requests.prompt),
        answer=float(requests.answer), shared=float(requests.shared), chunk=requests.chunk,
        apart=apart, speculation=speculation,
    )  # fmt: skip


def _way(work: Work, placed: Placement, demand: Demand) -> Serving:
    requests, fleet, replica = demand.requests, demand.fleet, replica_of(placed)
    concurrency = requests.concurrency
    if concurrency is None:
        concurrency = _concurrency(work, placed, demand)
    load = load_of(demand, placed, concurrency)
    answer = serve(work, replica, load, fleet)
    first = latency.first_token(answer, load, requests.variation)
    each = latency.per_token(
        answer, load, requests.rate is None, requests.variation, (work, replica, fleet)
    )
    tokens = concurrency * load.answer / _stay(answer, load)
    return Serving(
        placement=placed, first_token=first, per_token=each,
        pause_s=answer.decode + (0.0 if load.apart else answer.service / load.chunks),
        concurrency=concurrency, room=max(0.0, answer.room) * placed.replicas, tokens_per_s=tokens,
        held=Held(weights=answer.weights_bytes, cache=answer.cache_bytes,
                  runtime=constants.SERVING_RUNTIME),
        usage=_usage(placed, load, answer, (work, fleet), tokens),
    )  # fmt: skip


def _stay(answer: Served, load: Load) -> float:
    """Seconds from a request to the end of its answer."""
    return answer.first_token + load.answer * answer.per_token


def _concurrency(work: Work, placed: Placement, demand: Demand) -> float:
    """Requests at a time under a rate (Little, 1961, doi:10.1287/opre.9.3.383)."""
    requests, replica = demand.requests, replica_of(placed)
    assert requests.rate is not None
    rate = requests.rate / placed.replicas

    def carried(concurrency: float) -> tuple[float, Served]:
        load = load_of(demand, placed, concurrency * placed.replicas)
        answer = serve(work, replica, load, demand.fleet)
        return load.concurrency / _stay(answer, load), answer

    alone, answer = carried(1.0)
    if alone >= rate or answer.room < 1.0:
        return rate / alone * placed.replicas
    low, high = 1.0, max(1.0, answer.room)
    most, _ = carried(high)
    if most < rate:
        raise _TooMany(most * placed.replicas)
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if carried(middle)[0] < rate else (low, middle)
    return high * placed.replicas


def _usage(
    placed: Placement, load: Load, answer: Served, at: tuple[Work, Fleet], tokens: float
) -> Usage:
    """What devices do with their time, and what that takes in energy and money for a token."""
    work, fleet = at
    # Of one token: its part of a step, and of the prompt that it answers.
    step, prompt = _parts(work, replica_of(placed), load, answer.running, fleet)
    tokens_a_step = answer.running * (load.speculation.tokens if load.speculation else 1.0)
    longer = answer.decode / step.seconds / tokens_a_step
    read, compute, links, starts = (
        own * longer + joined / load.answer for own, joined in zip(step, prompt, strict=True)
    )
    price = float(fleet.price.value) * fleet.devices / 3600.0 if fleet.price else None
    energy = None
    if fleet.power_full is not None:
        full = float(fleet.power_full.value)
        idle = float(fleet.power_idle.value) if fleet.power_idle else IDLE_SHARE * full
        active = COMPUTING * compute + MOVING * read + WAITING * (links + starts)
        energy = idle * fleet.devices / tokens + (full - idle) * active * placed.tensor
    return Usage(
        prefilling=latency.prefilling(answer, load),
        computing=min(1.0, compute * placed.tensor * tokens / fleet.devices),
        joules_per_token=energy,
        dollars_per_million_tokens=None if price is None else price / tokens * 1e6,
    )


def _parts(
    work: Work, replica: Replica, load: Load, running: float, fleet: Fleet
) -> tuple[Pass, Pass]:
    """One step of all that write, and one prompt."""
    past = load.prompt + load.answer / 2.0
    each = load.speculation.ahead + 1.0 if load.speculation else 1.0
    step = decode_pass(work, replica, Tokens(running * each, running, seen(work.spec, past)), fleet)
    beside = 0.0 if load.apart else running
    return step, prefill_pass(work, replica, Prompt(load.new, load.shared, beside), fleet)


def _doubling(work: Work, best: Serving, demand: Demand, what: str) -> tuple[Doubling, ...]:
    """Seconds of one step, or of a prompt alone, with twice of each resource; most useful first."""
    placed, fleet = best.placement, demand.fleet
    replica, load = replica_of(placed), load_of(demand, placed, best.concurrency)
    past = load.prompt + load.answer / 2.0
    running = min(load.concurrency, max(1.0, best.room / placed.replicas))

    def seconds(on: Fleet) -> float:
        if what == "decode":
            return decode_seconds(work, replica, running, past, on)
        return prefill_seconds(work, replica, Prompt(load.new, load.shared), on)

    now = seconds(fleet)
    tokens = Tokens(running, running, seen(work.spec, past))
    alone = (
        decode_pass(work, replica, tokens, fleet) if what == "decode"
        else prefill_pass(work, replica, Prompt(load.new, load.shared), fleet)
    )  # fmt: skip
    found = {name: seconds(changed) for name, changed in doubled(fleet) if "latency" not in name}
    found["kernels' starts a second"] = now - alone.starts / 2.0
    rows = (
        Doubling(resource=name, step_seconds=value, saving=1.0 - value / now)
        for name, value in found.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.saving))


def _refusal(demand: Demand, found: _Found) -> DoesNotFit:
    """Why nothing will do, and the smallest change after which something does."""
    hint = _change(demand, found.most)
    if found.slow:
        each = min(found.slow, key=lambda way: _missed(way, demand.limits))
        quick = each.first_token.at(demand.limits.percent)
        return DoesNotFit(
            f"no layout is as quick as asked for: the nearest takes {Seconds(quick).text()} to the "
            f"first token and {Seconds(each.per_token.at(demand.limits.percent)).text()} for each "
            f"more, for {demand.limits.percent} of 100 requests",
            hint=hint,
        )
    if found.most:
        assert demand.requests.rate is not None
        return DoesNotFit(
            f"{demand.requests.rate:g} requests/s saturate {demand.fleet.name}: the most that any "
            f"layout answers is {_down(found.most, 3)} requests/s",
            hint=hint,
        )
    least = min(found.tight, key=lambda way: way.held.weights)
    room = limit_bytes(demand.fleet)
    return DoesNotFit(
        f"the model does not fit: {Bytes(least.held.weights + least.held.runtime).text()} of "
        f"weights and runtime on each device with {least.placement.weight_bits:g} bits a weight "
        f"over {least.placement.tensor}, and one request's keys and values, of "
        f"{Bytes(room).text()} free",
        hint=hint,
    )


def _missed(way: Serving, limits: Limits) -> float:
    """By which factor a way is too slow."""
    pairs = ((way.first_token, limits.first_token_s), (way.per_token, limits.per_token_s))
    return max(time.at(limits.percent) / most for time, most in pairs if most is not None)


def _change(demand: Demand, most: float) -> str:
    """The fewest requests less, else the fewest devices more; `most`: a second that some layout can
    answer.
    """
    requests = demand.requests
    name = "concurrency" if requests.rate is None else "rate"
    wanted = getattr(requests, name)
    if name == "rate" and most:
        wanted = min(wanted, most)
    for share in (0.95, 0.75, *(2.0**-power for power in range(1, _HALVINGS))):
        value = share * wanted if name == "rate" else float(int(share * wanted))
        if value < (0.01 if name == "rate" else 1.0):
            break
        less = msgspec.structs.replace(requests, **{name: value})
        if _search(replace(demand, requests=less)).quick:
            told = f"--serve {value:g}"
            if name == "rate":
                told = f'--rate "{_down(value)} requests/s"'
            return f"{told} works on {demand.fleet.name}"
    for fleet in demand.larger:
        if _search(replace(demand, fleet=fleet)).quick:
            return f"--machine {fleet.name} works"
    return "later limits, shorter requests, a smaller model, or other devices"


def _down(value: float, digits: int = 2) -> str:
    """To so many digits, never more than the value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return f"{math.floor(value / unit) * unit:.6g}"
