"""Data parallelism: what of each parameter, its gradient and its state a rank keeps (ZeRO,
arXiv:1910.02054), by torch's fully_shard (arXiv:2304.11277).

`none` keeps all and sums gradients; `parameters` gathers a block's when it is needed; in between,
parameters are gathered once a step, and gradients scattered with each micro-batch (`gradients`) or
with the last alone (`optimizer`).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from narrows.model.transformer import Transformer
from narrows.parallel.mesh import Ranks
from narrows.spec.exchange import Bf16, GradientExchange, PowerSGD
from narrows.spec.layout import Layout


def apply(
    model: Transformer, ranks: Ranks, layout: Layout, exchange: GradientExchange,
    whole: Collection[str] = (),
) -> None:  # fmt: skip
    """Shard every block, its experts by themselves, and what is left; but not the `whole` ones,
    which never change, and not what PowerSGD adds up: torch's hook for it is not one of
    fully_shard.
    """
    if ranks.shared_mesh is None or isinstance(exchange, PowerSGD):
        return
    # Nothing here changes in place what a block returns, of which it warns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    assert ranks.expert_mesh is not None
    experts = ranks.expert_mesh.size() if model.spec.experts else 1
    if ranks.shared_mesh.size() == experts == 1:
        return
    # Weights' gradients, taken apart from the input's, are those of parameters still gathered.
    apart = layout.pipeline > 1 and layout.schedule == "zero_bubble"
    reshard = layout.sharding == "parameters" and layout.reshard and not apart
    reduced = torch.bfloat16 if isinstance(exchange, Bf16) else torch.float32
    policy = MixedPrecisionPolicy(reduce_dtype=reduced)
    left = {each for name, each in model.named_parameters() if name in whole}
    offload = OffloadPolicy()
    if layout.offload == "host":
        # Pinned, parameters are brought to the host where they are given memory.
        offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    shard = partial(_shard, policies=(policy, offload), left=left)
    for block in model.blocks.children():
        routed = getattr(block, "experts", None)
        if routed is not None:
            shard(routed.each, ranks.expert_mesh, reshard=reshard)
        shard(block, ranks.shared_mesh, reshard=reshard)
    shard(model, ranks.shared_mesh, reshard=False)
    if layout.pipeline > 1:
        _fetch_within_pieces(model, several=layout.interleave > 1)
    if reshard and dist.get_backend() == "gloo":
        _fetch_while_computing(model)
    # `hidden`, within, would end the root's forward pass early: its tables would be gathered twice.
    for method in ("loss", "judged", "piece"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


def _fetch_while_computing(model: Transformer) -> None:
    """Gather the next block while one computes. Torch leaves that to a device's streams, of which a
    processor has none: there each gather would be waited for where it begins.
    """
    assert isinstance(model, FSDPModule)
    model._set_unshard_async_op(True)
    blocks = dict(model.blocks.named_children())
    for name, block in blocks.items():
        following = blocks.get(str(int(name) + 1))
        if following is not None:
            assert isinstance(block, FSDPModule) and isinstance(following, FSDPModule)
            block.set_modules_to_forward_prefetch([following])


def _fetch_within_pieces(model: Transformer, *, several: bool) -> None:
    """Backward, gather ahead the block before in the same piece and nothing at its first. By itself
    torch gathers what came before in time, another micro-batch's or another piece's, and drops
    what it then does not need.
    """
    assert isinstance(model, FSDPModule)
    before: tuple[int, FSDPModule] | None = None
    for name, block in model.blocks.named_children():
        assert isinstance(block, FSDPModule)
        neighbour = before is not None and before[0] + 1 == int(name)
        # A list of none means torch's own order.
        ahead = before[1] if neighbour and before is not None else block
        block.set_modules_to_backward_prefetch([ahead])
        before = int(name), block
    # Which piece goes backward first the root does not know where there are several.
    if before is not None:
        model.set_modules_to_backward_prefetch([model if several else before[1]])


def micro_batch(model: nn.Module, layout: Layout, *, last: bool) -> None:
    """Say, before a micro-batch, whether it is the step's last."""
    if not isinstance(model, FSDPModule):
        return
    model.set_requires_gradient_sync(_each(layout) or last)
    # Copies of a shard add up once; until then each keeps the sum of its own set.
    model.set_requires_all_reduce(last)
    model.set_is_last_backward(last)
    if layout.sharding != "parameters":
        model.set_reshard_after_backward(last)


def enter_pipeline(model: nn.Module, layout: Layout) -> None:
    """Say that a step's micro-batches follow, of several pieces in turn."""
    if isinstance(model, FSDPModule):
        each = _each(layout) and layout.schedule != "zero_bubble"
        model.set_requires_gradient_sync(each)
        model.set_is_last_backward(each)
        model.set_reshard_after_backward(each and layout.sharding == "parameters")


def leave_pipeline(model: nn.Module) -> None:
    """Scatter what gradients have gathered, as torch's PipelineStage.perform_reduce_grad does for a
    stage: there is no public way to without a backward pass.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_requires_gradient_sync(True)
    model.set_is_last_backward(True)
    model.set_reshard_after_backward(True)
    root = model._get_fsdp_state()
    for state in root._state_ctx.all_states:
        for group in state._fsdp_param_groups:
            group.post_backward()
    root._root_post_backward_final_callback()


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """What there is of gradients, those that wait to be scattered or to be added to other copies'
    included, which no parameter shows.
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            yield parameter.grad
    if not isinstance(model, FSDPModule):
        return
    for state in model._get_fsdp_state()._state_ctx.all_states:
        for group in state._fsdp_param_groups:
            waiting = [group._partial_reduce_output]
            for each in group.fsdp_params:
                whole = getattr(each, "_unsharded_param", None)
                waiting += [each.unsharded_accumulated_grad, None if whole is None else whole.grad]
            yield from (each for each in waiting if each is not None)


def reshard(model: nn.Module) -> None:
    """Drop what a forward pass without a backward one left gathered: the next step changes it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _each(layout: Layout) -> bool:
    """Whether gradients are scattered with each micro-batch."""
    return layout.sharding in ("gradients", "parameters")


def _shard(
    module: nn.Module, mesh: DeviceMesh, *,
    policies: tuple[MixedPrecisionPolicy, OffloadPolicy], left: set[nn.Parameter], reshard: bool,
) -> None:  # fmt: skip
    precision, offload = policies
    sharded = fully_shard(
        module, mesh=mesh, mp_policy=precision, offload_policy=offload,
        reshard_after_forward=reshard, ignored_params=left,
    )  # fmt: skip
    # Losses are divided by the tokens of the whole step already.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
