"""A model, a fleet and its requests → the replicas that answer most within the limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from narrows.plan.fleet import constants
from narrows.plan.fleet.evidence import facts, served
from narrows.plan.fleet.forecast import doubled
from narrows.plan.fleet.service_rows import decode_rows, prefill_rows
from narrows.plan.fleet.serving import serve
from narrows.plan.fleet.sweep import changes, swept
from narrows.plan.fleet.ways import (
    Demand,
    Found,
    load_of,
    replica_of,
    search,
    worth,
)
from narrows.plan.fleet.work import Work
from narrows.spec.errors import DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.ledger import Row
from narrows.spec.plan import Doubling
from narrows.spec.service import Service
from narrows.spec.units import Bytes, Seconds

_OTHERS = 8
_LATE = 3
_FORMATS = {16.0: "bf16", 8.0: "fp8", 4.5: "fp4"}
_HALVINGS = 10


def service(demand: Demand) -> Service:
    """Raises DoesNotFit where no replica fits, none is quick enough, or too many requests come."""
    found = search(demand)
    if not found.quick:
        raise _refusal(demand, found)
    order = sorted(found.quick, key=worth)
    late = sorted(found.slow, key=demand.limits.missed)
    best, work = order[0], Work.of(demand.model, demand.requests.prompt)
    replica, load = replica_of(best.placement), load_of(demand, best.placement, best.concurrency)
    running = serve(work, replica, load, demand.fleet).running
    prefill = partial(prefill_rows, work, replica, load)
    decode = partial(decode_rows, work, replica, load, running)
    return Service(
        model_name=demand.name, model=demand.model, fleet=demand.fleet, requests=demand.requests,
        limits=demand.limits, memory_limit=limit_bytes(demand), best=best,
        engine=demand.engine,
        prefill=prefill(demand.fleet),
        decode=decode(demand.fleet),
        sweep=tuple(swept(work, best, demand)),
        others=(*order[1 : _OTHERS + 1], *late[:_LATE]),
        changes=tuple(changes(work, best, demand)), guesses=demand.guesses,
        doubling_decode=_doubling(decode, demand.fleet),
        doubling_prefill=_doubling(prefill, demand.fleet),
        answers=tuple(served(demand.fleet, best)),
        facts=tuple(facts(demand.fleet, _FORMATS[best.placement.weight_bits])),
    )  # fmt: skip


def limit_bytes(demand: Demand) -> float:
    """Of a device's memory, what the engine may use."""
    whole = constants.ENGINES[demand.engine].rest is not None
    share = 1.0 if whole else constants.SERVING_HELD
    return share * float(demand.fleet.memory_capacity.value)


def _doubling(rows: Callable[[Fleet], tuple[Row, ...]], fleet: Fleet) -> tuple[Doubling, ...]:
    """Seconds of the pass that has those `rows`, with twice of each resource; most useful first.
    None of a pass whose curves were measured: they do not say what each resource has of it.
    """

    def seconds(on: Fleet) -> float:
        return sum(row.seconds for row in rows(on))

    now = seconds(fleet)
    starting = sum(row.seconds for row in rows(fleet) if row.kind == "launch")
    found = {name: seconds(changed) for name, changed in doubled(fleet) if "latency" not in name}
    if all(value == now for value in found.values()):
        return ()
    found["kernels' starts a second"] = now - starting / 2.0
    told = (
        Doubling(resource=name, step_seconds=value, saving=1.0 - value / now)
        for name, value in found.items()
    )
    return tuple(sorted(told, key=lambda each: -each.saving))


def _refusal(demand: Demand, found: Found) -> DoesNotFit:
    """Why nothing will do, and the smallest change after which something does."""
    hint = _change(demand, found.most)
    if found.slow:
        each = min(found.slow, key=demand.limits.missed)
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
    room = limit_bytes(demand)
    return DoesNotFit(
        f"the model does not fit: {Bytes(least.held.weights + least.held.runtime).text()} of "
        f"weights and runtime on each device with {least.placement.weight_bits:g} bits a weight "
        f"over {least.placement.tensor}, and one request's keys and values, of "
        f"{Bytes(room).text()} free",
        hint=hint,
    )


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
        less = replace(requests, **{name: value})
        if search(replace(demand, requests=less)).quick:
            told = f"--serve {value:g}"
            if name == "rate":
                told = f'--rate "{_down(value)} requests/s"'
            return f"{told} works on {demand.fleet.name}"
    for fleet in demand.larger:
        if search(replace(demand, fleet=fleet)).quick:
            return f"--machine {fleet.name} works"
    return "later limits, shorter requests, a smaller model, or other devices"


def _down(value: float, digits: int = 2) -> str:
    """To so many digits, never more than the value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return f"{math.floor(value / unit) * unit:.6g}"
