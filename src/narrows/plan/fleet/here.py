"""Passes of a model that is served on the machine at hand, whose steps were measured: by the
decoder of packed matrices where that computes the model, else by torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from narrows.plan.answer import pass_rows
from narrows.plan.layouts import Setting
from narrows.plan.packed import PackedQuestion, packable, packed_bytes, reading_rows, writing_rows
from narrows.plan.passes import Pass
from narrows.spec.fleet import Fleet
from narrows.spec.ledger import Row
from narrows.spec.machine import Machine
from narrows.spec.model import GELU, ModelSpec, SwiGLU

_TORCH_BITS = (16.0, 32.0)
_PACKED_BITS = {16.0: 16, 8.0: 8, 4.5: 4}
_CACHE_BYTES = 2.0


class Served(NamedTuple):
    """A model on a fleet, bits of a weight, bytes of a key or value, and ranks of a replica."""

    fleet: Fleet
    spec: ModelSpec
    weight_bits: float
    cache_bytes: float = _CACHE_BYTES
    ranks: int = 1


def measured(served: Served) -> Machine | None:
    """The machine whose measured steps tell what a pass takes; None where none do: elsewhere, over
    several ranks, and for models that are more than their operations here.
    """
    machine = served.fleet.machine
    if machine is None or served.ranks > 1 or not _plain(served.spec):
        return None
    torch = served.weight_bits in _TORCH_BITS and machine.device.streamed
    return machine if _packed(served, machine) or torch else None


def decode_rows(
    served: Served, sequences: float, past: float, each: float = 1.0
) -> tuple[Row, ...] | None:
    """The operations of `each` tokens for each of `sequences`, with `past` tokens behind them."""
    machine = measured(served)
    if machine is None:
        return None
    if _packed(served, machine):
        asked = _asked(served, past, sequences=sequences * each)
        return writing_rows(served.spec, asked, machine)
    if each != 1.0:
        return None
    one = Pass(sequences=max(1, round(sequences)), queries=1, past=past)
    return pass_rows(served.spec, one, _setting(machine), machine, "decode")


def prefill_rows(
    served: Served, tokens: float, cached: float = 0.0, beside: float = 0.0
) -> tuple[Row, ...] | None:
    """The operations of so many tokens of one request behind `cached` ones; in a pass of their own,
    or with so many rows of others `beside`, which costs a packed decoder what it costs alone.
    """
    machine = measured(served)
    if machine is None:
        return None
    if _packed(served, machine):
        asked = _asked(served, cached + tokens, cached=cached)
        return reading_rows(served.spec, asked, machine)
    if cached or beside:
        return None
    one = Pass(sequences=1, queries=max(1, round(tokens)))
    return pass_rows(served.spec, one, _setting(machine), machine, "prefill")


def seconds(
    rows: Callable[..., tuple[Row, ...] | None], served: Served, *what: float
) -> float | None:
    """Of all that `rows` tells of a pass; None where that was not measured."""
    told = rows(served, *what)
    return None if told is None else sum(row.seconds for row in told)


def _plain(spec: ModelSpec) -> bool:
    return (
        spec.causal and isinstance(spec.feed_forward, GELU | SwiGLU) and not spec.encoder_layers
        and spec.experts is None and spec.latent is None and spec.window is None
    )  # fmt: skip


def _packed(served: Served, machine: Machine) -> bool:
    known = served.weight_bits in _PACKED_BITS and machine.device.packed
    return bool(known) and packable(served.spec)


def _asked(
    served: Served, prompt: float, sequences: float = 1.0, cached: float = 0.0
) -> PackedQuestion:
    """A prompt and one token more of each text."""
    return PackedQuestion(
        prompt=max(1, round(prompt)), tokens=2, cached=round(cached),
        weight_bytes=packed_bytes(served.spec, _PACKED_BITS[served.weight_bits]),
        sequences=max(1, round(sequences)),
        cache="bf16" if served.cache_bytes >= _CACHE_BYTES else "int8",
    )  # fmt: skip


def _setting(machine: Machine) -> Setting:
    """bf16 where the machine is quicker with it, as it is where it has a unit for it."""
    peaks = {curve.precision: float(curve.peak.value) for curve in machine.device.matmul}
    quicker = peaks.get("bf16", 0.0) > peaks.get("fp32", 0.0)
    return Setting(precision="bf16" if quicker else "fp32", kernels="torch", compile=False)
