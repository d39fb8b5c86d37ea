"""How a model is served, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from narrows.plan.fleet import here
from narrows.plan.words import devices
from narrows.spec.plan import Doubling
from narrows.spec.service import (
    ENGINE_NAMES,
    Changed,
    Loss,
    Placement,
    Quantiles,
    Requests,
    Service,
    Serving,
)
from narrows.spec.units import Bytes, Seconds

_LEAST_SAVING = 0.01


def text(found: Service) -> str:
    """The answer for the terminal."""
    return "\n".join(_lines(found))


def _basis(found: Service) -> str:
    placed = found.best.placement
    machine = here.measured(
        here.Served(found.fleet, found.model, placed.weight_bits, ranks=placed.tensor)
    )
    if machine is not None:
        return f"steps measured here, {machine.probed_at[:10]}; queues fitted to servers"
    return "datasheet figures; constants fitted to published servers"


def _lines(found: Service) -> Iterator[str]:
    fleet, best = found.fleet, found.best
    yield f"{found.model_name} served by {devices(fleet)}"
    yield f"  engine   {ENGINE_NAMES[found.engine]}"
    yield f"  load     {_load(found.requests, best)}"
    if found.guesses:
        guesses = found.guesses
        by = f" by {guesses.draft}" if guesses.draft else ""
        yield (f"  guesses  {guesses.ahead} tokens ahead{by}, {guesses.accept:.0%} of them right: "
               f"{guesses.tokens:.2f} a step")  # fmt: skip
    yield f"  layout   {_said(best)}"
    yield ""
    yield f"predicted ({_basis(found)})"
    yield f"  {'':22}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}"
    yield f"  {'first token':22}{_quantiles(best.first_token)}"
    yield f"  {'each token more':22}{_quantiles(best.per_token)}"
    yield f"  while a prompt is computed, {Seconds(best.pause_s).text()} pass between two tokens"
    yield f"  rate     {_rate(best)} tokens/s out, {_busy(best)}"
    held = best.held
    yield (
        f"  memory   {Bytes(held.total).text()} of {Bytes(found.memory_limit).text()} on each "
        f"device: weights {Bytes(held.weights).text()}, cache {Bytes(held.cache).text()}, "
        f"runtime {Bytes(held.runtime).text()}"
    )
    yield f"  room     {_room(best)}"
    yield from _cost(best)
    yield ""
    yield from _doubling("a decode step", found.doubling_decode)
    yield from _doubling("a prompt", found.doubling_prefill)
    if found.doubling_decode or found.doubling_prefill:
        yield ""
    yield f"{'one change':40}{'p90 first':>11}{'p90 each':>11}{'tokens/s':>11}"
    yield from (_change(each, best.placement) for each in found.changes)
    if found.others:
        yield ""
        yield f"{'other ways':64}{'p90 first':>11}{'p90 each':>11}{'tokens/s':>11}"
    for way in found.others:
        first, each = Seconds(way.first_token.p90).text(), Seconds(way.per_token.p90).text()
        yield f"  {_said(way):62}{first:>11}{each:>11}{_rate(way):>11}"
        yield f"    {_loss(found.loses(way))}"


def _rate(way: Serving) -> str:
    rate = way.tokens_per_s
    return f"{rate:,.0f}" if rate >= 10.0 else f"{rate:.2g}"


def _change(each: Changed, mine: Placement) -> str:
    way = each.way
    if way is None:
        most = f"saturated: {each.most or 0.0:.3g} requests/s at most"
        return f"  {each.name:38}{'does not fit' if each.outcome == 'full' else most:>33}"
    first, more = Seconds(way.first_token.p90).text(), Seconds(way.per_token.p90).text()
    told = f"  {each.name:38}{first:>11}{more:>11}{_rate(way):>11}"
    if each.searched and way.placement.weight_bits != mine.weight_bits:
        told += f"  {_bits(way.placement.weight_bits)}-bit weights"
    return told + ("  too late" if each.outcome == "late" else "")


def _loss(loss: Loss) -> str:
    if loss.reason in ("fewer tokens", "slower tokens"):
        return f"{loss.reason}: {loss.times:.2f} times"
    if loss.reason in ("first token too late", "tokens too slow", "too little room"):
        return f"{loss.reason}: {loss.times:.3g} times the limit"
    return loss.reason


def _load(requests: Requests, best: Serving) -> str:
    several = "s" if best.concurrency != 1.0 else ""
    arriving = f"{best.concurrency:,.0f} request{several} at a time"
    if requests.rate is not None:
        arriving = f"{requests.rate:g} requests/s, {best.concurrency:.3g} at a time"
    told = f"{arriving}, {requests.prompt} tokens in and {requests.answer} out"
    if requests.shared:
        told += f", the first {requests.shared} shared"
    return told + (f", prompts in chunks of {requests.chunk}" if requests.chunk else "")


def _said(way: Serving) -> str:
    placed = way.placement
    copies = f"{placed.replicas} replicas" if placed.replicas > 1 else "one replica"
    told = f"{copies} of {placed.tensor}"
    if placed.groups > 1:
        told += ", attention by request"
    if placed.apart:
        told += f" + {placed.apart} for prompts"
    return f"{told}; {_bits(placed.weight_bits)}-bit weights, {_bits(placed.cache_bits)}-bit cache"


def _bits(bits: float) -> str:
    return "4" if bits == 4.5 else f"{bits:g}"


def _quantiles(found: Quantiles) -> str:
    return "".join(
        f"{Seconds(value).text():>10}" for value in (found.mean, found.p50, found.p90, found.p99)
    )


def _busy(best: Serving) -> str:
    usage = best.usage
    return f"{usage.prefilling:.0%} of the time with a prompt, {usage.computing:.0%} in products"


def _room(best: Serving) -> str:
    if best.room < best.concurrency:
        return (
            f"{best.room:,.0f} requests' keys and values fit: the others wait, or are preempted "
            "and computed again"
        )
    return f"{best.room:,.0f} requests' keys and values fit at a time"


def _cost(best: Serving) -> Iterator[str]:
    told = []
    if best.usage.joules_per_token is not None:
        told.append(f"{best.usage.joules_per_token:.3g} J for a token out")
    if best.usage.dollars_per_million_tokens is not None:
        told.append(f"${best.usage.dollars_per_million_tokens:.3g} for a million")
    if told:
        yield f"  cost     {', '.join(told)}"


def _doubling(what: str, rows: tuple[Doubling, ...]) -> Iterator[str]:
    if not rows:
        return
    yield f"{what}: {rows[0].resource} holds it back; it takes with twice the"
    for row in rows:
        if row.saving >= _LEAST_SAVING:
            yield f"  {row.resource:34}{-row.saving:>8.0%}"
