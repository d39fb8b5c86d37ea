"""Choose a set of kernels by name."""

from __future__ import annotations

from narrows.kernels.build import obstacle
from narrows.kernels.interface import Kernels
from narrows.spec.errors import BadInput
from narrows.spec.machine import KernelSet


def available() -> tuple[KernelSet, ...]:
    """The sets that work here, the readable one first."""
    return ("torch",) if obstacle() else ("torch", "native")


def load(name: KernelSet) -> Kernels:
    """The set called `name`; raises BadInput where this machine cannot have it. From here on
    products in bf16 are as quick as they can be, whatever the set.
    """
    from narrows.kernels.products import mend

    mend()
    if name == "torch":
        from narrows.kernels.reference import TorchKernels

        return TorchKernels()
    reason = obstacle()
    if reason:
        raise BadInput(
            f"native kernels cannot be used here: {reason}",
            hint="plan again on this machine, or --set layout.kernels=torch",
        )
    from narrows.kernels.native import NativeKernels

    return NativeKernels()
