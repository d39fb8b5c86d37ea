"""The ledger: where a step's time, memory and energy go. Predicted and measured are one type."""

from __future__ import annotations

from typing import Literal

from narrows.spec.record import Record

Phase = Literal["forward", "backward", "optimizer", "data", "other", "prefill", "decode"]
Kind = Literal[
    "gemm", "attention", "pointwise", "loss", "optimizer", "data", "launch", "link", "idle", "other"
]
KINDS: tuple[Kind, ...] = (
    "gemm", "attention", "pointwise", "loss", "optimizer", "data", "launch", "link", "idle",
    "other",
)  # fmt: skip


class Row(Record):
    """One operation of one optimizer step, or of one answer, summed over its `count` calls."""

    operation: str
    phase: Phase
    kind: Kind
    count: float
    flop: float
    memory_bytes: float
    network_bytes: float
    seconds: float
    joules: float


class MemoryPeak(Record):
    """Bytes by kind at the moment of the peak; `masters` are what makes fp32 masters of weights in
    fewer bits. `peak` is the resident set above the start, or what the device's allocator reports;
    for a prediction it is the sum of the kinds.
    """

    weights: float = 0.0
    masters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    workspace: float = 0.0
    runtime: float = 0.0
    cache: float = 0.0
    peak: float

    def ranked(self) -> list[tuple[str, float]]:
        """Kinds and their bytes, the largest first."""
        kinds = [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "peak"]
        return sorted(kinds, key=lambda pair: -pair[1])


class Total(Record):
    """The whole run."""

    steps: int
    tokens: float
    seconds: float
    seconds_training: float
    seconds_start: float
    seconds_evaluating: float
    seconds_saving: float
    joules: float
    dollars: float
    carbon_grams: float


class Ledger(Record):
    """Rows of one step, the step's own time and tokens, the memory peak and the whole run.

    `step_seconds` is the median step; rows sum to it. `mfu` is model FLOP over what the *measured*
    matmul peak would do in the same time. Where a model answers, the step is a whole answer: its
    rows are of phase prefill (up to the first token) and decode, `total.steps` passes for the rest.
    """

    basis: Literal["predicted", "measured"]
    energy_basis: Literal["measured", "estimated"]
    rows: tuple[Row, ...]
    step_seconds: float
    step_tokens: float
    mfu: float
    memory: MemoryPeak
    total: Total

    @property
    def tokens_per_s(self) -> float:
        """Training throughput, evaluation and saving left out."""
        return self.step_tokens / self.step_seconds

    @property
    def first_token_s(self) -> float:
        """Seconds until the first token of an answer."""
        return sum(row.seconds for row in self.rows if row.phase == "prefill")

    @property
    def per_token_s(self) -> float:
        """Seconds between two tokens of an answer; zero where it has only one."""
        rest = sum(row.seconds for row in self.rows if row.phase == "decode")
        return rest / self.total.steps if self.total.steps else 0.0

    @property
    def watts(self) -> float:
        """Power of a step; zero where no energy is known."""
        return sum(row.joules for row in self.rows) / self.step_seconds

    def seconds_by_kind(self) -> dict[Kind, float]:
        """Seconds of one step by kind, in the order of KINDS."""
        sums = dict.fromkeys(KINDS, 0.0)
        for row in self.rows:
            sums[row.kind] += row.seconds
        return sums

    def seconds_by_part(self) -> dict[str, float]:
        """Seconds of one step by operation, all products in one, the longest first."""
        sums: dict[str, float] = {}
        for row in self.rows:
            part = "products" if row.kind == "gemm" else row.operation
            sums[part] = sums.get(part, 0.0) + row.seconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))
