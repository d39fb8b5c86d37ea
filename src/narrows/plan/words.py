"""What plans for this machine and for others say alike."""

from __future__ import annotations

from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.optimizer import Optimizer, name_of

_OPTIMIZERS = {
    "adamw": "AdamW", "adam": "Adam", "adagrad": "Adagrad", "sgd": "SGD", "adafactor": "Adafactor",
    "lion": "Lion", "muon": "Muon", "schedule_free": "schedule-free AdamW",
}  # fmt: skip


def model_line(model: ModelSpec) -> str:
    """A model's sizes in one line."""
    kind = "gated" if model.up_width > model.feed_forward_width else "plain"
    heads = f"{model.heads} heads of {model.head_width}"
    if model.kv_heads != model.heads:
        heads += f" sharing {model.kv_heads} keys"
    return (
        f"{count(model.parameters)} parameters: {model.layers} layers, width {model.width}, "
        f"{heads}, feed-forward {model.feed_forward_width} ({kind}), "
        f"vocabulary {model.vocabulary}, context {model.context}"
    )


def devices(fleet: Fleet) -> str:
    """How many of which, and in how many nodes."""
    told = f"{fleet.devices:,} x {fleet.accelerator}"
    nodes = fleet.devices // fleet.devices_per_node
    return f"{told}, {nodes:,} nodes of {fleet.devices_per_node}" if nodes > 1 else told


def optimizer_line(optimizer: Optimizer) -> str:
    """Its rule and rate, and what of it is not usual: AdamW at 0.004, states in 8 bits."""
    said = f"{_OPTIMIZERS[name_of(optimizer.rule)]} at {optimizer.learning_rate:g}"
    if optimizer.state_bits < 32:
        said += f", states in {optimizer.state_bits} bits"
    if optimizer.fused:
        said += ", within the backward pass"
    if optimizer.ema is not None:
        said += f", weights averaged by {optimizer.ema:g}"
    return said


def count(value: float) -> str:
    """A number of parameters as models are named: 124M, 7.87B."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return str(int(value))


def dollars(value: float) -> str:
    """Money: $42.5, $1,504,863."""
    return f"${value:,.0f}" if value >= 100.0 else f"${value:.3g}"
