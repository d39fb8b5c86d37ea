from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from narrows.hardware.accelerators import accelerator, accelerators
from narrows.hardware.fleet import fleet, fleet_here, fleet_of, ladder, reach, roomier
from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.machine import Machine

NAMES = [name for key, known in accelerators().items() for name in (key, *known.aliases)]


def domains(name: str) -> list[int]:
    return [domain.devices for domain in fleet(name).domains]


@pytest.mark.parametrize(
    ("name", "key", "devices", "per_node"),
    [
        ("h100-sxm", "h100-sxm", 1, 1),
        ("8xh100-sxm", "h100-sxm", 8, 8),
        ("8 x H100", "h100-sxm", 8, 8),
        ("16x8xh100-sxm", "h100-sxm", 128, 8),
        ("2X4XH100 SXM", "h100-sxm", 8, 4),
        ("12xh100-sxm", "h100-sxm", 12, 8),
        ("rtx-4090", "rtx-4090", 1, 1),
        ("3090 24GB", "rtx-3090", 1, 1),
        ("2x3090 24GB", "rtx-3090", 2, 2),
        ("72xgb300", "gb300-nvl72", 72, 4),
        ("7900 XTX", "rx-7900-xtx", 1, 1),
        ("4x7900 xtx", "rx-7900-xtx", 4, 4),
        ("16xrtx-3060", "rtx-3060", 16, 8),
        ("2x2x7900xtx", "rx-7900-xtx", 4, 2),
        ("1xm2-ultra", "m2-ultra", 1, 1),
    ],
)
def test_counts_and_names_as_people_write_them(
    name: str, key: str, devices: int, per_node: int
) -> None:
    found = fleet(name)
    assert found.accelerator == accelerators()[key].name and found.name == name
    assert (found.devices, found.devices_per_node) == (devices, per_node)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_counted(name: str) -> None:
    assert fleet(name).devices == 1
    assert fleet(f"2x{name}").accelerator == fleet(name).accelerator
    assert fleet(f"3x2x{name}").devices == 6


@pytest.mark.parametrize(
    ("name", "unknown", "near"),
    [
        ("h100-smx", "h100-smx", "h100-sxm"), ("8xh100-smx", "h100-smx", "h100-sxm"),
        ("2x8xrtx-4900", "rtx-4900", "rtx-4090"), ("8x", "", "use one of"), ("", "", "use one"),
    ],
)  # fmt: skip
def test_an_unknown_name_suggests_the_near_ones(name: str, unknown: str, near: str) -> None:
    with pytest.raises(BadInput, match=f'no accelerator "{unknown}" in') as caught:
        fleet(name)
    assert near in str(caught.value.hint)


@pytest.mark.parametrize("name", ["10000001xh100-sxm", "99999999999x8xh100-sxm"])
def test_more_devices_than_there_are_are_no_fleet(name: str) -> None:
    with pytest.raises(BadInput, match="devices") as caught:
        fleet(name)
    assert caught.value.hint == "at most 10,000,000 are planned for"


@pytest.mark.parametrize("name", ["0xh100-sxm", "0x8xh100-sxm", "8x0xh100-sxm"])
def test_no_devices_are_no_fleet(name: str) -> None:
    with pytest.raises(BadInput, match="has no devices"):
        fleet(name)


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("h100-sxm", [1]), ("8xh100-sxm", [8]), ("2xh100-sxm", [2]), ("128xh100-sxm", [8, 128]),
        # Nodes of four are joined by four.
        ("16x4xh100-sxm", [4, 64]), ("4x1xh100-sxm", [1, 4]),
        # A rack's switch joins nodes of four; a torus joins hosts.
        ("72xgb300", [72]), ("18x4xgb300", [72]), ("144xgb300", [72, 144]), ("256xtpu-v5e", [256]),
        # Without links of its own a card has the bus of its node.
        ("4xrtx-4090", [4]), ("2x4xrtx-4090", [4, 8]), ("8xh100-pcie", [2, 8]),
    ],
)  # fmt: skip
def test_domains_from_the_innermost(name: str, devices: list[int]) -> None:
    assert domains(name) == devices


def test_what_joins_them_is_the_catalogues() -> None:
    known, found = accelerators()["h100-sxm"], fleet("16x8xh100-sxm")
    assert known.link is not None and known.network is not None
    inner, outer = found.domains
    assert (inner.name, inner.bandwidth.value) == (known.link.name, known.link.bandwidth)
    assert (outer.name, outer.bandwidth.value) == (known.network.name, known.network.bandwidth)
    assert inner.bandwidth.value > outer.bandwidth.value
    assert inner.latency.value < outer.latency.value
    bus = fleet("4xrtx-4090").domains[0]
    assert (bus.name, bus.bandwidth.value) == ("PCIe", accelerators()["rtx-4090"].host_link)


def test_a_network_that_is_told_replaces_the_usual_one() -> None:
    known = accelerator("h100-sxm")
    told = fleet_of(known, 16, name="x", network=25e9).domains[-1].bandwidth
    assert (told.value, told.source) == (25e9, "as given")
    assert len(fleet_of(known, 8, name="x", network=25e9).domains) == 1


def test_without_any_network_one_is_assumed() -> None:
    bare = msgspec.structs.replace(accelerator("h100-sxm"), network=None)
    assert fleet_of(bare, 16, name="x").domains[-1].bandwidth.value == 12.5e9
    lonely = msgspec.structs.replace(bare, link=None, host_link=None)
    assert [d.devices for d in fleet_of(lonely, 8, name="x").domains] == [8]
    assert "assumed" in fleet_of(lonely, 8, name="x").domains[0].name


def test_what_is_assumed_says_so() -> None:
    gaming = fleet("8xrtx-3090")
    assert gaming.domains[-1].bandwidth.basis == "assumed"
    assert gaming.memory_capacity.basis == "datasheet"
    assert fleet("h100-sxm").reach.basis == "fitted"
    assert fleet("v100-sxm-16gb").reach.basis == "assumed"
    bare = msgspec.structs.replace(accelerator("h100-sxm"), network=None)
    assert fleet_of(bare, 16, name="x").domains[-1].bandwidth.basis == "assumed"


def test_facts_name_their_sources() -> None:
    known, found = accelerators()["h100-sxm"], fleet("h100-sxm")
    assert found.memory_capacity.value == known.memory_capacity
    assert found.memory_capacity.source == known.source_of.get("memory_capacity", known.source)
    assert {name: fact.value for name, fact in found.peak.items()} == {
        name: value
        for name in known.peak.__struct_fields__
        if (value := getattr(known.peak, name)) is not None
    }
    assert known.price is not None and found.price is not None
    assert found.price.value == known.price.value and known.price.date in found.price.source
    assert found.carbon.basis == found.overhead.basis == "assumed"
    assert found.carbon.value > 0 and found.overhead.value >= 1.0


def test_what_is_not_published_is_absent() -> None:
    bare = msgspec.structs.replace(
        accelerator("h100-sxm"), price=None, power_idle=None, power_full=None, host_link=None
    )
    found = fleet_of(bare, 8, name="x")
    assert found.price is found.power_idle is found.power_full is found.host_link is None


def test_reach_is_by_architecture_then_by_kind_then_the_default() -> None:
    known = accelerator("h100-sxm")
    strange = msgspec.structs.replace(known, name="strange", architecture="none", kind="fpga")
    default, by_kind = reach(strange), reach(msgspec.structs.replace(strange, kind="tpu"))
    assert reach(known) != default != by_kind != reach(known)
    assert reach(accelerator("a100")).matmul > reach(known).matmul
    assert default.source.startswith("assumed") and "fitted" in by_kind.source


@pytest.mark.parametrize("key", accelerators())
def test_reaches_are_shares(key: str) -> None:
    found = reach(accelerators()[key])
    shares = (
        found.matmul, found.attention_forward, found.attention_backward, found.biased, found.memory,
    )  # fmt: skip
    assert all(0.0 < share <= 1.0 for share in shares)
    assert found.attention_backward <= found.attention_forward <= found.matmul
    assert 0.5 < found.narrow < 2.0 and 0.0 < found.half < 1000.0


def test_roomier_devices_are_of_the_kind_and_as_many() -> None:
    known = fleet("2x8xh100-sxm")
    found = [fleet(name) for name in roomier(known)]
    sizes = [float(each.memory_capacity.value) for each in found]
    assert sizes == sorted(sizes) and sizes[0] > 1.1 * known.memory_capacity.value
    assert {(each.devices, each.devices_per_node, each.kind) for each in found} == {(16, 8, "cuda")}
    assert "2x8xh200-sxm" in roomier(known)


def test_a_ladder_is_the_same_devices_in_other_numbers() -> None:
    known = fleet("16x8xh100-sxm")
    found = ladder(known)
    assert [each.devices for each in found] == [16, 32, 64, 128, 256, 512, 1024]
    assert found[3] is known and found[0] == msgspec.structs.replace(
        fleet("2x8xh100-sxm"), name="16xh100-sxm"
    )
    up = ladder(fleet("8xgb200"))
    assert [each.devices for each in up] == [1, 2, 4, 8, 16, 32, 64]
    # All of them are within one NVLink domain of 72, however few were asked for.
    assert [len(each.domains) for each in up] == [1] * 7


def test_what_was_measured_has_no_greater_numbers() -> None:
    machine = record.load(Machine, Path(__file__).parents[1] / "cli" / "machine.toml")
    assert [each.devices for each in ladder(fleet_here(machine))] == [1]
    four = msgspec.structs.replace(machine, devices=4)
    found = ladder(fleet_here(four))
    assert [each.devices for each in found] == [1, 2, 4]
    assert [each.domains[0].devices for each in found] == [1, 2, 4]


def test_this_machine_reaches_what_was_measured_of_it() -> None:
    machine = record.load(Machine, Path(__file__).parents[1] / "cli" / "machine.toml")
    here = fleet_here(machine)
    curve = next(each for each in machine.device.matmul if each.precision == "bf16")
    assert here.devices == machine.devices and here.peak["bf16"] == curve.peak
    assert here.reach.matmul == 1.0 and here.reach.memory == 1.0
    least, *_, most = sorted((curve.half_m, curve.half_n, curve.half_k))
    assert least <= here.reach.half <= most
    assert 0.05 < here.reach.attention_forward < 1.5
    assert here.memory_bandwidth == machine.device.memory.copy
    assert here.memory_capacity == machine.device.memory.free
    assert here.domains[-1].devices == machine.devices


def test_without_attention_curves_a_third_of_the_peak_is_assumed() -> None:
    machine = record.load(Machine, Path(__file__).parents[1] / "cli" / "machine.toml")
    bare = msgspec.structs.replace(
        machine, device=msgspec.structs.replace(machine.device, attention=())
    )
    assert fleet_here(bare).reach.attention_forward == pytest.approx(1 / 3)
