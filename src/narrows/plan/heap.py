"""What an allocator and torch hold beside what a step uses."""

from __future__ import annotations

import msgspec

from narrows.plan.layouts import Setting
from narrows.spec.machine import Machine

# What torch's compiler leaves behind: a model of next to nothing held as much more where what it
# compiled was known from before.
_COMPILER_BYTES = 100e6


class Heap(msgspec.Struct, frozen=True, kw_only=True):
    """What an allocator holds beside what is in use. What comes and goes wears it: it holds so many
    times that. Holes are left where gradients come and go, a share of their size, and between the
    streams that recomputing keeps, each too small for so many blocks' activations again. Beside
    all is what torch takes once it computes: thread pools, primitives and their code, with its own
    kernels more of them; and what a run has beside its steps: its text mapped, TensorBoard,
    samples, checkpoints.
    """

    wear: float
    gradients: float
    recompute: float
    runtime_bytes: float
    kernels_bytes: float
    run_bytes: float

    @classmethod
    def of(cls, machine: Machine) -> Heap:
        """Of a machine's tensors: the pool is there where native kernels can be had."""
        return POOL if "native" in machine.kernel_sets else GLIBC

    def runtime(self, setting: Setting) -> float:
        """Bytes that torch takes once it computes so."""
        own = self.kernels_bytes if setting.kernels == "torch" else 0.0
        return self.runtime_bytes + own + _COMPILER_BYTES * setting.compile

    def run(self, *, reads_text: bool) -> float:
        """Bytes that a run has beside its steps: nothing where it only takes them."""
        return self.run_bytes if reads_text else 0.0


# Measured by benchmarks/truth.py, 0.5M to 124M parameters: as resident set over malloc's bytes in
# use; and over the sum of the tables below, which the pool holds to the hole. The demo's runs held
# 16 to 43 MB more than their steps in glibc's heap, and 9 beside the pool.
GLIBC = Heap(
    wear=1.12, gradients=0.5, recompute=3.0, runtime_bytes=48e6, kernels_bytes=0.0, run_bytes=30e6
)
POOL = Heap(
    wear=1.0, gradients=0.0, recompute=0.0, runtime_bytes=14e6, kernels_bytes=5e6, run_bytes=10e6
)
