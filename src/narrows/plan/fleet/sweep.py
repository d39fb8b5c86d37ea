"""What a served model gives under other loads, and what one change of how it is served is worth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from msgspec.structs import replace

from narrows.plan.fleet.serving import Speculation
from narrows.plan.fleet.ways import Demand, TooMany, search, way_of, worth
from narrows.plan.fleet.work import Work
from narrows.spec.service import Changed, Guesses, Placement, Requests, Serving, Swept

_CHUNK = 512
_ACCEPT, _AHEAD = 0.7, 4
"""Of a draft's guesses, those that are right: 0.6 to 0.8 in arXiv:2211.17192, table 3."""
_EACH_MOST = 8192
"""Requests on a replica, where there is room for even more."""


def swept(work: Work, best: Serving, demand: Demand) -> Iterator[Swept]:
    """Replicas of each width that hold the model, all devices in use, each as wide as the best;
    with one request on each, then twice as many, at last as many as fit.
    """
    mine, devices = best.placement, demand.fleet.devices
    tensor = 1
    while tensor <= devices:
        sets, rest = divmod(devices, tensor)
        if not rest and demand.model.heads % tensor == 0:
            placed = replace(
                mine, replicas=sets, tensor=tensor, apart=0,
                groups=tensor if mine.groups > 1 else 1,
            )  # fmt: skip
            yield from _loads(work, placed, demand)
        tensor *= 2


def _loads(work: Work, placed: Placement, demand: Demand) -> Iterator[Swept]:
    percent, each = demand.limits.percent, 1
    while True:
        concurrency = float(placed.replicas * each)
        requests = replace(demand.requests, rate=None, concurrency=concurrency)
        way = way_of(work, placed, replace(demand, requests=requests))
        room = int(way.room / placed.replicas)
        if room < 1:
            return
        yield Swept(
            placement=placed, concurrency=concurrency, tokens_per_s=way.tokens_per_s,
            first_token_s=way.first_token.at(percent), per_token_s=way.per_token.at(percent),
        )  # fmt: skip
        if each >= min(room, _EACH_MOST):
            return
        each = min(2 * each, room, _EACH_MOST)


def changes(work: Work, best: Serving, demand: Demand) -> Iterator[Changed]:
    """Of the layout, then of how requests are answered, then of how many come and to what."""
    for name, placed in _placed(best.placement, demand):
        yield _changed(name, work, placed, demand)
    for name, other in _answered(demand):
        yield _changed(name, work, best.placement, other)
    for name, other in _asked(demand):
        yield _searched(name, best, other)


def _placed(mine: Placement, demand: Demand) -> Iterator[tuple[str, Placement]]:
    for bits, told in ((16.0, "16"), (8.0, "8"), (4.5, "4")):
        if bits != mine.weight_bits and (bits <= 8.0 or demand.fleet.floating):
            yield f"weights of {told} bits", replace(mine, weight_bits=bits)
    other = 8.0 if mine.cache_bits == 16.0 else 16.0
    yield f"cache of {other:g} bits", replace(mine, cache_bits=other)
    if demand.model.experts is not None and mine.tensor > 1:
        groups = 1 if mine.groups > 1 else mine.tensor
        name = "attention by request" if groups > 1 else "attention over all ranks"
        yield name, replace(mine, groups=groups)
    sets = mine.replicas + mine.apart
    if mine.apart:
        together = replace(mine, replicas=sets, apart=0)
        yield "prompts beside the answers", together
    elif sets > 1:
        apart = max(1, sets // 4)
        other_sets = replace(mine, replicas=sets - apart, apart=apart)
        yield "prompts on devices of their own", other_sets


def _answered(demand: Demand) -> Iterator[tuple[str, Demand]]:
    requests = demand.requests

    def asked(**changed: int | None) -> Demand:
        return replace(demand, requests=replace(requests, **changed))

    if requests.chunk is not None:
        yield "prompts whole", asked(chunk=None)
    elif requests.prompt - requests.shared > _CHUNK:
        yield "prompts in chunks of 512", asked(chunk=_CHUNK)
    if requests.shared:
        yield "no tokens kept of a prompt", asked(shared=0)
    elif requests.prompt > 1:
        yield "half of each prompt kept", asked(shared=requests.prompt // 2)
    if demand.guesses is not None:
        yield "no guesses", replace(demand, guesses=None, draft=None)
    else:
        tokens = Speculation(accept=_ACCEPT, ahead=_AHEAD).tokens
        guesses = Guesses(accept=_ACCEPT, ahead=_AHEAD, tokens=tokens)
        yield "4 tokens guessed ahead, 70% right", replace(demand, guesses=guesses)


def _asked(demand: Demand) -> Iterator[tuple[str, Demand]]:
    for name, times in (("half the requests", 0.5), ("twice the requests", 2.0)):
        requests = _scaled(demand.requests, times)
        if requests is not None:
            yield name, replace(demand, requests=requests)
    if demand.smaller is not None:
        yield "half the devices", replace(demand, fleet=demand.smaller)
    if demand.larger:
        yield "twice the devices", replace(demand, fleet=demand.larger[0])


def _scaled(requests: Requests, times: float) -> Requests | None:
    """As many times what comes; None where that is less than one at a time."""
    if requests.rate is not None:
        return replace(requests, rate=times * requests.rate)
    assert requests.concurrency is not None
    several = times * requests.concurrency
    return replace(requests, concurrency=several) if several >= 1.0 else None


def _changed(name: str, work: Work, placed: Placement, demand: Demand) -> Changed:
    try:
        way = way_of(work, placed, demand)
    except TooMany as refused:
        return Changed(name=name, outcome="saturated", most=refused.most)
    if way.room < placed.replicas:
        return Changed(name=name, outcome="full")
    return Changed(name=name, outcome="kept" if demand.limits.kept(way) else "late", way=way)


def _searched(name: str, best: Serving, demand: Demand) -> Changed:
    """At its best with as many bits as now; with others only where these will not do."""
    placed = best.placement
    found = search(demand, bits=(placed.weight_bits, placed.cache_bits))
    if not found.quick:
        found = search(demand)
    told = partial(Changed, name=name, searched=True)
    if found.quick:
        return told(outcome="kept", way=min(found.quick, key=worth))
    if found.slow:
        return told(outcome="late", way=min(found.slow, key=demand.limits.missed))
    return told(outcome="saturated", most=found.most) if found.most else told(outcome="full")
