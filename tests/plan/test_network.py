from __future__ import annotations

from typing import Any

import msgspec
import pytest

from narrows.plan.cost import Scales
from narrows.plan.exchange import Message, sent
from narrows.plan.network import Network
from narrows.spec.layout import Layout
from narrows.spec.machine import Collective, CollectivePoint, Link, Machine
from narrows.spec.units import Bytes, BytesPerSecond, Seconds

from .conftest import fact

LAYOUT = Layout(
    micro_batch=2, accumulation=2, precision="fp32", recompute="none", compile=False,
    kernels="torch", threads=1, loss_chunk=64, data=2,
)  # fmt: skip


def link_of(ranks: int = 2, hosts: int = 1, rate: float = 1e9, wait: float = 1e-4) -> Link:
    """Exact lines: what a rank sends around a ring at a rate, behind a wait."""
    kinds: tuple[Collective, ...] = ("all_reduce", "all_gather", "reduce_scatter", "send")
    return Link(
        name=f"{ranks} ranks on {hosts}", backend="gloo", ranks=ranks, hosts=hosts,
        bandwidth=fact(BytesPerSecond(rate)), latency=fact(Seconds(wait)),
        together=fact(0.9 * hosts),
        points=tuple(
            CollectivePoint(
                operation=kind, ranks=ranks, message=Bytes(message),
                seconds=wait + sent(kind, message, ranks) / rate,
            )
            for kind in kinds for message in (1, 1000, 1_000_000)
        ),
    )  # fmt: skip


def message(kind: Collective, size: float, **given: Any) -> Message:
    usual: dict[str, Any] = {"axis": "data", "phase": "backward", "ranks": 2, "calls": 1.0}
    return Message(kind=kind, message=size, **{**usual, **given})


def network(machine: Machine, *links: Link, scales: Scales | None = None, **given: Any) -> Network:
    layout = msgspec.structs.replace(LAYOUT, **given)
    known = msgspec.structs.replace(machine, links=links)
    return Network.of(layout, known, scales or Scales())


def test_between_measured_messages_lies_a_line_and_beyond_them_the_last_one_s_rate(
    machine: Machine,
) -> None:
    found = network(machine, link_of())
    for size in (500.0, 250_000.0):
        expected = 1e-4 + size / 1e9
        assert found.taken(message("all_reduce", size)).seconds == pytest.approx(expected, rel=1e-3)
    far = found.taken(message("all_reduce", 1e8)).seconds
    assert far == pytest.approx(100 * (1e-4 + 1e6 / 1e9))


def test_other_groups_go_by_what_each_sends_around_a_ring(machine: Machine) -> None:
    found = network(machine, link_of(), data=4)
    taken = found.taken(message("all_reduce", 1e6, ranks=4)).seconds
    assert taken == pytest.approx(1.5 * (1e-4 + 1e6 / 1e9))
    assert "estimated from 2 ranks on 1" in found.why()
    assert "narrows probe --link --processes 4" in found.why()
    assert (found.hosts, found.together) == (1, 1.0)


def test_a_group_within_a_host_goes_by_the_link_of_one_host(machine: Machine) -> None:
    fast, slow = link_of(rate=1e9), link_of(4, 2, rate=1e7)
    found = network(machine, fast, slow, data=2, tensor=2)
    assert (found.hosts, found.together, found.known) == (2, 1.8, True)
    within = found.taken(message("all_gather", 1e5, axis="tensor")).seconds
    across = found.taken(message("all_gather", 1e5, axis="data")).seconds
    assert within == pytest.approx(1e-4 + 1e5 / 1e9, rel=1e-3)
    assert across == pytest.approx(1e-4 + 1e5 / 1e7, rel=1e-3)
    assert found.why().startswith("measured between 4 ranks on 2")


def test_what_was_not_measured_stands_beside_what_was(machine: Machine) -> None:
    found = network(machine, link_of(), context=2, data=1)
    traded = found.taken(message("all_to_all", 1e5, axis="context")).seconds
    assert traded == pytest.approx(1e-4 + 0.5e5 / 1e9, rel=1e-3)
    assert found.taken(message("shift", 1e5, axis="context")).seconds > 0.0
    bare = msgspec.structs.replace(link_of(), points=())
    plain = network(machine, bare).taken(message("all_reduce", 1e6))
    assert plain.seconds == pytest.approx(1e-4 + 1e6 / 1e9)


def test_twice_the_bandwidth_or_half_the_latency_shorten_their_own_part(machine: Machine) -> None:
    plain = network(machine, link_of()).taken(message("send", 1e6))
    wide = network(machine, link_of(), scales=Scales(link_bandwidth=2.0)).taken(
        message("send", 1e6)
    )
    near = network(machine, link_of(), scales=Scales(link_latency=2.0)).taken(message("send", 1e6))
    assert wide == (plain.waiting, plain.moving / 2)
    assert near == (plain.waiting / 2, plain.moving)


def test_processes_are_at_work_as_long_as_without_a_wire(machine: Machine) -> None:
    fast, slow = link_of(rate=1e9), link_of(2, 2, rate=1e7)
    ring = message("send", 1e5)
    found = network(machine, fast, slow)
    assert found.busy(ring) == pytest.approx(1e-4 + 1e5 / 1e9, rel=1e-3)
    assert found.taken(ring).seconds > 50 * found.busy(ring)
    here = network(machine, fast)
    assert here.busy(ring) == here.taken(ring).seconds


def test_without_any_link_the_plan_says_that_nothing_is_counted(machine: Machine) -> None:
    found = network(machine)
    assert found.taken(message("all_reduce", 1e6)).seconds == 0.0
    assert "no link was measured, and nothing is counted for it" in found.why()


def test_what_was_disturbed_while_it_was_measured_is_left_out(machine: Machine) -> None:
    """A retransmission at one message says nothing of those around it."""
    clean = link_of()
    hit = tuple(
        msgspec.structs.replace(point, seconds=point.seconds + 0.3)
        if point.message in (1, 1000) and point.operation == "all_reduce" else point
        for point in clean.points
    )  # fmt: skip
    for size in (10.0, 1e3, 1e5):
        sent = message("all_reduce", size)
        found = network(machine, msgspec.structs.replace(clean, points=hit)).taken(sent).seconds
        assert found < 2e-3 and found < 12 * network(machine, clean).taken(sent).seconds
