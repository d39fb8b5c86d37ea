"""A model, a fleet and a load → the replicas that answer most within the latencies asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from narrows.plan.fleet import here
from narrows.plan.fleet.constants import RUNTIME_BYTES
from narrows.plan.fleet.search import MEMORY_SHARE
from narrows.plan.fleet.serving import Load, Replica, serve
from narrows.plan.fleet.work import Work
from narrows.spec.errors import DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.service import Service, Serving
from narrows.spec.units import Bytes, Seconds

# Of a weight, its scale included; narrower ones cost quality, so the widest that will do is taken.
_BITS = {16.0: "16-bit weights", 8.0: "8-bit weights", 4.5: "4-bit weights"}
_OTHERS = 8


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be served, and the latest that tokens may come; None: whenever."""

    name: str
    model: ModelSpec
    fleet: Fleet
    concurrency: int
    prompt: int
    answer: int
    weight_bits: float | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None


def service(demand: Demand) -> Service:
    """Raises DoesNotFit where no replica fits, or none is as quick as asked for."""
    limit = MEMORY_SHARE * float(demand.fleet.memory_capacity.value)
    ways = list(_ways(demand))
    fitting = [way for way in ways if way.memory_bytes <= limit]
    if not fitting:
        least = min(ways, key=lambda way: way.memory_bytes)
        raise DoesNotFit(
            f"the model does not fit: {least.memory_bytes / 1e9:.1f} GB on each device with "
            f"{least.weight_bits:g} bits a weight over {least.tensor}, {limit / 1e9:.1f} GB free",
            hint="more devices (--machine 2x...), fewer requests at a time, or shorter ones",
        )
    quick = [way for way in fitting if _in_time(way, demand)]
    if not quick:
        nearest = min(fitting, key=lambda way: way.per_token_s)
        raise DoesNotFit(
            f"no layout is as quick as asked for: the quickest needs "
            f"{Seconds(nearest.first_token_s).text()} to the first token and "
            f"{Seconds(nearest.per_token_s).text()} for each more",
            hint="fewer requests at a time, more devices, or fewer bits a weight",
        )
    order = sorted(quick, key=lambda way: (-way.weight_bits, -way.tokens_per_s))
    return Service(
        model_name=demand.name, model=demand.model, fleet=demand.fleet,
        concurrency=demand.concurrency, prompt=demand.prompt, answer=demand.answer,
        memory_limit=limit, best=order[0], others=tuple(order[1 : _OTHERS + 1]),
    )  # fmt: skip


def text(found: Service) -> str:
    """The answer for the terminal."""
    fleet, best = found.fleet, found.best
    lines = [
        f"{found.model_name} served by {fleet.devices} x {fleet.accelerator}",
        f"  load     {found.concurrency} requests at a time, {found.prompt} tokens in and "
        f"{found.answer} out",
        f"  layout   {_said(best)}",
        "",
        f"predicted ({_basis(found)})",
        f"  first token {Seconds(best.first_token_s).text()}, then one each "
        f"{Seconds(best.per_token_s).text()}; {best.tokens_per_s:,.0f} tokens/s in all",
        f"  memory   {Bytes(best.memory_bytes).text()} of {Bytes(found.memory_limit).text()} on "
        "each device",
    ]
    if best.dollars_per_million_tokens is not None:
        lines.append(f"  money    ${best.dollars_per_million_tokens:.3g} for a million tokens out")
    if found.others:
        lines += ["", "other ways"]
    for way in found.others:
        lines.append(
            f"  {_said(way):40}{Seconds(way.first_token_s).text():>10}"
            f"{Seconds(way.per_token_s).text():>10}{way.tokens_per_s:12,.0f} tokens/s"
        )
    return "\n".join(lines)


def _basis(found: Service) -> str:
    measured = here.measured(found.fleet, found.model, found.best.weight_bits, found.best.tensor)
    if measured is not None:
        return f"curves measured here, {measured.probed_at[:10]}; queues fitted to servers"
    return "datasheet figures, constants fitted to published servers"


def _said(way: Serving) -> str:
    copies = f"{way.replicas} replicas" if way.replicas > 1 else "one replica"
    return f"{copies} of {way.tensor}, {_BITS.get(way.weight_bits, f'{way.weight_bits:g} bits')}"


def _in_time(way: Serving, demand: Demand) -> bool:
    first, each = demand.first_token_s, demand.per_token_s
    return (first is None or way.first_token_s <= first) and (
        each is None or way.per_token_s <= each
    )


def _ways(demand: Demand) -> Iterator[Serving]:
    work, fleet = Work.of(demand.model, max(1, demand.prompt)), demand.fleet
    tensor = 1
    while tensor <= fleet.devices:
        replicas = fleet.devices // tensor
        if demand.model.heads % tensor == 0 and replicas * tensor == fleet.devices:
            for bits in [demand.weight_bits] if demand.weight_bits else _BITS:
                yield _way(work, demand, replicas, tensor, bits)
        tensor *= 2


def _way(work: Work, demand: Demand, replicas: int, tensor: int, bits: float) -> Serving:
    fleet = demand.fleet
    each = max(1.0, demand.concurrency / replicas)
    load = Load(concurrency=each, prompt=float(demand.prompt), answer=float(demand.answer))
    answer = serve(work, Replica(tensor=tensor, weight_bits=bits), load, fleet)
    rate = demand.concurrency / answer.per_token
    price = float(fleet.price.value) * fleet.devices / 3600.0 if fleet.price else None
    return Serving(
        replicas=replicas, tensor=tensor, weight_bits=bits, first_token_s=answer.first_token,
        per_token_s=answer.per_token, tokens_per_s=rate,
        memory_bytes=answer.weights_bytes + answer.cache_bytes + RUNTIME_BYTES,
        dollars_per_million_tokens=None if price is None else price / rate * 1e6,
    )  # fmt: skip
