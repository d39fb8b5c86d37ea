"""What ranks that read different sequences tell each other of what they learned from them.

Unlike a layout it changes what is learned, a little, for fewer bytes on the link between them.
"""

from __future__ import annotations

from narrows.spec.errors import BadInput
from narrows.spec.record import Record, at_least


class Exact(Record, tag="exact", tag_field="type"):
    """Gradients summed in fp32."""


class Bf16(Record, tag="bf16", tag_field="type"):
    """Gradients summed in bf16: half the bytes."""


class PowerSGD(Record, tag="powersgd", tag_field="type"):
    """Each gradient's matrix as a product of two of `rank` columns; what that leaves out is added
    to the next step's (arXiv:1905.13727).

    The first `start_step` steps are exact; the plan fills it in. Matrices are compressed where that
    makes them more than `least_saving` times smaller.
    """

    rank: int = 4
    start_step: int | None = None
    least_saving: float = 2.0

    def __post_init__(self) -> None:
        at_least(1, self, "train.exchange", "rank")
        at_least(0, self, "train.exchange", "least_saving")
        # torch's PowerSGDState refuses less where it keeps anything between steps.
        at_least(2, self, "train.exchange", "start_step", otherwise=", or leave it out")


class LocalSteps(Record, tag="local_steps", tag_field="type"):
    """Ranks train on their own sequences alone; after `every` steps the mean of what each changed
    is a gradient to an outer SGD with Nesterov's momentum (DiLoCo, arXiv:2311.08105, which chose
    these two numbers).
    """

    every: int
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9

    def __post_init__(self) -> None:
        at_least(1, self, "train.exchange", "every")
        if not 0.0 < self.outer_learning_rate <= 2.0:
            what = f"train.exchange.outer_learning_rate is {self.outer_learning_rate}"
            raise BadInput(what, hint="such as 0.7; 1 with no momentum is the plain mean")
        if not 0.0 <= self.outer_momentum < 1.0:
            what = f"train.exchange.outer_momentum is {self.outer_momentum}"
            raise BadInput(what, hint="use 0 to below 1, such as 0.9")

    def meets(self, step: int, steps: int) -> bool:
        """Whether all have the same weights after `step` of `steps` steps."""
        return step % self.every == 0 or step == steps


GradientExchange = Exact | Bf16 | PowerSGD | LocalSteps
EXACT = Exact()
"""What there is without a word about it."""
