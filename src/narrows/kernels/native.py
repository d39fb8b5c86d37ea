"""The C++ kernels as differentiable operations in bf16.

Each function below hands pointers of contiguous tensors to `native/*.cpp`, which says what it
computes. What is kept for the backward pass is what cannot be had cheaper: an activation is
computed again from its input, attention keeps one number a row.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from narrows.kernels.interface import (
    CAUSAL,
    Activation,
    AdamWStep,
    Code,
    Heads,
    Kernels,
    Master,
    Moments,
    Rotation,
    Spans,
)
from narrows.kernels.library import native_library


class Normed(NamedTuple):
    """What a norm's output is made of: the product behind it keeps this, which is there anyway."""

    x_BTD: Tensor
    weight_D: Tensor
    bias_D: Tensor | None
    epsilon: float
    centre: bool


class NativeKernels(Kernels):
    """bf16 on CPU tensors; fp32 appears only in masters, moments and sums."""

    name = "native"

    def add_norm(
        self, x_BTD: Tensor, delta_BTD: Tensor | None, weight_D: Tensor, bias_D: Tensor | None,
        *, epsilon: float, centre: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        sum_BTD, out_BTD = x_BTD, None
        if delta_BTD is None:
            out_BTD = _Norm.apply(x_BTD, weight_D, bias_D, epsilon, centre)
        else:
            sum_BTD, out_BTD = _AddNorm.apply(x_BTD, delta_BTD, weight_D, bias_D, epsilon, centre)
        out_BTD.normed = Normed(sum_BTD, weight_D, bias_D, epsilon, centre)
        return sum_BTD, out_BTD

    def linear(self, x_BTD: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        out: Tensor = _Linear.apply(x_BTD, weight_ED, bias_E, getattr(x_BTD, "normed", None))
        return out

    def activated_linear(
        self, h_BTX: Tensor, weight_DF: Tensor, bias_D: Tensor | None,
        activation: Activation,
    ) -> Tensor:  # fmt: skip
        out: Tensor = _ActivatedLinear.apply(h_BTX, weight_DF, bias_D, activation)
        return out

    def activation(self, h_BTX: Tensor, activation: Activation) -> Tensor:
        out: Tensor = _Activation.apply(h_BTX, activation)
        return out

    def attention(
        self, qkv_BTX: Tensor, heads: Heads, rotation: Rotation | None, spans: Spans = CAUSAL
    ) -> Tensor:
        out: Tensor = _Attention.apply(qkv_BTX, heads, rotation, spans)
        return out

    def cross_entropy_(self, logits_MV: Tensor, targets_M: Tensor, scale: float) -> Tensor:
        M, V = logits_MV.shape
        if int(targets_M.max()) >= V:
            raise IndexError(f"target {int(targets_M.max())} is beyond the vocabulary of {V}")
        losses_M = torch.empty(M, dtype=torch.float32)
        call("cross_entropy", logits_MV, targets_M, losses_M, scale, M, V)
        return losses_M

    def adamw_(self, master: Master, moments: Moments, gradient: Tensor, step: AdamWStep) -> None:
        correction1, correction2 = 1.0 - step.beta1**step.number, 1.0 - step.beta2**step.number
        numbers = (ctypes.c_float * 8)(*step[:5], correction1, correction2, step.scale)
        half = gradient.dtype == torch.bfloat16
        call(
            "adamw", *master, *moments, gradient, half, gradient.numel(), ctypes.byref(numbers)
        )  # fmt: skip

    def joined(self, weight: Tensor, rest: Tensor) -> Tensor:
        values = torch.empty(weight.shape, dtype=torch.float32)
        call("join", weight, rest, values, values.numel())
        return values

    def part_(self, weight: Tensor, rest: Tensor, values: Tensor) -> None:
        call("part", weight, rest, values.contiguous(), values.numel())

    def decoded(self, codes: Tensor, scales: Tensor, code: Code) -> Tensor:
        values = torch.empty(codes.numel(), dtype=torch.float32)
        call("decode", codes, scales, code.levels, values, codes.numel())
        return values

    def encoded(self, values: Tensor, scales: Tensor, code: Code) -> Tensor:
        codes = torch.empty(values.numel(), dtype=torch.uint8)
        call("encode", values, code.bounds, codes, scales, values.numel())
        return codes

    def accumulate_(self, sum_: Tensor, gradient: Tensor) -> None:
        call("accumulate", sum_, gradient, gradient.numel())

    def squared_norm(self, gradient: Tensor) -> float:
        partial = torch.empty(call("threads"), dtype=torch.float64)
        half = gradient.dtype == torch.bfloat16
        return float(call("squared_norm", gradient, half, partial, gradient.numel()))


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_BTX: Tensor, activation: Activation) -> Tensor:
        h_BTX = h_BTX.contiguous()
        ctx.save_for_backward(h_BTX)
        ctx.activation = activation
        return _activate(h_BTX, activation)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (h_BTX,) = ctx.saved_tensors
        return _activate_backward(h_BTX, upstream[0].clone(), ctx.activation)[1], None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor | None, epsilon: float,
        centre: bool,
    ) -> Tensor:  # fmt: skip
        x_BTD = x_BTD.contiguous()
        out_BTD, stats = _norm_forward(x_BTD, None, weight_D, bias_D, (epsilon, centre))[1:]
        ctx.save_for_backward(x_BTD, weight_D, stats)
        ctx.options = centre, bias_D is not None
        return out_BTD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_backward(ctx, upstream[0], None), None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, delta_BTD: Tensor, weight_D: Tensor, bias_D: Tensor | None,
        epsilon: float, centre: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x_BTD, delta_BTD = x_BTD.contiguous(), delta_BTD.contiguous()
        sum_BTD, out_BTD, stats = _norm_forward(
            x_BTD, delta_BTD, weight_D, bias_D, (epsilon, centre)
        )
        ctx.save_for_backward(sum_BTD, weight_D, stats)
        ctx.options = centre, bias_D is not None
        return sum_BTD, out_BTD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx_BTD, dweight_D, dbias_D = _norm_backward(ctx, upstream[1], upstream[0])
        return dx_BTD, dx_BTD, dweight_D, dbias_D, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, normed: Normed | None
    ) -> Tensor:
        # The input is for the weight's gradient alone; a norm is computed again for it.
        kept: tuple[Tensor | None, ...] = (x_BTD, None, None) if normed is None else normed[:3]
        ctx.options = None if normed is None else normed[3:]
        if not ctx.needs_input_grad[1]:
            kept = (None, None, None)
        ctx.save_for_backward(weight_ED, *kept)
        ctx.shape = x_BTD.shape
        return torch.nn.functional.linear(x_BTD, weight_ED, bias_E)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weight_ED, x_BTD, norm_D, norm_bias_D = ctx.saved_tensors
        dout_ME = upstream[0].flatten(0, -2).contiguous()
        dx, dweight, dbias, _ = ctx.needs_input_grad
        if dweight and ctx.options is not None:
            x_BTD = _norm_forward(x_BTD.contiguous(), None, norm_D, norm_bias_D, ctx.options)[1]
        return (
            (dout_ME @ weight_ED).view(ctx.shape) if dx else None,
            dout_ME.t() @ x_BTD.flatten(0, -2) if dweight else None,
            column_sum(dout_ME) if dbias else None, None,
        )  # fmt: skip


class _ActivatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_BTX: Tensor, weight_DF: Tensor, bias_D: Tensor | None, activation: Activation
    ) -> Tensor:
        h_BTX = h_BTX.contiguous()
        ctx.save_for_backward(h_BTX, weight_DF)
        ctx.activation = activation
        y_BTF = _activate(h_BTX, activation)
        return torch.nn.functional.linear(y_BTF, weight_DF, bias_D)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        h_BTX, weight_DF = ctx.saved_tensors
        dh, dweight, dbias, _ = ctx.needs_input_grad
        dout_MD = upstream[0].flatten(0, -2).contiguous()
        if dh:
            y_MF, dh_BTX = _activate_backward(h_BTX, dout_MD @ weight_DF, ctx.activation)
        else:
            y_MF, dh_BTX = _activate(h_BTX, ctx.activation).flatten(0, -2), None
        return (
            dh_BTX, dout_MD.t() @ y_MF if dweight else None,
            column_sum(dout_MD) if dbias else None, None,
        )  # fmt: skip


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_BTX: Tensor, heads: Heads, rotation: Rotation | None, spans: Spans
    ) -> Tensor:
        qkv_BTX = qkv_BTX.contiguous()
        B, T = qkv_BTX.shape[:2]
        out_BTX = qkv_BTX.new_empty(B, T, heads.query * heads.width)
        lse_BNT = torch.empty(B, heads.query, T, dtype=torch.float32)
        cos, sin = rotation or (None, None)
        begins = torch.tensor(spans.begins(B, T), dtype=torch.int64)
        count = begins.numel() - 1
        call(
            "attention_forward", qkv_BTX, cos, sin, out_BTX, lse_BNT, begins, count, *heads,
            spans.causal,
        )  # fmt: skip
        ctx.save_for_backward(qkv_BTX, out_BTX, lse_BNT)
        ctx.begins = begins
        ctx.heads, ctx.rotation, ctx.causal = heads, rotation, spans.causal
        return out_BTX

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (qkv_BTX, out_BTX, lse_BNT), begins = ctx.saved_tensors, ctx.begins
        heads: Heads = ctx.heads
        count = begins.numel() - 1
        cos, sin = ctx.rotation or (None, None)
        scratch = int(call("attention_scratch", begins, count, heads.query, heads.width))
        sums = torch.empty(scratch, dtype=torch.float32)
        dqkv_BTX = torch.empty_like(qkv_BTX)
        call(
            "attention_backward", qkv_BTX, cos, sin, out_BTX, upstream[0].contiguous(), lse_BNT,
            sums, dqkv_BTX, begins, count, *heads, ctx.causal,
        )  # fmt: skip
        return dqkv_BTX, None, None, None


def _activate(h_BTX: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu":
        y_BTF = torch.empty_like(h_BTX)
        call("gelu_forward", h_BTX, y_BTF, y_BTF.numel())
        return y_BTF
    F = h_BTX.shape[-1] // 2
    y_BTF = h_BTX.new_empty(*h_BTX.shape[:-1], F)
    call("swiglu_forward", h_BTX, y_BTF, y_BTF.numel() // F, F)
    return y_BTF


def _activate_backward(
    h_BTX: Tensor, dy_MF: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """The activation again, and the gradient of its input; `dy` is overwritten for gelu."""
    y_MF = torch.empty_like(dy_MF)
    if activation == "gelu":
        dh_BTX = dy_MF.view_as(h_BTX)
        call("gelu_backward", h_BTX, dy_MF, y_MF, dh_BTX, dy_MF.numel())
        return y_MF, dh_BTX
    F = h_BTX.shape[-1] // 2
    dh_BTX = torch.empty_like(h_BTX)
    call("swiglu_backward", h_BTX, dy_MF, y_MF, dh_BTX, dy_MF.numel() // F, F)
    return y_MF, dh_BTX


def _norm_forward(
    x_BTD: Tensor, delta_BTD: Tensor | None, weight_D: Tensor, bias_D: Tensor | None,
    options: tuple[float, bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    D = x_BTD.shape[-1]
    rows = x_BTD.numel() // D
    sum_BTD = x_BTD if delta_BTD is None else torch.empty_like(x_BTD)
    out_BTD = torch.empty_like(x_BTD)
    stats = torch.empty(rows, 2, dtype=torch.float32)
    call(
        "norm_forward", x_BTD, delta_BTD, weight_D, bias_D, sum_BTD, out_BTD, stats, rows, D,
        *options,
    )  # fmt: skip
    return sum_BTD, out_BTD, stats


def _norm_backward(
    ctx: Any, dout_BTD: Tensor, bypass_BTD: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    x_BTD, weight_D, stats = ctx.saved_tensors
    centre, biased = ctx.options
    D = x_BTD.shape[-1]
    dx_BTD = torch.empty_like(x_BTD)
    partial = torch.zeros(call("threads"), 2, D, dtype=torch.float32)
    dweight_D = torch.empty_like(weight_D)
    dbias_D = torch.empty_like(weight_D) if biased else None
    call(
        "norm_backward", dout_BTD.contiguous(),
        None if bypass_BTD is None else bypass_BTD.contiguous(), x_BTD, weight_D, stats, dx_BTD,
        partial, dweight_D, dbias_D, x_BTD.numel() // D, D, centre,
    )  # fmt: skip
    return dx_BTD, dweight_D, dbias_D


def column_sum(x_ME: Tensor) -> Tensor:
    """Sum over rows: the gradient of a bias."""
    sums_E = x_ME.new_empty(x_ME.shape[1])
    call("column_sum", x_ME, sums_E, *x_ME.shape)
    return sums_E


def call(name: str, *arguments: Any) -> Any:
    """A function of the compiled kernels, given pointers of tensors."""
    pointers = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    return getattr(native_library(), f"narrows_{name}")(*pointers)
