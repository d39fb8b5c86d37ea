from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import narrows.hardware.accelerators as module
from narrows.hardware.accelerators import Accelerator, Peak, accelerator, accelerators, spellings
from narrows.spec.errors import BadInput
from narrows.spec.record import from_builtins, to_builtins

FILES = sorted((Path(module.__file__).parent / "catalogue/accelerators").glob("*.toml"))
ALL = list(accelerators().items())
KEYS = [key for key, _ in ALL]
each = pytest.mark.parametrize(("key", "device"), ALL, ids=KEYS)

# Dense fp16 FLOP of an SM in a cycle (NVIDIA's white papers), and fp32's, which gives the clock.
SM = {
    "volta": (1024, 128), "turing": (1024, 128), "ampere": (1024, 256), "ada": (1024, 256),
    "hopper": (4096, 256), "blackwell": (8192, 256), "blackwell-ultra": (8192, 256),
    "rtx-blackwell": (1024, 256),
}  # fmt: skip
GA100 = ("a100-40gb-sxm", "a100-80gb-sxm", "a100-40gb-pcie", "a100-80gb-pcie", "a30",
         "a800-80gb-sxm")  # fmt: skip
HALF_RATE = ("a10g", "l40")
# Links of one device, and bytes a second of one link in one direction.
NVLINK = {
    "Eight NVLink": (8, 25e9),
    "NVLink 2": (6, 25e9), "NVLink 3, NVSwitch": (12, 25e9), "NVLink 4 bridge": (12, 25e9),
    "NVLink 4, ": (18, 25e9), "NVLink 5": (18, 50e9),
}  # fmt: skip


def raw(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def rate(peak: Peak, *formats: str) -> float:
    """The first of the formats that the hardware has."""
    return next(float(value) for each in formats if (value := getattr(peak, each)) is not None)


def rates(peak: Peak) -> dict[str, float]:
    return {each: getattr(peak, each) for each in Peak.__struct_fields__ if getattr(peak, each)}


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_every_fact_has_its_source_and_every_source_a_use(path: Path) -> None:
    tables = raw(path)
    sources = tables.pop("sources")
    facts = {*Accelerator.__struct_fields__, *Peak.__struct_fields__}
    used: set[str] = set()
    for key, table in tables.items():
        used |= {table["source"], *table.get("source_of", {}).values()}
        used |= {table["price"]["source"]} if "price" in table else set()
        assert set(table.get("source_of", {})) <= facts, key
        present = {*table, *table["peak"]}
        assert set(table.get("source_of", {})) <= present, key
    assert used == set(sources)
    for key, text in sources.items():
        assumed = key.startswith("assumed")
        assert text.startswith("assumed: ") if assumed else re.search(r", \d{4}(-\d\d)?$", text)


def test_the_files_hold_each_key_once() -> None:
    keys = [key for path in FILES for key in raw(path) if key != "sources"]
    assert sorted(keys) == sorted(KEYS)
    wanted = {"nvidia", "amd", "intel", "google", "apple", "aws", "cpu", "fpga"}
    assert {path.stem for path in FILES} == wanted


def test_no_spelling_means_two_accelerators() -> None:
    seen: dict[str, str] = {}
    for key, device in ALL:
        for spelling in spellings(key, device):
            assert seen.setdefault(spelling, key) == key, spelling


@each
def test_an_entry_survives_being_written(key: str, device: Accelerator) -> None:
    assert from_builtins(Accelerator, to_builtins(device)) == device


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("h100-sxm", "h100-sxm"), ("H100", "h100-sxm"), ("h100_sxm", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("H100 PCIe", "h100-pcie"),
        ("h100-96gb", "h100-96gb-sxm"), ("A100-80GB", "a100-80gb-sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb-sxm"), ("A100-40GB", "a100-40gb-sxm"),
        ("A100 PCIe 80GB", "a100-80gb-pcie"), ("A100-80GB(330W)", "a100-80gb-sxm"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"), ("Tesla T4", "t4"), ("H200", "h200-sxm"),
        ("B200", "b200"), ("GB300", "gb300-nvl72"), ("3090 24GB", "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("RTX 6000 Ada 48GB", "rtx-6000-ada"),
        ("MI250X-1GCD", "mi250x-gcd"), ("AMD Instinct MI300X", "mi300x"),
        ("Gaudi2", "gaudi-2"), ("TPUv5e", "tpu-v5e"), ("TPUv6e", "tpu-v6e"),
        ("tpu.v5.p", "tpu-v5p"), ("Apple M2 Ultra", "m2-ultra"),
        ("M2 Ultra 76-Core GPU 192GB", "m2-ultra"), ("Trn2", "trainium-2"), ("U280", "alveo-u280"),
    ],
)  # fmt: skip
def test_names_as_people_write_them(name: str, key: str) -> None:
    assert accelerator(name) is accelerators()[key]


@pytest.mark.parametrize(
    ("name", "key"), [("h100-smx", "h100-sxm"), ("RTX 4900", "rtx-4090"), ("tpu-v5x", "tpu-v5e")]
)
def test_an_unknown_name_suggests_the_near_ones(name: str, key: str) -> None:
    with pytest.raises(BadInput, match=name) as caught:
        accelerator(name)
    assert caught.value.hint and key in caught.value.hint
    assert len(set(caught.value.hint.split(" or "))) == 3


def test_a_name_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(BadInput) as caught:
        accelerator("§")
    assert all(key in str(caught.value.hint) for key in KEYS)


@each
def test_narrower_formats_are_not_slower(key: str, device: Accelerator) -> None:
    had = rates(device.peak)
    floats = [had[each] for each in ("fp32", "tf32", "fp16", "fp8", "fp6", "fp4") if each in had]
    assert had and min(had.values()) > 0
    assert floats == sorted(floats)
    if "bf16" in had and "fp16" in had and device.kind in ("cuda", "rocm", "xpu", "neuron"):
        assert had["bf16"] == had["fp16"]
    if "int8" in had and "fp16" in had and key not in ("b300", "gb300-nvl72", "cpu-amx-56c"):
        assert 0.99 <= had["int8"] / had["fp16"] <= 4.02
    if "tf32" in had and device.kind != "neuron":
        assert had["fp16"] / had["tf32"] == pytest.approx(2, rel=0.03)


@each
def test_the_machine_balance_is_of_this_world(key: str, device: Accelerator) -> None:
    """FLOP that can be done for each byte read: an H100 about 300, a desktop processor 20."""
    balance = rate(device.peak, "bf16", "fp16", "fp32", "int8") / device.memory_bandwidth
    assert 10 < balance < 600
    seconds_to_read_all = device.memory_capacity / device.memory_bandwidth
    assert 0.01 < seconds_to_read_all < 2


@each
def test_each_step_away_from_the_chip_is_slower(key: str, device: Accelerator) -> None:
    steps = [device.memory_bandwidth]
    steps += [device.link.bandwidth] if device.link else []
    steps += [device.network.bandwidth] if device.network else []
    assert steps == sorted(steps, reverse=True) and len(set(steps)) == len(steps)
    assert device.host_link is None or device.host_link < device.memory_bandwidth
    assert device.on_chip is None or device.on_chip < device.memory_capacity / 40
    assert device.link is None or device.link.devices >= 2


@each
def test_years_power_and_prices_are_plausible(key: str, device: Accelerator) -> None:
    assert 2017 <= device.released <= 2026
    if device.power_full:
        assert 30 < device.power_full <= 1400
        per_joule = rate(device.peak, "bf16", "fp16", "fp32", "int8") / device.power_full
        assert 5e9 < per_joule < 3e12
    if device.power_idle:
        assert device.power_full and 0.02 < device.power_idle / device.power_full < 0.5
    if device.price:
        assert re.fullmatch(r"\d{4}(-\d\d)?", device.price.date)
        assert device.released <= int(device.price.date[:4]) and 0.2 < device.price.value < 10


NVIDIA = [(key, device) for key, device in ALL if device.architecture in SM and key != "h20"]


@pytest.mark.parametrize(("key", "device"), NVIDIA, ids=[key for key, _ in NVIDIA])
def test_nvidia_peaks_are_dense(key: str, device: Accelerator) -> None:
    """A sparse figure would be twice what the SMs do in a cycle at the clock that fp32 tells.

    GeForce and two others do half of it when they accumulate in fp32. H20 is held back further.
    """
    fp16, fp32 = SM[device.architecture]
    fp16, fp32 = (2048, 128) if key in GA100 else (fp16, fp32)
    fp16 = fp16 // 2 if "GeForce" in device.name or key in HALF_RATE else fp16
    assert device.units and device.peak.fp32 and device.peak.fp16
    clock = device.peak.fp32 / device.units / fp32
    assert 1.3e9 < clock < 2.7e9
    assert device.peak.fp16 == pytest.approx(device.units * fp16 * clock, rel=0.14)


def test_nvlink_is_of_one_direction() -> None:
    checked = 0
    for key, device in ALL:
        for name, (links, bandwidth) in NVLINK.items():
            if device.link and device.link.name.startswith(name):
                assert device.link.bandwidth == pytest.approx(links * bandwidth), key
                checked += 1
    assert checked > 12
    assert accelerators()["h100-sxm"].link and accelerators()["h100-sxm"].link.bandwidth == 450e9


def test_h100_over_a100() -> None:
    h100, a100 = accelerator("H100"), accelerator("A100")
    assert h100.peak.bf16 and a100.peak.bf16 and h100.link and a100.link
    assert h100.peak.bf16 / a100.peak.bf16 == pytest.approx(3.17, rel=0.01)
    assert h100.memory_bandwidth / a100.memory_bandwidth == pytest.approx(1.643, rel=0.01)
    assert h100.link.bandwidth / a100.link.bandwidth == 1.5
    assert a100.peak.fp8 is None and h100.peak.fp8 == pytest.approx(2 * h100.peak.bf16, rel=1e-3)


@pytest.mark.parametrize(("key", "total"), [("tpu-v5e", 51.2e12), ("tpu-v6e", 102.4e12)])
def test_the_links_of_a_pod_add_up_to_its_published_all_reduce(key: str, total: float) -> None:
    link = accelerators()[key].link
    assert link and link.devices * link.bandwidth == pytest.approx(total)


@each
def test_capacity_is_what_the_name_says_less_what_the_device_keeps(
    key: str, device: Accelerator
) -> None:
    named = re.search(r"(\d+) GB", device.name)
    if named:
        assert 0.93 <= device.memory_capacity / (int(named[1]) * 2**30) <= 1


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ("mi250x", "mi250x-gcd"),
        ("m1-ultra", "m1-max"),
        ("m2-ultra", "m2-max"),
        ("m1-max", "m1-pro"),
    ],
)
def test_two_dies_are_twice_one(whole: str, part: str) -> None:
    two, one = accelerators()[whole], accelerators()[part]
    assert two.units and one.units and two.peak.fp16 and one.peak.fp16
    assert two.units / one.units == 2
    assert two.peak.fp16 / one.peak.fp16 == pytest.approx(2)
    assert two.memory_bandwidth / one.memory_bandwidth == pytest.approx(2)
    assert two.memory_capacity / one.memory_capacity == 2


def test_processors_do_what_their_cores_can() -> None:
    """Cores x base clock x FLOP a cycle, fused multiply-adds counted twice."""
    cycle = {"cpu-avx2-8c": (3.8e9, 2 * 2 * 8), "cpu-avx512-32c": (2.6e9, 2 * 2 * 16)}
    for key, (clock, flop) in cycle.items():
        device = accelerators()[key]
        assert device.units and device.peak.fp32 == pytest.approx(device.units * clock * flop)
    amx = accelerators()["cpu-amx-56c"]
    assert amx.units and amx.peak.bf16 == pytest.approx(amx.units * 2e9 * 2 * 16 * 16 * 32 / 16)
