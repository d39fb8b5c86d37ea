"""Where each process stands in a layout, and with whom it talks.

Ranks lie as Megatron places them: tensor innermost, then context, data, replicas, pipeline. Experts
are spread over neighbours, whatever axes these are on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from narrows.hardware.waking import waking_gently
from narrows.plan.gradients import islands
from narrows.spec.errors import BadInput
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.layout import Layout

_GRID = ("pipeline", "replicas", "data", "context", "tensor")
_SHARED = ("others", "replicas", "shards")
_EXPERT = ("others", "replicas", "shards", "expert")


class Axis(NamedTuple):
    """This process among those of one kind: how many they are, which one it is, and their group,
    None where it is alone.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The groups of this process. Those of `batches` read different sequences, those of `expert`
    have different experts. Parameters are kept once by the shards of a mesh, [replicas, shards].

    Where ranks take local steps, those of an `island` take each step together, and `near` of its
    batches add up their gradients; `islands` are this place of all of them. Else there is one.
    """

    tensor: Axis = Axis()
    context: Axis = Axis()
    pipeline: Axis = Axis()
    batches: Axis = Axis()
    expert: Axis = Axis()
    everyone: Axis = Axis()
    near: Axis = Axis()
    island: Axis = Axis()
    islands: Axis = Axis()
    shared_mesh: DeviceMesh | None = None
    expert_mesh: DeviceMesh | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.everyone.rank == 0


def ranks_of(layout: Layout, device: torch.device, exchange: GradientExchange = EXACT) -> Ranks:
    """The groups of `layout`, which all processes make together; raises BadInput where they are not
    as many as it takes, or cannot exchange gradients so.
    """
    count = dist.get_world_size() if dist.is_initialized() else 1
    if count != layout.processes:
        raise BadInput(
            f"the layout takes {layout.processes} processes, and there are {count}",
            hint="narrows train starts them itself; torchrun --nproc-per-node=N does, too",
        )
    isles = islands(exchange, layout)
    if count == 1:
        return Ranks()
    sizes = {name: getattr(layout, name) for name in _GRID}
    grid = np.arange(count).reshape(tuple(sizes.values()))
    P, R, D, C, T = grid.shape
    if D * C * T % layout.expert:
        raise BadInput(
            f"experts cannot be spread over {layout.expert} of {D * C * T} ranks of a stage",
            hint=f"layout.expert = a divisor of {D * C * T}",
        )
    sharded = layout.sharding != "none"
    shards, experts = (D * C, D * C * T // layout.expert) if sharded else (1, 1)
    shared = grid.transpose(0, 4, 1, 2, 3).reshape(P * T * isles, -1, shards)
    spread = grid.reshape(P * isles, -1, experts, layout.expert)
    places = _mesh(grid, _GRID, device)
    apart = _mesh(spread, _EXPERT, device)
    batches = _reading(grid, R * D, device)
    everyone = Axis(count, dist.get_rank(), dist.group.WORLD)
    ranks = Ranks(
        tensor=_axis(places, "tensor"),
        context=_axis(places, "context"),
        pipeline=_axis(places, "pipeline"),
        batches=batches,
        expert=_axis(apart, "expert"),
        everyone=everyone,
        near=batches,
        island=everyone,
        shared_mesh=_sharding(_mesh(shared, _SHARED, device)),
        expert_mesh=_sharding(apart),
    )
    return ranks if isles == 1 else _apart(ranks, grid, isles, device)


def _apart(ranks: Ranks, grid: npt.NDArray[np.int64], isles: int, device: torch.device) -> Ranks:
    """The same of ranks that are several islands: each adds up its share of the batches."""
    P, R, D, C, T = grid.shape
    whole = grid.reshape(P, isles, -1, C, T).swapaxes(0, 1).reshape(isles, -1)
    mesh = _mesh(whole, ("islands", "island"), device)
    return replace(
        ranks, near=_reading(grid, R * D // isles, device), island=_axis(mesh, "island"),
        islands=_axis(mesh, "islands"),
    )  # fmt: skip


def _reading(grid: npt.NDArray[np.int64], size: int, device: torch.device) -> Axis:
    """Replicas and data as one axis, or pieces of `size` of it."""
    flat = grid.transpose(0, 3, 4, 1, 2).reshape(-1, size)
    return _axis(_mesh(flat, ("others", "batches"), device), "batches")


def _mesh(grid: npt.NDArray[np.int64], names: tuple[str, ...], device: torch.device) -> DeviceMesh:
    with waking_gently():
        return DeviceMesh(device.type, torch.from_numpy(grid), mesh_dim_names=names)


def _axis(mesh: DeviceMesh, name: str) -> Axis:
    size = mesh[name].size()
    if size == 1:
        return Axis()
    return Axis(size, mesh.get_local_rank(name), mesh.get_group(name))


def _sharding(mesh: DeviceMesh) -> DeviceMesh:
    """What fully_shard takes: shards alone where there is one copy of them."""
    return mesh["replicas", "shards"] if mesh["replicas"].size() > 1 else mesh["shards"]
