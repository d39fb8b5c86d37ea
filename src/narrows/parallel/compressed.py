"""Gradients added up by PowerSGD (arXiv:1905.13727), as torch's hook for DDP does it.

The hook takes a bucket and asks little of it: a flat buffer and views of it. So all gradients are
one bucket here, added up after the last micro-batch: fully_shard has no such hook, and where a link
is so slow that factors pay, there is little computing left to hide behind.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.device_mesh import DeviceMesh

from narrows.spec.exchange import GradientExchange, PowerSGD

_ONLY = 0
"""The bucket's number, by which torch keeps its state."""
# Rows of a table that no token of the batch read have no gradient: its norm is not divided by.
_EPSILON = 1e-8
_ERROR, _STEPS = "error", "steps"
_Kept = dict[str, Tensor]


class Compressed:
    """What PowerSGD keeps between steps: each rank's error, and factors that all have alike."""

    def __init__(self, settings: PowerSGD, mesh: DeviceMesh) -> None:
        assert settings.start_step is not None, "the plan settles it"
        self.ranks, self.rank = mesh.size(), mesh.get_local_rank()
        self.device = torch.device(mesh.device_type)
        self._hook = PowerSGDState(
            process_group=mesh.get_group(), matrix_approximation_rank=settings.rank,
            start_powerSGD_iter=settings.start_step, min_compression_rate=settings.least_saving,
            orthogonalization_epsilon=_EPSILON, batch_tensors_with_same_shape=True,
        )  # fmt: skip
        self._shapes: dict[str, torch.Size] = {}
        self._before: _Kept = {}

    @torch.no_grad()
    def add_up(self, gradients: dict[str, Tensor]) -> None:
        """Replace gradients by their sum over the ranks, in fp32."""
        names = sorted(gradients)
        self._shapes = {name: gradients[name].shape for name in names}
        flat = torch.cat([gradients[name].flatten().float() for name in names])
        found = _views(flat, self._shapes)
        # The hook makes a new error, and changes its factors in place.
        self._before = {n: t if n == _ERROR else t.clone() for n, t in self._kept().items()}
        # What it asks of torch's GradBucket.
        bucket: Any = SimpleNamespace(
            index=lambda: _ONLY, is_last=lambda: True, buffer=lambda: flat,
            gradients=lambda: list(found.values()),
        )  # fmt: skip
        total: Tensor = powerSGD_hook(self._hook, bucket).wait()
        # The hook takes the mean; losses are divided by the tokens of all ranks already.
        flat.copy_(total).mul_(self.ranks)
        gradients.update(found)

    def settle(self, taken: bool) -> None:
        """After a step. One that was not taken leaves no error behind: it may be no number."""
        if not taken:
            self._keep(self._before)
        self._before = {}

    def own(self) -> dict[str, Tensor]:
        """By parameter, what this rank alone keeps."""
        error = self._kept().get(_ERROR)
        return {} if error is None else _views(error, self._shapes)

    def alike(self) -> dict[str, Tensor]:
        """What all ranks keep alike."""
        factors = {name: each for name, each in self._kept().items() if name != _ERROR}
        return factors | {_STEPS: torch.tensor(self._hook.iter)}

    def load(self, own: dict[str, Tensor], alike: dict[str, Tensor]) -> None:
        """Take back what both gave; without its `own` a rank has left nothing out yet."""
        self._hook.iter = int(alike[_STEPS])
        kept = {name: each.to(self.device) for name, each in alike.items() if name != _STEPS}
        self._shapes = {name: own[name].shape for name in sorted(own)}
        if own:
            error = torch.cat([own[name].flatten() for name in self._shapes])
            kept[_ERROR] = error.to(self.device)
        self._keep(kept)

    def _kept(self) -> _Kept:
        return {name: held[_ONLY] for name, held in self._held().items() if _ONLY in held}

    def _keep(self, kept: _Kept) -> None:
        for name, held in self._held().items():
            held.clear()
            if name in kept:
                held[_ONLY] = kept[name]

    def _held(self) -> dict[str, dict[int, Tensor]]:
        hook = self._hook
        return {_ERROR: hook.error_dict, "p": hook.p_memory_dict, "q": hook.q_memory_dict}


def compressed(exchange: GradientExchange, mesh: DeviceMesh | None) -> Compressed | None:
    """None where gradients are added up as they are, or there is nobody to add them up with."""
    if not isinstance(exchange, PowerSGD) or mesh is None or mesh.size() == 1:
        return None
    return Compressed(exchange, mesh["replicas"] if mesh.ndim > 1 else mesh)


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    pieces = flat.split([math.prod(shape) for shape in shapes.values()])
    return {n: each.view(s) for (n, s), each in zip(shapes.items(), pieces, strict=True)}
