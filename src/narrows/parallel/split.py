"""A layout applied to a model: what this process has of it, and how its gradients become whole.

The model is made on the meta device, where it costs nothing; its parameters are cut by name; the
parts are given memory and first values; and from then on the model computes this rank's share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from narrows.kernels.interface import Kernels
from narrows.model.block import Wrapper
from narrows.model.initial import first_value
from narrows.model.transformer import Transformer
from narrows.model.weights import Packing
from narrows.parallel import context, data, expert, pipeline, stages, tensor, vocabulary
from narrows.parallel.collectives import add_up
from narrows.parallel.compressed import Compressed, compressed
from narrows.parallel.mesh import Axis, Ranks
from narrows.parallel.parts import Part
from narrows.parallel.running import Beside, InTurn, Loss, Objective, Rows, Runner, Tokens
from narrows.spec.errors import BadInput
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec
from narrows.spec.pieces import even

First = Callable[[str, Sequence[int]], Tensor | None]
Prepare = Callable[[Transformer], dict[str, Packing]]


class Making(NamedTuple):
    """How a model is made: its kernels, what wraps its blocks, where and of what type it is, how
    its gradients are exchanged, and what it is taught by. What a parameter is at first is `first`'s
    to say, by its name and whole shape, of all but those of which it says None. Before it is cut
    `prepare` changes it: freezes some of it, sets parameters beside, keeps some in fewer bits.
    """

    kernels: Kernels
    wrap: Wrapper | None
    device: torch.device
    dtype: torch.dtype
    exchange: GradientExchange = EXACT
    objective: Objective = Tokens()
    first: First | None = None
    prepare: Prepare | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """The model of this process. `parts` says what it has of each parameter; of parameters that
    several ranks have alike, one owns it: it counts in norms and is written by that rank alone.
    `partial` have gradients that tensor ranks add up, `copied` such as the first and the last rank
    of a pipeline do. The `runner` takes micro-batches through what is there of the model.
    What is `frozen` has no gradients. Of what learns in bf16, `rests` are what rounding took,
    until an optimizer takes them.
    Gradients that are `compressed` are no part of the backward pass: `complete` adds them up.
    """

    model: Transformer
    ranks: Ranks
    layout: Layout
    parts: dict[str, Part]
    owned: frozenset[str]
    partial: frozenset[str]
    copied: frozenset[str]
    runner: Runner
    objective: Objective
    compressed: Compressed | None = None
    frozen: frozenset[str] = frozenset()
    rests: dict[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that learn, by name."""
        named = self.model.named_parameters()
        return {name: each for name, each in named if name not in self.frozen}

    def own(self, batch: int) -> tuple[int, int]:
        """Of a batch of sequences, the first that this process reads and how many."""
        each = batch // self.ranks.batches.size
        return self.ranks.batches.rank * each, each

    def run(self, given: Rows, chunk: int, beside: Beside | None = None) -> Tensor:
        """Forward and backward over this process's sequences; returns the mean loss over what all
        processes count that take this step together.
        """
        counted = torch.tensor(self.objective.count(given), device=given.inputs_BT.device)
        scale = 1.0 / max(1, int(add_up(counted, self.ranks.near)))
        first = self.ranks.batches.rank * -(-len(given.inputs_BT) // self.layout.micro_batch)
        beside = (beside or Beside()).behind(first)
        total = self.runner.step(self._own(given), Loss(chunk, scale), beside)
        return add_up(self._added(total), self.ranks.near)

    @torch.no_grad()
    def loss(self, given: Rows, chunk: int) -> tuple[Tensor, int, int | None]:
        """Sum of the losses of this process's sequences, what it is divided by for the mean, and
        how many of these were right; all processes call it as often.
        """
        total = self.runner.forward(self._own(given), Loss(chunk, 1.0))
        return self._added(total), self.objective.count(given), self.objective.right()

    def _own(self, given: Rows) -> Rows:
        if self.ranks.context.size == 1:
            return given
        assert given.documents is None
        return Rows(*context.share(given[:2], self.ranks.context, self.model.spec, self.layout))

    def _added(self, total: Tensor) -> Tensor:
        """The sum over ranks that take parts of the same sequences' loss."""
        return add_up(add_up(total, self.ranks.pipeline), self.ranks.context)

    def total(self, value: float, axis: Axis | None = None) -> float:
        """The sum of what every process has of something; of those that take each step together, or
        along an axis.
        """
        axis = axis or self.ranks.island
        if axis.group is None:
            return value
        device = next(self.model.parameters()).device
        return float(add_up(torch.tensor(value, dtype=torch.float32, device=device), axis))

    @torch.no_grad()
    def complete(self, gradients: dict[str, Tensor]) -> None:
        """Make whole, in place, what ranks have parts of after the last micro-batch."""
        if self.compressed is not None:
            self.compressed.add_up(gradients)
        for name in sorted(self.copied & gradients.keys()):
            pipeline.add_copies(gradients[name], self.ranks)
        partial = [gradients[name] for name in sorted(self.partial & gradients.keys())]
        if not partial:
            return
        flat = add_up(torch.cat([each.flatten() for each in partial]), self.ranks.tensor)
        sizes = [each.numel() for each in partial]
        for gradient, piece in zip(partial, flat.split(sizes), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def settle(self, taken: bool) -> None:
        """Say, after `complete`, whether a step is made of these gradients."""
        if self.compressed is not None:
            self.compressed.settle(taken)


def split(
    spec: ModelSpec, layout: Layout, ranks: Ranks, making: Making, *, seed: int | None
) -> Split:
    """Build this process's part of the model with its first values; without a `seed` it stays on
    the meta device.
    """
    with torch.device("meta"):
        model = Transformer(spec, making.kernels, wrap=making.wrap).to(making.dtype)
    prepared = _prepare(model, layout, making)
    parts = {name: Part.whole(p.shape) for name, p in model.named_parameters()}
    pieces = stages.own_pieces(spec, layout, ranks.pipeline.rank)
    copied = stages.cut(spec, parts, pieces)
    sequence = layout.sequence_parallel
    alike = tensor.cut(spec, parts, ranks.tensor, sequence=sequence)
    expert.cut(spec, parts, ranks.expert)
    _cut_parameters(model, parts)
    stages.apply(model, pieces)
    tensor.apply(model, ranks.tensor, sequence=sequence)
    vocabulary.apply(model, ranks.tensor, sequence=sequence)
    context.apply(model, ranks.context, layout)
    expert.apply(model, ranks, layout)
    whole = prepared.frozen if layout.sharding != "parameters" else frozenset[str]()
    data.apply(model, ranks, layout, making.exchange, whole)
    parts = _sharded(parts, ranks, whole)
    rests: dict[str, Tensor] = {}
    if seed is not None:
        model.to_empty(device=making.device)
        rests = _fill(model, parts, prepared, _first(model.spec, seed, making.first))
    owned = {name for name in parts if _owns(name, alike.every, ranks)}
    # The first rank of a pipeline owns what the last has a copy of.
    owned -= copied if ranks.pipeline.rank else set()
    runner: Runner = InTurn(model, layout, making.objective)
    if layout.pipeline > 1:
        runner = pipeline.Pipeline(model, pieces, ranks, layout)
    return Split(
        model=model, ranks=ranks, layout=layout, parts=parts, partial=frozenset(alike.partial),
        owned=frozenset(owned), copied=frozenset(copied), runner=runner,
        objective=making.objective, frozen=prepared.frozen, rests=rests,
        compressed=compressed(making.exchange, ranks.shared_mesh),
    )  # fmt: skip


class _Prepared(NamedTuple):
    """What a model is after it was prepared: what it keeps in fewer bits, what does not learn, and
    what the plain model has not.
    """

    packed: dict[str, Packing] = {}
    frozen: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()


def _prepare(model: Transformer, layout: Layout, making: Making) -> _Prepared:
    if making.prepare is None:
        return _Prepared()
    for name in ("tensor", "pipeline", "context", "expert"):
        if getattr(layout, name) > 1:
            raise BadInput(
                f"a model that is partly frozen cannot be divided by layout.{name} = "
                f"{getattr(layout, name)}",
                hint=f"--set layout.{name}=1, with layout.data and layout.sharding instead",
            )
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    packed = making.prepare(model)
    after = {name: each.requires_grad for name, each in model.named_parameters()}
    frozen = {name for name, learns in after.items() if not learns and before.get(name, True)}
    return _Prepared(packed, frozenset(frozen), frozenset(after.keys() - before.keys()))


@torch.no_grad()
def _fill(
    model: Transformer, parts: dict[str, Part], prepared: _Prepared,
    first: Callable[[str, Sequence[int], bool], Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """Give all parameters their first values; returns the rests of those that learn in bf16."""
    rests = {}
    own = {name: local(each) for name, each in model.named_parameters()}
    packed = {name for each in prepared.packed.values() for name in each.names}
    for name in own.keys() - packed:
        whole = first(name, parts[name].shape, name in prepared.added)
        values = parts[name].of(whole)
        if name in prepared.frozen or own[name].dtype != torch.bfloat16:
            own[name].copy_(values)
            continue
        rests[name] = torch.empty_like(own[name], dtype=torch.int16)
        model.kernels.part_(own[name], rests[name], values.to(own[name].device, torch.float32))
    for plain, each in prepared.packed.items():
        whole = first(plain, each.shape, False)
        for name, values in zip(each.names, each.pack(whole), strict=True):
            own[name].copy_(parts[name].of(values))
    return rests


def _first(
    spec: ModelSpec, seed: int, first: First | None
) -> Callable[[str, Sequence[int], bool], Tensor]:
    """What a parameter is at first; what was `added` nobody but the seed knows."""

    def value(name: str, shape: Sequence[int], added: bool) -> Tensor:
        whole = None if first is None or added else first(name, shape)
        return first_value(spec, name, shape, seed) if whole is None else whole

    return value


def local(parameter: Tensor) -> Tensor:
    """The memory that this process has of a parameter or a gradient."""
    found = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return found.detach()


def _cut_parameters(model: nn.Module, parts: dict[str, Part]) -> None:
    for name, parameter in list(model.named_parameters()):
        owner, _, kind = name.rpartition(".")
        part = parts.get(name)
        cut = None
        if part is not None:
            cut = nn.Parameter(
                parameter.new_empty(part.local_shape), requires_grad=parameter.requires_grad
            )
        setattr(model.get_submodule(owner), kind, cut)


def _sharded(parts: dict[str, Part], ranks: Ranks, whole: frozenset[str]) -> dict[str, Part]:
    """What fully_shard leaves of each part but the `whole` ones: a piece of its first dimension."""
    found = {}
    for name, part in parts.items():
        mesh = _mesh(name, ranks)
        if mesh is None or name in whole:
            found[name] = part
            continue
        shards = mesh["shards"] if mesh.ndim > 1 else mesh
        piece = even(part.local_shape[0], shards.size(), shards.get_local_rank())
        found[name] = part.cut(0, piece)
    return found


def _mesh(name: str, ranks: Ranks) -> DeviceMesh | None:
    return ranks.expert_mesh if ".experts.each." in name else ranks.shared_mesh


def _owns(name: str, alike: set[str], ranks: Ranks) -> bool:
    mesh = _mesh(name, ranks)
    if mesh is not None and mesh.ndim > 1 and mesh.get_local_rank("replicas"):
        return False
    return not (ranks.tensor.rank and name in alike)
