"""What learns of a model, made so: parameters frozen, low-rank products set beside matrices.

apply(model, learning) changes the model; a run's adapter is put on a model by `adapted`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from narrows.adapt.experts import AdaptedExperts
from narrows.adapt.low_rank import Frozen, Low, activated_linear, linear, row_growth
from narrows.adapt.packed import pack, packed_shapes, packed_types
from narrows.kernels.interface import Activation, Kernels
from narrows.model.block import Block
from narrows.model.dropout import Draws, dropped, elsewhere
from narrows.model.initial import first_value
from narrows.model.transformer import Transformer
from narrows.model.weights import Packing, Weights
from narrows.spec.adapter import EXPERTS, Base, Learning, LowRank, Target, target_rows
from narrows.spec.errors import BadInput

Numbers = Callable[[Tensor], Tensor]


class Lengths(nn.Module):
    """How long each of so many rows is, over what it was."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows))


class Adapted(nn.Module):
    """A block's matrix that is frozen, and a low-rank product beside the rows of each target.

    It stands in for a model's `Weights`. `a.weight` are the parts' A [P,D], `b` their B [X,R], one
    below the other; `length.weight` of a dora how long each row is over what it was. Matrices in
    fewer bits are `codes` and `scales`. Dropout is drawn from `numbers`, a number for each token.
    """

    def __init__(
        self, plain: Weights, adapter: LowRank, rows: Mapping[Target, tuple[int, int]],
        numbers: Numbers,
    ) -> None:  # fmt: skip
        super().__init__()
        self.adapter, self.targets, self.numbers = adapter, tuple(rows), numbers
        self.rows, self.shape = tuple(rows.values()), (plain.weight.shape[0], plain.weight.shape[1])
        self.bias = plain.bias
        self.weight = plain.weight if adapter.base is None else None
        self.codes: nn.Parameter | None = None
        self.scales: nn.Parameter | None = None
        if adapter.base is not None:
            self.codes, self.scales = _packed(plain.weight, adapter.base)
        self.a: Weights | None = None
        self.b: nn.Parameter | None = None
        self.length: Lengths | None = None
        if rows:
            self._make(plain.weight)

    def linear(self, kernels: Kernels, x_BTX: Tensor) -> Tensor:
        """The product, by the same operations whatever the kernels."""
        if self.length is None:
            return linear(x_BTX, self.frozen, self.bias, self.low, self._dropped(x_BTX))
        out_BTE = linear(x_BTX, self.frozen, None, self.low, self._dropped(x_BTX))
        out_BTE = out_BTE * self.lengths().to(out_BTE.dtype)
        return out_BTE if self.bias is None else out_BTE + self.bias

    def activated(self, kernels: Kernels, h_BTX: Tensor, activation: Activation) -> Tensor:
        """The product of act(h); native kernels have the activation computed again."""
        plain = self.length is None and self._dropped_share == 0.0
        if kernels.name == "native" and plain:
            how = (kernels, activation)
            return activated_linear(h_BTX, self.frozen, self.bias, self.low, how)
        return self.linear(kernels, kernels.activation(h_BTX, activation))

    @property
    def frozen(self) -> Frozen:
        """The matrix as it is kept."""
        kept = self.codes if self.weight is None else self.weight
        assert kept is not None
        return Frozen(kept, self.scales, self.shape[1])

    @property
    def low(self) -> Low | None:
        """What is beside it, if anything."""
        if self.a is None or self.b is None:
            return None
        return Low(self.a.weight, self.b, self.rows, self.shape[0], self.adapter.scale)

    def lengths(self) -> Tensor:
        """What each row of the sum is multiplied by [E]: its length over that of the sum, where it
        has one, as if that were constant (arXiv:2402.09353, section 4.3).
        """
        low = self.low
        assert low is not None and self.length is not None
        growth_E, length_X = row_growth(self.frozen, low), self.length.weight
        if self.rows == ((0, self.shape[0]),):
            return growth_E * length_X
        pieces, at, done = [], 0, 0
        for start, stop in self.rows:
            pieces += [growth_E.new_ones(start - done)]
            pieces += [growth_E[start:stop] * length_X[at : at + stop - start]]
            at, done = at + stop - start, stop
        return torch.cat([*pieces, growth_E.new_ones(self.shape[0] - done)])

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The one matrix that computes the same, in fp32 [E,D]."""
        weight_ED, low = self.frozen.whole(torch.float32).float(), self.low
        if low is None:
            return weight_ED
        wide = low._replace(a_PD=low.a_PD.float(), b_XR=low.b_XR.float())
        summed_ED = weight_ED + wide.spread() @ wide.a_PD
        if self.length is not None:
            # Lengths as training has them: of what it multiplies by.
            summed_ED *= self.lengths().float().unsqueeze(1)
        return summed_ED

    def _make(self, like: Tensor) -> None:
        adapter, count = self.adapter, sum(stop - start for start, stop in self.rows)
        with like.device:
            self.a = Weights(len(self.rows) * adapter.ranks, self.shape[1]).to(like.dtype)
            self.b = nn.Parameter(torch.empty(count, adapter.ranks, dtype=like.dtype))
            if adapter.rule == "dora":
                self.length = Lengths(count).to(like.dtype)

    def _dropped(self, x_BTX: Tensor) -> Tensor | None:
        share = self._dropped_share
        return dropped(x_BTX, self.numbers(x_BTX), share) if share else None

    @property
    def _dropped_share(self) -> float:
        return self.adapter.dropout if self.training and self.b is not None else 0.0


def apply(model: Transformer, learning: Learning) -> dict[str, Packing]:
    """Freeze what does not learn and set low-rank products beside the rest; returns, by name, the
    matrices that are kept in fewer bits. On a model with memory they are packed at once, and what
    is new has its first values.

    Raises BadInput where the model has not what `learning` names.
    """
    learning.check(model.spec)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and learning.learns(name))
    adapter = learning.adapter
    if not isinstance(adapter, LowRank):
        return {}
    adapter = adapter.settled(model.spec)
    kept: dict[str, Packing] = {}
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        for site, (matrix, rows) in enumerate(target_rows(model.spec, layer).items()):
            targets = adapter.of(matrix) if learning.adapts(layer) else ()
            if not targets and (adapter.base is None or matrix.startswith(EXPERTS)):
                continue
            plain, name = block.get_submodule(matrix), f"blocks.{layer}.{matrix}"
            assert isinstance(plain, Weights)
            own: Adapted | AdaptedExperts
            if matrix.startswith(EXPERTS):
                own = AdaptedExperts(plain, adapter)
            else:
                chosen = {target: rows[target] for target in targets if target in rows}
                own = Adapted(plain, adapter, chosen, _numbers(model, _place(model, layer, site)))
                if adapter.base is not None:
                    kept[f"{name}.weight"] = _packing(name, own, adapter.base)
            block.set_submodule(matrix, own)
            _begin(model, name, own)
    return kept


@torch.no_grad()
def adapted(model: Transformer, learning: Learning, trained: Mapping[str, Tensor]) -> Transformer:
    """A model that has memory and weights, with what a run trained of it; raises BadInput where
    that is not of this model and this way to learn.
    """
    apply(model, learning)
    own = {name: each for name, each in model.named_parameters() if each.requires_grad}
    strange = sorted(own.keys() ^ trained.keys())
    if strange or any(own[name].shape != each.shape for name, each in trained.items()):
        raise BadInput(
            "the trained weights are not those of this model and adapter",
            causes=strange[:3],
            hint="was plan.toml changed since? use an untouched run folder",
        )
    for name, parameter in own.items():
        parameter.copy_(trained[name])
    return model


def _packed(weight: Tensor, base: Base) -> tuple[nn.Parameter, nn.Parameter]:
    if not weight.is_meta:
        found = pack(weight, base)
    else:
        shapes = packed_shapes((weight.shape[0], weight.shape[1]), base)
        found = tuple(
            torch.empty(shape, dtype=dtype, device="meta")
            for shape, dtype in zip(shapes, packed_types(base), strict=True)
        )  # type: ignore[assignment]
    codes, scales = (nn.Parameter(each, requires_grad=False) for each in found)
    return codes, scales


def _packing(name: str, own: Adapted, base: Base) -> Packing:
    return Packing(own.shape, (f"{name}.codes", f"{name}.scales"), lambda each: pack(each, base))


def _place(model: Transformer, layer: int, site: int) -> int:
    """Beyond the places of the model's own dropout, four a layer, as many times as it takes."""
    again, site = divmod(site, 4)
    return 4 * ((1 + again) * model.spec.layers + layer) + site


def _numbers(model: Transformer, site: int) -> Numbers:
    def numbers(x_BTX: Tensor) -> Tensor:
        draws = model.draws or Draws(int(torch.randint(2**62, ())))
        drawn = draws.numbers(x_BTX.shape[0], (0, x_BTX.shape[1]), x_BTX.device)
        return elsewhere(drawn, site)

    return numbers


@torch.no_grad()
def _begin(model: Transformer, name: str, own: Adapted | AdaptedExperts) -> None:
    for inner, parameter in own.named_parameters():
        if parameter.requires_grad and not parameter.is_meta:
            whole = f"{name}.{inner}"
            parameter.copy_(first_value(model.spec, whole, parameter.shape, 0))
