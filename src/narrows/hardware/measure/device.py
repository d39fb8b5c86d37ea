"""The device that computes: the accelerator torch sees, else the processor."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from narrows.hardware import find

Kind = Literal["cpu", "cuda", "rocm", "xpu", "mps"]


class Target(NamedTuple):
    """Where trials run: torch's name for it, ours, how many there are, and how to wait for it."""

    torch_name: str
    kind: Kind
    name: str
    devices: int
    finish: Callable[[], None]


def target() -> Target:
    """The current accelerator, or the processor where torch has none."""
    if not torch.accelerator.is_available():
        return processor()
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return Target(
        torch_name=kind.type,
        kind=_kind(kind.type),
        name=_name(kind.type),
        devices=torch.accelerator.device_count(),
        finish=torch.accelerator.synchronize,
    )


def processor() -> Target:
    """The processor, whether or not there is an accelerator."""
    return Target("cpu", "cpu", find.processor().name, 1, lambda: None)


def memory_bytes(where: Target) -> tuple[int, int]:
    """Free bytes and all bytes of one accelerator's memory."""
    if where.torch_name == "mps":
        whole = torch.mps.recommended_max_memory()
        return whole - torch.mps.driver_allocated_memory(), whole
    free, whole = torch.get_device_module(where.torch_name).mem_get_info()
    return int(free), int(whole)


def _kind(torch_name: str) -> Kind:
    if torch_name == "cuda" and torch.version.hip is not None:
        return "rocm"
    if torch_name == "cuda":
        return "cuda"
    return "xpu" if torch_name == "xpu" else "mps"


def _name(torch_name: str) -> str:
    if torch_name == "mps":
        return f"Apple GPU ({platform.processor()})"
    return str(torch.get_device_module(torch_name).get_device_name())
