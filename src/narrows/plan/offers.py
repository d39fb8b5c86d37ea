"""Other exchanges of gradients, where the link is what holds a step back."""

from __future__ import annotations

from msgspec.structs import replace

from narrows.plan.gradients import islands
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.together import step_seconds
from narrows.spec.errors import BadInput
from narrows.spec.exchange import Bf16, Exact, GradientExchange, LocalSteps, PowerSGD
from narrows.spec.machine import Machine
from narrows.spec.plan import Offer

_KINDS: tuple[GradientExchange, ...] = (
    Bf16(), PowerSGD(), LocalSteps(every=10), LocalSteps(every=50),
)  # fmt: skip
"""Those whose loss benchmarks/exchange.py measures."""
_LEAST = 0.01


def offers(
    shapes: Shapes, layouts: Layouts, machine: Machine, bottleneck: str
) -> tuple[Offer, ...]:
    """What would shorten the step of one layout, the least first; nothing where no link holds it
    back, or somebody chose already.
    """
    if not bottleneck.startswith("link") or not isinstance(layouts.gradients, Exact):
        return ()
    now = float(step_seconds(shapes, layouts, machine)[0, 0])
    found = []
    for kind in _KINDS:
        try:
            islands(kind, layouts.layout(0))
        except BadInput:
            continue
        other = replace(layouts, gradients=kind)
        seconds = float(step_seconds(shapes, other, machine)[0, 0])
        found.append(Offer(exchange=kind, step_seconds=seconds, saving=1.0 - seconds / now))
    return tuple(offer for offer in found if offer.saving >= _LEAST)
