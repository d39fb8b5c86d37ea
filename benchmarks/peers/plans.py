"""Our side of a work: the job that asks for it, its plan, and the plan's matrix products."""

from __future__ import annotations

from peers.works import Work

from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.operation import Product
from narrows.plan.operations import step_operations
from narrows.plan.plan import make_plan
from narrows.spec.job import Job, ModelIntent, TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.model import LayerNorm, Learned, RMSNorm, Rotary
from narrows.spec.plan import Plan
from narrows.spec.record import from_builtins, to_builtins, with_override

STEPS = 100_000
"""Of the run that is planned: long enough that a compilation would pay, were it worth it."""


def job_of(work: Work, layout: list[str]) -> Job:
    """The work as an intent; `layout` holds KEY=VALUE choices that somebody insists on."""
    gpt2 = work.family == "gpt2"
    job = Job(
        name=f"benchmark-{work.name}",
        model=ModelIntent(
            kind=work.family, layers=work.layers, width=work.width, heads=work.heads,
            kv_heads=work.kv_heads, feed_forward_width=work.feed_forward_width,
            vocabulary=work.vocabulary, context=work.context, tied_embeddings=True,
            positions=Learned() if gpt2 else Rotary(base=100_000.0),
            norm=LayerNorm() if gpt2 else RMSNorm(),
        ),
        train=TrainIntent(steps=STEPS, batch_sequences=work.batch, learning_rate=1e-4),
    )  # fmt: skip
    plain = to_builtins(job)
    for choice in layout:
        plain = with_override(plain, f"layout.{choice}")
    return from_builtins(Job, plain, source="--layout")


def plan_of(job: Job, machine: Machine) -> Plan:
    """The plan, by its own search."""
    return make_plan(job, machine, None)


def products_of(plan: Plan) -> list[dict[str, object]]:
    """Every matrix product of one step: m, n, k, direction and how often."""
    operations = step_operations(Shapes.of([plan.model]), Layouts.of(plan.layout))
    return [
        {
            "m": int(operation.work.m.item()),
            "n": int(operation.work.n.item()),
            "k": int(operation.work.k.item()),
            "direction": operation.work.direction,
            "count": float(operation.count.item()),
        }
        for operation in operations
        if isinstance(operation.work, Product) and operation.count.item()
    ]
