"""Data parallelism: what of each parameter, its gradient and its state a rank keeps (ZeRO,
arXiv:1910.02054), by torch's fully_shard (arXiv:2304.11277).

`none` keeps all and sums gradients; `parameters` gathers a block's when it is needed; in between,
parameters are gathered once a step, and gradients scattered with each micro-batch (`gradients`) or
with the last alone (`optimizer`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from narrows.model.transformer import Transformer
from narrows.parallel.mesh import Ranks
from narrows.spec.layout import Layout


def apply(model: Transformer, ranks: Ranks, layout: Layout) -> None:
    """Shard every block, its experts by themselves, and what is left."""
    if ranks.shared_mesh is None:
        return
    assert ranks.expert_mesh is not None
    reshard = layout.sharding == "parameters" and layout.reshard
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in model.blocks.children():
        routed = getattr(block, "experts", None)
        if routed is not None:
            _shard(routed.each, ranks.expert_mesh, policy, reshard=reshard)
        _shard(block, ranks.shared_mesh, policy, reshard=reshard)
    _shard(model, ranks.shared_mesh, policy, reshard=False)
    # `hidden`, within, would end the root's forward pass early: its tables would be gathered twice.
    register_fsdp_forward_method(model, "loss")


def micro_batch(model: nn.Module, layout: Layout, *, last: bool) -> None:
    """Say, before a micro-batch, whether it is the step's last."""
    if not isinstance(model, FSDPModule):
        return
    each = layout.sharding in ("gradients", "parameters")
    model.set_requires_gradient_sync(each or last)
    # Copies of a shard add up once; until then each keeps the sum of its own set.
    model.set_requires_all_reduce(last)
    model.set_is_last_backward(last)
    if layout.sharding != "parameters":
        model.set_reshard_after_backward(last)


def _shard(
    module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, *, reshard: bool
) -> None:
    sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    # Losses are divided by the tokens of the whole step already.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
