"""Ways to serve: how replicas lie on a fleet, and what comes of each under its load."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from narrows.plan.fleet import constants, latency
from narrows.plan.fleet.energy import COMPUTING, MOVING, WAITING, watts
from narrows.plan.fleet.passes import (
    Pass,
    Prompt,
    Replica,
    Tokens,
    decode_pass,
    prefill_pass,
    seen,
)
from narrows.plan.fleet.serving import Apart, Load, Served, Speculation, serve
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.service import (
    EngineName,
    Guesses,
    Held,
    Limits,
    Placement,
    Requests,
    Serving,
    Usage,
)

# Bits of a weight, its scale included, and of a key or value that may go with it. Narrower ones
# cost quality, so the widest that will do are taken.
_BITS = {16.0: (16.0, 8.0), 8.0: (16.0, 8.0), 4.5: (16.0, 8.0, 4.5)}
# Of a fleet's replicas, those that may compute nothing but prompts.
_APART = (0.25, 0.5)
_HALVINGS = 10


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served; `smaller` and `larger` fleets of the same devices are set beside it,
    the larger looked at where this one will not do.
    """

    name: str
    model: ModelSpec
    fleet: Fleet
    requests: Requests
    limits: Limits = Limits()
    guesses: Guesses | None = None
    draft: ModelSpec | None = None
    weight_bits: float | None = None
    engine: EngineName = "vllm"
    smaller: Fleet | None = None
    larger: tuple[Fleet, ...] = ()


class TooMany(Exception):
    """More requests a second come than a layout can answer."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All ways that were looked at: those that will do, and the nearest of those that will not."""

    quick: list[Serving]
    slow: list[Serving]
    tight: list[Serving]
    most: float


def search(demand: Demand, bits: tuple[float, float] | None = None) -> Found:
    """All ways, or those of so many `bits` of a weight and of a key or value."""
    quick, slow, tight = list[Serving](), list[Serving](), list[Serving]()
    work, most = Work.of(demand.model, demand.requests.prompt), 0.0
    for placed in placements(demand):
        if bits is not None and bits != (placed.weight_bits, placed.cache_bits):
            continue
        try:
            way = way_of(work, placed, demand)
        except TooMany as refused:
            most = max(most, refused.most)
            continue
        if way.room < placed.replicas:
            tight.append(way)
        else:
            (quick if demand.limits.kept(way) else slow).append(way)
    return Found(quick=quick, slow=slow, tight=tight, most=most)


def worth(way: Serving) -> tuple[float, ...]:
    """Room for all first, then the widest weights and keys, then most tokens; what answers a rate
    answers as many tokens whatever the way, to a hundredth: then the soonest.
    """
    placed = way.placement
    tokens = round(math.log(way.tokens_per_s), 2)
    return (float(way.room < way.concurrency), -placed.weight_bits, -placed.cache_bits, -tokens,
            way.per_token.mean)  # fmt: skip


def placements(demand: Demand) -> Iterator[Placement]:
    """Every way to lie on all devices, with every width of weights and keys."""
    fleet, model = demand.fleet, demand.model
    narrowest = constants.ENGINES[demand.engine].cache_bits
    for weights, caches in _BITS.items():
        if demand.weight_bits not in (None, weights) or (weights > 8.0 and not fleet.floating):
            continue
        tensor = 1
        while tensor <= fleet.devices:
            sets, rest = divmod(fleet.devices, tensor)
            # Experts go with attention that each rank does for its own requests.
            groups = {1, tensor} if model.experts else {1}
            if not rest and model.heads % tensor == 0:
                for apart in sorted({0, *(int(share * sets) for share in _APART)}):
                    for cache in (bits for bits in caches if bits >= narrowest):
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
        answer=float(requests.answer), shared=float(requests.shared),
        chunk=requests.chunk or constants.ENGINES[demand.engine].chunk,
        apart=apart, speculation=speculation, engine=demand.engine,
    )  # fmt: skip


def way_of(work: Work, placed: Placement, demand: Demand) -> Serving:
    """What comes of one placement; raises TooMany where it can't answer as many as come."""
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
                  runtime=constants.ENGINES[load.engine].runtime),
        usage=_usage(placed, load, answer, (work, fleet), tokens),
    )  # fmt: skip


def _stay(answer: Served, load: Load) -> float:
    """Seconds from a request to the end of its answer; no fewer than the prompts of all take that
    are computed meanwhile, one after another.
    """
    alone = answer.first_token + load.further * answer.per_token
    return max(alone, load.concurrency * answer.service)


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
        raise TooMany(most * placed.replicas)
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
        (own * longer * load.further + joined) / load.answer
        for own, joined in zip(step, prompt, strict=True)
    )
    price = float(fleet.price.value) * fleet.devices / 3600.0 if fleet.price else None
    energy = None
    if fleet.power_full is not None:
        idle, full = watts(fleet, 0.0), watts(fleet, 1.0)
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
