"""The readable kernels: plain torch, any device, any precision, and what the others are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

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
from narrows.spec.optimizer import BLOCK

_JOINED = 1 << 20
"""Values that a processor puts together of a bf16 weight and its rest at once: three more tensors
are as large, and pieces that stay in its cache are quicker, too.
"""


class TorchKernels(Kernels):
    """Every operation as torch spells it."""

    name = "torch"

    def add_norm(
        self, x_BTD: Tensor, delta_BTD: Tensor | None, weight_D: Tensor, bias_D: Tensor | None,
        *, epsilon: float, centre: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        sum_BTD = x_BTD if delta_BTD is None else x_BTD + delta_BTD
        shape = (sum_BTD.shape[-1],)
        if centre:
            return sum_BTD, F.layer_norm(sum_BTD, shape, weight_D, bias_D, epsilon)
        return sum_BTD, F.rms_norm(sum_BTD, shape, weight_D, epsilon)

    def linear(self, x_BTD: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        return F.linear(x_BTD, weight_ED, bias_E)

    def activated_linear(
        self, h_BTX: Tensor, weight_DF: Tensor, bias_D: Tensor | None,
        activation: Activation,
    ) -> Tensor:  # fmt: skip
        return F.linear(self.activation(h_BTX, activation), weight_DF, bias_D)

    def activation(self, h_BTX: Tensor, activation: Activation) -> Tensor:
        if activation == "gelu":
            return F.gelu(h_BTX, approximate="tanh")
        gate_BTF, up_BTF = h_BTX.chunk(2, dim=-1)
        return F.silu(gate_BTF) * up_BTF

    def attention(
        self, qkv_BTX: Tensor, heads: Heads, rotation: Rotation | None, spans: Spans = CAUSAL
    ) -> Tensor:
        if spans.lengths:
            each = qkv_BTX.flatten(0, 1).split(list(spans.lengths))
            alone = [self._attention(x_TX[None], heads, rotation, spans.causal)[0] for x_TX in each]
            return torch.cat(alone).unflatten(0, qkv_BTX.shape[:2])
        return self._attention(qkv_BTX, heads, rotation, spans.causal)

    def _attention(
        self, qkv_BTX: Tensor, heads: Heads, rotation: Rotation | None, causal: bool
    ) -> Tensor:
        q_BNTH, k_BKTH, v_BKTH = split_heads(qkv_BTX, heads)
        if rotation is not None:
            rotation = Rotation(*(each[: qkv_BTX.shape[1]] for each in rotation))
            q_BNTH, k_BKTH = rotate(q_BNTH, rotation), rotate(k_BKTH, rotation)
        out_BNTH = F.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, is_causal=causal, enable_gqa=heads.query != heads.key_value
        )
        return out_BNTH.transpose(1, 2).flatten(2)

    def cross_entropy_(self, logits_MV: Tensor, targets_M: Tensor, scale: float) -> Tensor:
        rows_M = torch.arange(targets_M.shape[0], device=targets_M.device)
        counted_M = targets_M >= 0
        safe_M = targets_M.clamp_min(0)
        log_p_MV = torch.log_softmax(logits_MV, dim=-1, dtype=torch.float32)
        losses_M = torch.where(counted_M, -log_p_MV[rows_M, safe_M], 0.0)
        gradient_MV = log_p_MV.exp_()
        gradient_MV[rows_M, safe_M] -= 1.0
        gradient_MV.mul_((counted_M * scale).unsqueeze(-1))
        logits_MV.copy_(gradient_MV)
        return losses_M

    def adamw_(self, master: Master, moments: Moments, gradient: Tensor, step: AdamWStep) -> None:
        if master.rest is None or master.weight.device.type != "cpu":
            self._adamw(master, moments, gradient, step)
            return
        flat = gradient.reshape(-1)
        for start in range(0, flat.numel(), _JOINED):
            stop = min(start + _JOINED, flat.numel())
            some = master.piece(start, stop), moments.piece(start, stop), flat[start:stop]
            self._adamw(*some, step)

    def _adamw(self, master: Master, moments: Moments, gradient: Tensor, step: AdamWStep) -> None:
        values = self.values(master)
        gradient = gradient.to(torch.float32)
        if step.scale != 1.0:
            gradient = gradient * step.scale
        counts = [torch.tensor(float(step.number - 1), device=values.device)]
        adamw(
            [values], [gradient], [moments.first], [moments.second], [], counts,
            fused=values.device.type != "meta", amsgrad=False, beta1=step.beta1, beta2=step.beta2,
            lr=step.rate, weight_decay=step.decay, eps=step.epsilon, maximize=False,
        )  # fmt: skip
        del gradient
        self.set_(master, values)

    def joined(self, weight: Tensor, rest: Tensor) -> Tensor:
        bits = weight.view(torch.int16).to(torch.int32)
        return bits.bitwise_left_shift_(16).add_(rest).view(torch.float32)

    def part_(self, weight: Tensor, rest: Tensor, values: Tensor) -> None:
        bits = values.view(torch.int32)
        bits = bits + (bits & 0xFFFF == 0x8000)
        high = (bits + 0x8000).bitwise_right_shift_(16)
        weight.copy_(high.to(torch.int16).view(torch.bfloat16))
        rest.copy_(bits.sub_(high.bitwise_left_shift_(16)))

    def decoded(self, codes: Tensor, scales: Tensor, code: Code) -> Tensor:
        shares = code.levels.index_select(0, codes.to(torch.int32))
        return _in_blocks(shares).mul_(scales.unsqueeze(-1)).view(-1)[: codes.numel()]

    def encoded(self, values: Tensor, scales: Tensor, code: Code) -> Tensor:
        blocks = _in_blocks(values)
        torch.amax(blocks.abs(), dim=1, out=scales)
        shares = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        codes = torch.bucketize(shares, code.bounds, out_int32=True)
        return codes.view(-1)[: values.numel()].to(torch.uint8)

    def accumulate_(self, sum_: Tensor, gradient: Tensor) -> None:
        sum_.add_(gradient)

    def squared_norm(self, gradient: Tensor) -> float:
        return float(torch.linalg.vector_norm(gradient, dtype=torch.float32)) ** 2


def _in_blocks(values: Tensor) -> Tensor:
    """[blocks, BLOCK], the last filled up with noughts."""
    lacking = -values.numel() % BLOCK
    if lacking:
        values = torch.cat([values, values.new_zeros(lacking)])
    return values.view(-1, BLOCK)


def split_heads(qkv_BTX: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """[B,T,(N+2K)H] → queries [B,N,T,H], keys and values [B,K,T,H]."""
    N, K, H = heads
    q_BTX, k_BTX, v_BTX = qkv_BTX.split([N * H, K * H, K * H], dim=-1)
    return (
        q_BTX.unflatten(-1, (N, H)).transpose(1, 2),
        k_BTX.unflatten(-1, (K, H)).transpose(1, 2),
        v_BTX.unflatten(-1, (K, H)).transpose(1, 2),
    )


def rotate(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (h, h + H/2) by the angle of their position (arXiv:2104.09864)."""
    a_BNTH, b_BNTH = x_BNTH.float().chunk(2, dim=-1)
    cos, sin = rotation
    turned = torch.cat([a_BNTH * cos - b_BNTH * sin, b_BNTH * cos + a_BNTH * sin], dim=-1)
    return turned.to(x_BNTH.dtype)
