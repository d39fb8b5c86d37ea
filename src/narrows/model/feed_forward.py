"""Feed-forward: what stands between its two matrices, and the choice among experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.kernels.interface import Activation, Kernels
from narrows.model.weights import Weights
from narrows.spec.model import (
    GELU,
    ClampedSwiGLU,
    FeedForward,
    GeGLU,
    ModelSpec,
    ReLU,
    Softmax,
    SwiGLU,
)


def activated_linear(kernels: Kernels, h_BTX: Tensor, down: Weights, kind: FeedForward) -> Tensor:
    """act(h) Wᵀ + b."""
    if (fused := _fused(kind)) is not None:
        return down.activated(kernels, h_BTX, fused)
    return down.linear(kernels, activated(kernels, h_BTX, kind))


def activated(kernels: Kernels, h_BTX: Tensor, kind: FeedForward) -> Tensor:
    """act(h) [..., F] of h, which is [gate | up] where the kind has a gate."""
    if (fused := _fused(kind)) is not None:
        return kernels.activation(h_BTX, fused)
    if isinstance(kind, GeGLU):
        gate_BTF, up_BTF = h_BTX.chunk(2, dim=-1)
        return F.gelu(gate_BTF, approximate="tanh") * up_BTF
    if isinstance(kind, ClampedSwiGLU):
        gate_BTF, up_BTF = h_BTX.chunk(2, dim=-1)
        gate_BTF = gate_BTF.clamp(max=kind.limit)
        up_BTF = up_BTF.clamp(-kind.limit, kind.limit)
        return gate_BTF * (kind.slope * gate_BTF).sigmoid() * (up_BTF + 1.0)
    if isinstance(kind, GELU):
        return F.gelu(h_BTX)
    return h_BTX.relu() if isinstance(kind, ReLU) else h_BTX.relu().square()


class Each(nn.Module):
    """All experts, each with rows of its own."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        experts, self.kind = spec.experts, spec.feed_forward
        assert experts is not None
        D, E, width = spec.width, experts.count, experts.width
        gates = 2 if spec.gated else 1
        self.up = Weights(gates * width, D, biased=experts.biases, copies=E)
        self.down = Weights(D, width, biased=experts.biases, copies=E)

    def forward(self, kernels: Kernels, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """What experts give for rows that lie sorted by expert, `counts` of each."""
        ends_E = counts_E.cumsum(0, dtype=torch.int32)
        numbers_E = torch.arange(counts_E.shape[0], device=x_RD.device)
        expert_R = numbers_E.repeat_interleave(counts_E, output_size=x_RD.shape[0])
        h_RX = self.up.grouped(x_RD, expert_R, ends_E)
        return self.down.grouped(activated(kernels, h_RX, self.kind), expert_R, ends_E)


class Routed(nn.Module):
    """Experts, of which the router chooses some for each token, and those that all tokens share."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        experts = spec.experts
        assert experts is not None
        self.experts, self.kind = experts, spec.feed_forward
        D, gates = spec.width, 2 if spec.gated else 1
        self.router = Weights(experts.count, D, biased=experts.router_biases)
        if self.router.bias is not None and not isinstance(experts.gate, Softmax):
            self.router.bias.requires_grad_(False)
        self.each = Each(spec)
        shared = experts.shared_total
        self.shared_up = Weights(gates * shared, D) if shared else None
        self.shared_down = Weights(D, shared) if shared else None

    def forward(self, kernels: Kernels, x_BTD: Tensor) -> Tensor:
        """What the chosen and the shared experts give, weighted and summed."""
        x_MD = x_BTD.flatten(0, 1)
        chosen_MC, weights_MC = self.choice(kernels, x_MD)
        # Rows are sorted by their expert, so that each expert's are one product.
        order_R = chosen_MC.flatten().argsort(stable=True)
        expert_R = chosen_MC.flatten()[order_R]
        if self.experts.capacity is not None:
            kept_R = self.kept(chosen_MC.view(*x_BTD.shape[:2], -1)).flatten()[order_R]
            order_R, expert_R = order_R[kept_R], expert_R[kept_R]
        counts_E = _counts(expert_R, self.experts.count)
        y_RD = self.each(kernels, x_MD[order_R // self.experts.chosen], counts_E)
        if y_RD.shape[0] == chosen_MC.numel():
            y_SD = y_RD[order_R.argsort()]
        else:  # What was dropped is zero.
            nothing_SD = y_RD.new_zeros(chosen_MC.numel(), y_RD.shape[1])
            y_SD = nothing_SD.index_copy(0, order_R, y_RD)
        y_BTCD = y_SD.unflatten(0, (*x_BTD.shape[:2], -1))
        weights_BTC = weights_MC.unflatten(0, x_BTD.shape[:2]).to(y_BTCD.dtype)
        out_BTD = (y_BTCD * weights_BTC.unsqueeze(-1)).sum(dim=2)
        if self.shared_up is None or self.shared_down is None:
            return out_BTD
        h_BTX = self.shared_up.linear(kernels, x_BTD)
        return out_BTD + activated_linear(kernels, h_BTX, self.shared_down, self.kind)

    def choice(self, kernels: Kernels, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and what each counts for [M,C], in fp32."""
        experts, gate = self.experts, self.experts.gate
        bias_E = self.router.bias
        if isinstance(gate, Softmax):
            logits_ME = kernels.linear(x_MD, self.router.weight, bias_E)
            shares_ME = logits_ME.softmax(dim=-1, dtype=torch.float32)
            preference_ME = shares_ME.detach()
        else:
            logits_ME = kernels.linear(x_MD, self.router.weight, None)
            shares_ME = logits_ME.float().sigmoid()
            preference_ME = shares_ME.detach() + (0.0 if bias_E is None else bias_E)
        if experts.groups > 1:
            preference_ME = self._open(preference_ME)
        chosen_MC = preference_ME.topk(experts.chosen, dim=-1).indices
        weights_MC = shares_ME.gather(1, chosen_MC)
        if gate.normalised:
            weights_MC = weights_MC / (weights_MC.sum(dim=-1, keepdim=True) + 1e-20)
        return chosen_MC, weights_MC * experts.scale

    def kept(self, chosen_BTC: Tensor) -> Tensor:
        """Which choices the chosen expert has room for, earlier ones first. Each sequence fills
        experts by itself: how many are computed at once does not matter.
        """
        assert self.experts.capacity is not None
        B, T, C = chosen_BTC.shape
        own_B = torch.arange(B, device=chosen_BTC.device) * self.experts.count
        chosen_R = (chosen_BTC + own_B[:, None, None]).flatten()
        order_R = chosen_R.argsort(stable=True)
        counts_X = _counts(chosen_R, B * self.experts.count)
        first_X = counts_X.cumsum(0) - counts_X
        numbers_R = torch.arange(chosen_R.shape[0], device=chosen_R.device)
        places_R = torch.empty_like(chosen_R)
        places_R[order_R] = numbers_R - first_X[chosen_R[order_R]]
        room = int(self.experts.capacity * T * C / self.experts.count)
        return (places_R < room).view_as(chosen_BTC)

    def _open(self, preference_ME: Tensor) -> Tensor:
        """The preferences without those of closed groups; a group scores as its best expert
        (arXiv:2405.04434), or where experts are balanced by biases as its best two do together
        (arXiv:2412.19437).
        """
        best = 1 if isinstance(self.experts.gate, Softmax) else 2
        groups_MGE = preference_ME.unflatten(1, (self.experts.groups, -1))
        scores_MG = groups_MGE.topk(best, dim=-1).values.sum(dim=-1)
        open_MG = scores_MG.topk(self.experts.groups_open, dim=-1).indices
        closed_MG = torch.ones_like(scores_MG, dtype=torch.bool).scatter(1, open_MG, False)
        return groups_MGE.masked_fill(closed_MG.unsqueeze(-1), -torch.inf).flatten(1)


def _fused(kind: FeedForward) -> Activation | None:
    """The kernels' name of an activation that they have."""
    if isinstance(kind, SwiGLU):
        return "swiglu"
    return "gelu" if isinstance(kind, GELU) and not kind.exact else None


def _counts(expert_R: Tensor, experts: int) -> Tensor:
    """How often each expert is named [E] int32."""
    ones_R = torch.ones_like(expert_R, dtype=torch.int32)
    return ones_R.new_zeros(experts).scatter_add(0, expert_R, ones_R)
