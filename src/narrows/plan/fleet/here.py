"""Passes of a model that is served on the machine at hand, whose curves were measured."""

from __future__ import annotations

from narrows.plan.answer import pass_rows
from narrows.plan.layouts import Setting
from narrows.plan.passes import Pass
from narrows.spec.fleet import Fleet
from narrows.spec.ledger import Row
from narrows.spec.machine import Machine
from narrows.spec.model import GELU, ModelSpec, SwiGLU

_BITS = (16.0, 32.0)


def measured(fleet: Fleet, spec: ModelSpec, weight_bits: float, ranks: int) -> Machine | None:
    """The machine whose curves tell what a pass takes; None where none do: elsewhere, with narrow
    weights, over several ranks, and for models that are more than their operations here.
    """
    machine = fleet.machine
    plain = (
        spec.causal and isinstance(spec.feed_forward, GELU | SwiGLU) and not spec.encoder_layers
        and spec.experts is None and spec.latent is None and spec.window is None
    )  # fmt: skip
    fitting = plain and ranks == 1 and weight_bits in _BITS
    return machine if machine is not None and fitting and machine.device.streamed else None


def decode_seconds(spec: ModelSpec, sequences: float, past: float, machine: Machine) -> float:
    """One token for each of `sequences`, with `past` tokens behind them."""
    return sum(row.seconds for row in decode_rows(spec, sequences, past, machine))


def decode_rows(
    spec: ModelSpec, sequences: float, past: float, machine: Machine
) -> tuple[Row, ...]:
    """The operations of the same."""
    each = Pass(sequences=max(1, round(sequences)), queries=1, past=past)
    return pass_rows(spec, each, _setting(machine), machine, "decode")


def prefill_seconds(spec: ModelSpec, prompt: float, machine: Machine) -> float:
    """A prompt of one request."""
    return sum(row.seconds for row in prefill_rows(spec, prompt, machine))


def prefill_rows(spec: ModelSpec, prompt: float, machine: Machine) -> tuple[Row, ...]:
    """The operations of the same."""
    each = Pass(sequences=1, queries=max(1, round(prompt)))
    return pass_rows(spec, each, _setting(machine), machine, "prefill")


def _setting(machine: Machine) -> Setting:
    """bf16 where the machine is quicker with it, as it is where it has a unit for it."""
    peaks = {curve.precision: float(curve.peak.value) for curve in machine.device.matmul}
    quicker = peaks.get("bf16", 0.0) > peaks.get("fp32", 0.0)
    return Setting(precision="bf16" if quicker else "fp32", kernels="torch", compile=False)
