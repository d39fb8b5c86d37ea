"""What a forecast rests on and what it says: each number with how it is known, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from narrows.plan.words import dollars
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Bend, Dial, Evidence, Goodput, Run
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Basis, Fact
from narrows.spec.service import Serving
from narrows.spec.units import Bytes, Grams, Joules, Seconds, Watts

_FAILURES = (
    "419 interruptions in 54 days of 16,384 H100s (arXiv:2407.21783), taken to hold here; "
    "checkpoints of 2 GB/s a node, restarts of 10 minutes"
)
_MEMORY = "formulas of arXiv:2205.05198; allocator, runtime and workspace from published peaks"
_SERVERS = "roofline; constants fitted to published servers, benchmarks/fit_served.py"
_HELD = "weights and keys as they are stored; runtime as engines of published servers take"
_POWER = "idle to full power by what each part keeps busy (arXiv:2308.12908)"


def facts(fleet: Fleet, precision: str) -> Iterator[Evidence]:
    """What is known of the fleet, of all formats only those that the forecast computes in."""
    wide = "bf16" if "bf16" in fleet.peak else "fp16"
    known: list[tuple[str, Fact[Any] | None]] = [
        (f"peak {name}", fleet.peak[name])
        for name in dict.fromkeys((precision, wide))
        if name in fleet.peak
    ]
    known += [("memory", fleet.memory_capacity), ("memory bandwidth", fleet.memory_bandwidth)]
    for domain in fleet.domains:
        known += [(domain.name, domain.bandwidth), (f"{domain.name}, latency", domain.latency)]
    known.append(("price of a device", fleet.price))
    if fleet.power_full is not None:
        known += [("power idle", fleet.power_idle), ("power full", fleet.power_full)]
        known.append(("carbon of electricity", fleet.carbon))
    for name, fact in known:
        if fact is not None:
            yield _of(name, fact.value.text(4), fact)
    if fleet.power_full is not None:
        yield _of("power usage effectiveness", f"{fleet.overhead.value:g}", fleet.overhead)
    reach = fleet.reach
    yield Evidence(
        name="reach", value=f"{reach.matmul:.0%} of the peak in large products", basis=reach.basis,
        source=reach.source,
    )  # fmt: skip


def answers(
    fleet: Fleet, predicted: Ledger, good: Goodput, run: Run | None, dial: Dial | None,
    bend: Bend | None,
) -> Iterator[Evidence]:  # fmt: skip
    """What the forecast says, each as well known as the least of what it was made from."""
    reach = fleet.reach
    yield Evidence(
        name="step", value=Seconds(predicted.step_seconds).text(),
        basis="estimated" if reach.basis == "measured" else reach.basis,
        source=f"roofline with what devices reach: {reach.source}",
    )  # fmt: skip
    peak = Bytes(predicted.memory.peak).text()
    yield Evidence(name="memory of a device", value=peak, basis="fitted", source=_MEMORY)
    if fleet.power_full is not None:
        watts = Watts(predicted.watts).text()
        yield Evidence(name="power", value=watts, basis="estimated", source=_POWER)
    yield Evidence(name="goodput", value=f"{good.share:.1%}", basis="assumed", source=_FAILURES)
    if run is not None:
        yield from _whole(fleet, run)
    if dial is not None and dial.loss is not None:
        yield Evidence(
            name="loss", value=f"{dial.loss:.3g}", basis="fitted",
            source="scaling law of web text (arXiv:2404.10102), of its own tokenizer",
        )  # fmt: skip
    if bend is not None and bend.devices is not None:
        yield Evidence(
            name="bend of T = a n/p + b p", value=f"{bend.devices:,.0f} devices", basis="fitted",
            source=f"to the steps of this forecast, within {bend.error:.1%}",
        )  # fmt: skip


def served(fleet: Fleet, best: Serving) -> Iterator[Evidence]:
    """What is said of a model that is served."""
    here = fleet.machine is not None
    basis: Basis = "estimated" if here else "fitted"
    source = "steps measured here; queues fitted to servers" if here else _SERVERS
    for name, value in (
        ("first token", Seconds(best.first_token.mean).text()),
        ("each token more", Seconds(best.per_token.mean).text()),
        (
            "tokens a second",
            f"{best.tokens_per_s:,.0f}"
            if best.tokens_per_s >= 10.0
            else f"{best.tokens_per_s:.2g}",
        ),
    ):
        yield Evidence(name=name, value=value, basis=basis, source=source)
    held = Bytes(best.held.total).text()
    yield Evidence(name="memory of a device", value=held, basis="estimated", source=_HELD)
    if best.usage.joules_per_token is not None:
        value = f"{best.usage.joules_per_token:.3g} J"
        yield Evidence(name="energy of a token", value=value, basis="estimated", source=_POWER)
    if best.usage.dollars_per_million_tokens is not None:
        yield Evidence(
            name="money for a million tokens",
            value=dollars(best.usage.dollars_per_million_tokens), basis="estimated",
            source="tokens a second at the price of the devices",
        )  # fmt: skip


def host(fleet: Fleet, wanted: float) -> Iterator[Evidence]:
    """The memory that an optimizer on the host takes of a node, and what the node has."""
    known = fleet.host_memory
    has = "is not known" if known is None else f"is {known.value.text()} ({known.source})"
    yield Evidence(
        name="memory of a host", value=Bytes(wanted).text(), basis="estimated",
        source=f"states, gradients and 16-bit weights of {fleet.devices_per_node} devices; what a "
        f"node has {has}",
    )  # fmt: skip


def _whole(fleet: Fleet, run: Run) -> Iterator[Evidence]:
    time = Seconds(run.seconds).text()
    yield Evidence(name="whole training", value=time, basis="estimated", source="step and goodput")
    if run.joules is not None:
        energy = Joules(run.joules).text()
        yield Evidence(name="energy", value=energy, basis="estimated", source=_POWER)
    if run.dollars is not None:
        source = "whole training at the price of its devices"
        money = dollars(run.dollars)
        yield Evidence(name="money", value=money, basis="estimated", source=source)
    if run.carbon_grams is not None:
        yield Evidence(
            name="carbon", value=Grams(run.carbon_grams).text(), basis=fleet.carbon.basis,
            source="energy, what the building adds, and the carbon of its electricity",
        )  # fmt: skip


def _of(name: str, value: str, fact: Fact[Any]) -> Evidence:
    return Evidence(name=name, value=value, basis=fact.basis, source=fact.source)
