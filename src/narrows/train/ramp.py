"""How many steps' data an update reads, by the noise scale that was measured so far."""

from __future__ import annotations

from narrows.spec.plan import Plan
from narrows.spec.record import Record
from narrows.train.noise import NoiseScale

_LOOKS = 5
"""That the noise scale is believed after."""


class Ramp(Record):
    """An update reads `times` steps' data; by now `ahead` more were read than updates made."""

    times: int = 1
    ahead: int = 0

    def updated(self, steps: int) -> Ramp:
        """After an update that read so many steps' data."""
        return Ramp(times=self.times, ahead=self.ahead + steps - 1)

    def grown(self, plan: Plan, noise: NoiseScale) -> Ramp:
        """Twice as much at once, where the plan allows it and the noise asks for it."""
        times, tokens = 2 * self.times, noise.tokens
        if plan.batch_ramp is None or tokens is None or noise.looks < _LOOKS:
            return self
        if times > plan.batch_ramp.times_most(plan.batch_sequences):
            return self
        return Ramp(times=times, ahead=self.ahead) if tokens >= times * plan.step_tokens else self
