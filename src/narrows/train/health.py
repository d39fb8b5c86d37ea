"""When training goes wrong: say what, where first, and stop with the last good state kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor, nn

from narrows.parallel.collectives import add_up
from narrows.parallel.mesh import Axis
from narrows.parallel.running import Rows
from narrows.parallel.split import Split, local
from narrows.spec.errors import Diverged

_WINDOW, _SETTLED = 50, 20
_PARDONS = 5
_AFTER = "lower train.learning_rate in a new run, or resume with --set train.on_spike=skip"


class LossWatch:
    """Remembers recent losses, and tells when one leaves them behind or is no number. Those of
    `few` values a step, as of 32 examples' classes, scatter as no token's do.
    """

    def __init__(self, recent: Iterable[float] = (), spikes: int = 0, *, few: bool = False) -> None:
        self.recent = deque(recent, maxlen=_WINDOW)
        self.spikes, self._few, self._calm = spikes, few, 0

    def accepts(self, loss: float, gradient_norm: float) -> bool:
        """Not where the loss jumped: over the recent median by half of it and by ten times the
        usual scatter; of few values over four times the highest, too.
        """
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return False
        if len(self.recent) < _SETTLED:
            return True
        usual = median(self.recent)
        scatter = median(abs(value - usual) for value in self.recent)
        most = usual + max(0.5 * usual, 10.0 * scatter)
        return loss <= (max(most, 4.0 * max(self.recent)) if self._few else most)

    def took(self, loss: float) -> None:
        """A step of this loss was taken."""
        self.recent.append(loss)
        self._calm += 1
        if self._calm >= _WINDOW:
            self.spikes = 0

    def pardons(self) -> bool:
        """Whether one more step may be left out: so many, until as many as are remembered went
        well.
        """
        self.spikes, self._calm = self.spikes + 1, 0
        return self.spikes <= _PARDONS

    def shared(self, axis: Axis, device: torch.device) -> None:
        """Remember what the first along the axis does."""
        recent = torch.zeros(_WINDOW, dtype=torch.float64, device=device)
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        if axis.rank == 0:
            recent[: len(self.recent)] = torch.tensor(list(self.recent), dtype=torch.float64)
            counts[0], counts[1] = len(self.recent), self.spikes
        number, self.spikes = add_up(counts, axis).tolist()
        self.recent = deque(add_up(recent, axis).tolist()[:number], maxlen=_WINDOW)

    def jump(self, step: int, loss: float, gradient_norm: float) -> Diverged:
        """What to say of a loss that jumped."""
        usual = median(self.recent) if self.recent else math.nan
        return Diverged(
            f"the loss jumped to {loss:.3f} at step {step} (recent median {usual:.3f})",
            causes=[f"gradient norm {gradient_norm:.3g} before clipping"],
            hint=_AFTER,
        )


def non_finite(split: Split, rows: Rows, step: int, loss: float) -> Diverged:
    """What to say of a loss or a gradient that is not finite: the first module where it was so, of
    this process; all call it together.
    """
    first = first_non_finite(split, rows)
    what = "loss" if not math.isfinite(loss) else "gradient"
    return Diverged(
        f"the {what} was not finite at step {step}",
        causes=[
            f"first: {first}"
            if first
            else "forward values are finite: the backward pass overflowed"
        ],
        hint=_AFTER,
    )


@torch.no_grad()
def first_non_finite(split: Split, rows: Rows) -> str | None:
    """Name of the first parameter, else module output, that is not finite for these rows."""
    parameters = split.parameters().items()
    poisoned = [name for name, each in parameters if not torch.isfinite(local(each)).all()]
    # All look at outputs or none does: to compute them takes all.
    if split.total(float(bool(poisoned))) > 0.0:
        return f"parameter {poisoned[0]}" if poisoned else "a parameter of another process"
    found: list[str] = []

    def look(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            values = output if isinstance(output, tuple) else (output,)
            tensors = [v for v in values if isinstance(v, Tensor)]
            if not found and not all(bool(torch.isfinite(t).all()) for t in tensors):
                found.append(f"output of {name}")

        return hook

    named = [(name, module) for name, module in split.model.named_modules() if name]
    handles = [module.register_forward_hook(look(name)) for name, module in named]
    try:
        split.loss(rows, split.layout.loss_chunk)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
