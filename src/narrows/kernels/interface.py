"""What a set of kernels offers. A model calls these and knows nothing of how they are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from narrows.spec.machine import KernelSet

if TYPE_CHECKING:
    from torch import Tensor

OPERATIONS = ("norm", "gelu", "swiglu", "cross_entropy", "embedding", "column_sum", "adamw",
              "accumulate", "squared_norm")  # fmt: skip
"""Memory-bound operations that `trials` can time: the rows of a machine's kernel curves."""


Activation = Literal["gelu", "swiglu"]


class Heads(NamedTuple):
    """N query heads and K key and value heads of width H."""

    query: int
    key_value: int
    width: int


class Rotation(NamedTuple):
    """Cosine and sine [T, H/2] fp32 of rotary positions."""

    cos: Tensor
    sin: Tensor


class Spans(NamedTuple):
    """What attends to what: the past only where `causal`, and within documents of these lengths,
    which make up all rows one behind the other; none given, within each row.
    """

    causal: bool = True
    lengths: tuple[int, ...] = ()

    def begins(self, B: int, T: int) -> list[int]:
        """Where each document of [B,T] begins, and the end."""
        return [0, *accumulate(self.lengths or (T,) * B)]


CAUSAL = Spans()


class AdamWStep(NamedTuple):
    """One step's numbers; `number` is t ≥ 1 of the bias corrections 1 - beta^t, `scale` multiplies
    the gradient.
    """

    rate: float
    decay: float
    beta1: float
    beta2: float
    epsilon: float
    number: int
    scale: float


class Master(NamedTuple):
    """A parameter in fp32: its weight, or a bf16 weight and, in int16, the rest that rounding to it
    took. As integers the fp32 value's bits are weight · 2¹⁶ + rest; what lies half way between two
    weights is one bit more.
    """

    weight: Tensor
    rest: Tensor | None

    def piece(self, start: int, stop: int) -> Master:
        """Of all values in a row, those from `start` to `stop`."""
        rest = None if self.rest is None else self.rest.view(-1)[start:stop]
        return Master(self.weight.view(-1)[start:stop], rest)


class Moments(NamedTuple):
    """What AdamW keeps of one parameter beside its master, both fp32."""

    first: Tensor
    second: Tensor

    def piece(self, start: int, stop: int) -> Moments:
        """Of all values in a row, those from `start` to `stop`."""
        return Moments(*(each.view(-1)[start:stop] for each in self))


class Code(NamedTuple):
    """What codes stand for: 256 ascending `levels`, and the 255 `bounds` half way between them."""

    levels: Tensor
    bounds: Tensor


class Kernels(ABC):
    """A set of kernels. Differentiable where the model trains through them."""

    name: ClassVar[KernelSet]

    @abstractmethod
    def add_norm(
        self, x_BTD: Tensor, delta_BTD: Tensor | None, weight_D: Tensor, bias_D: Tensor | None,
        *, epsilon: float, centre: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x + delta, and its norm: LayerNorm where `centre`, else RMSNorm."""

    @abstractmethod
    def linear(self, x_BTD: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        """x Wᵀ + b."""

    @abstractmethod
    def activated_linear(
        self, h_BTX: Tensor, weight_DF: Tensor, bias_D: Tensor | None,
        activation: Activation,
    ) -> Tensor:  # fmt: skip
        """act(h) Wᵀ + b; h is [B,T,F] for gelu and [gate | up] = [B,T,2F] for swiglu."""

    @abstractmethod
    def activation(self, h_BTX: Tensor, activation: Activation) -> Tensor:
        """gelu(h), or silu(gate) · up."""

    @abstractmethod
    def attention(
        self, qkv_BTX: Tensor, heads: Heads, rotation: Rotation | None, spans: Spans = CAUSAL
    ) -> Tensor:
        """Attention on a fused projection [B,T,(N+2K)H] → [B,T,N·H]; each document's positions
        count from its own first.
        """

    @abstractmethod
    def cross_entropy_(self, logits_MV: Tensor, targets_M: Tensor, scale: float) -> Tensor:
        """Loss of each row [M] fp32; the logits are replaced by their gradient times `scale`.

        A negative target counts for nothing.
        """

    @abstractmethod
    def adamw_(self, master: Master, moments: Moments, gradient: Tensor, step: AdamWStep) -> None:
        """Update master and moments in place."""

    @abstractmethod
    def joined(self, weight: Tensor, rest: Tensor) -> Tensor:
        """The fp32 values of a master that is in two parts."""

    @abstractmethod
    def part_(self, weight: Tensor, rest: Tensor, values: Tensor) -> None:
        """Make these fp32 values the master's, in its two parts."""

    def values(self, master: Master) -> Tensor:
        """A master in fp32: itself, where it is not in two parts."""
        weight, rest = master
        return weight if rest is None else self.joined(weight, rest)

    def set_(self, master: Master, values: Tensor) -> None:
        """Make these fp32 values the master's; those it gave, changed in place, may be given."""
        weight, rest = master
        if rest is not None:
            self.part_(weight, rest, values)
        elif values is not weight:
            weight.copy_(values)

    @abstractmethod
    def decoded(self, codes: Tensor, scales: Tensor, code: Code) -> Tensor:
        """The flat fp32 values of codes: the level of each, times its block's scale."""

    @abstractmethod
    def encoded(self, values: Tensor, scales: Tensor, code: Code) -> Tensor:
        """The codes of the levels nearest to flat values as shares of the largest in their block
        of BLOCK; `scales` receives these.
        """

    @abstractmethod
    def accumulate_(self, sum_: Tensor, gradient: Tensor) -> None:
        """sum += gradient, the sum in fp32."""

    @abstractmethod
    def squared_norm(self, gradient: Tensor) -> float:
        """Sum of squares."""
