"""Another layout, or another way with spikes, for a run that has begun: what is learned stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from narrows.plan import gradients, optimizer, processes
from narrows.plan.layouts import Judged
from narrows.plan.network import Network
from narrows.plan.predict import Run, predict
from narrows.plan.recipe import Cadence
from narrows.spec.errors import BadInput
from narrows.spec.job import LayoutIntent, TrainIntent
from narrows.spec.layout import Layout
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Machine
from narrows.spec.objective import Prefer
from narrows.spec.plan import Plan
from narrows.spec.record import from_builtins, with_override

_SETTLED = ("precision", "kernels")
"""What of a layout changes the numbers, or what a checkpoint holds."""
_AXES = (
    "replicas", "tensor", "pipeline", "interleave", "context", "expert", "schedule", "first_fewer",
    "last_fewer",
)  # fmt: skip
_ALONE = {each.name: each.default for each in msgspec.structs.fields(Layout) if each.name in _AXES}
"""No axis but the data's."""
_BEGUN = (
    "name", "seed", "objective", "start", "teacher", "model", "optimizer", "schedule",
    "batch_sequences", "context", "steps", "batch_ramp", "exchange", "adapter", "frozen",
    "evaluation", "checkpoints", "data",
)  # fmt: skip
"""What of a plan a run keeps to its end."""


def changed(plan: Plan, machine: Machine, assignments: Sequence[str]) -> Plan:
    """The plan with `layout.NAME=VALUE` and `train.on_spike=VALUE` put in: the global batch stays,
    the micro-batch shrinks where it must, the threads are shared out anew, the step is predicted
    again. Raises BadInput where the model or the batch cannot be divided so, or the key is settled.
    """
    wanted: dict[str, Any] = {"layout": {}, "train": {}}
    for assignment in assignments:
        wanted = with_override(wanted, assignment)
    intent = from_builtins(LayoutIntent, wanted.pop("layout"), source="--set")
    train = wanted.pop("train")
    settled = [*wanted, *(f"train.{name}" for name in train if name != "on_spike")]
    settled += [f"layout.{name}" for name in _SETTLED if getattr(intent, name) is not None]
    if settled:
        raise BadInput(
            f"{settled[0]} is settled: the run has begun with it",
            hint="change layout.data, tensor, micro_batch, ... or train.on_spike; else a new run",
        )
    on_spike = from_builtins(TrainIntent, train, source="--set").on_spike
    if train:
        plan = msgspec.structs.replace(plan, on_spike=on_spike)
        gradients.check(plan.exchange, on_spike, plan.evaluation, plan.checkpoints)
        optimizer.check(plan.optimizer, plan.layout, plan.exchange, on_spike)
    return relaid(plan, _laid_out(plan, intent), machine)


def continued(plan: Plan, given: Plan, machine: Machine) -> Plan:
    """A run's plan laid out as another that is the same otherwise; raises BadInput where the run
    began with something else.
    """
    differing = [name for name in _BEGUN if getattr(plan, name) != getattr(given, name)]
    differing += [f"layout.{name}" for name in _SETTLED
                  if getattr(plan.layout, name) != getattr(given.layout, name)]  # fmt: skip
    if differing:
        raise BadInput(
            f"the run began with another {differing[0]} than the plan says",
            hint="leave the file out to go on as it began, or begin a new run",
        )
    return relaid(plan, given.layout, machine)


def relaid(plan: Plan, layout: Layout, machine: Machine) -> Plan:
    """The plan with another layout of the same batch, its step predicted again; raises BadInput
    where its ranks cannot exchange gradients as the plan does.
    """
    gradients.islands(plan.exchange, layout)
    optimizer.check(plan.optimizer, layout, plan.exchange, plan.on_spike)
    if layout == plan.layout:
        return plan
    why = {key: reason for key, reason in plan.why.items() if key != "network"}
    if layout.processes > 1:
        why["network"] = Network.of(layout, machine).why()
    new = msgspec.structs.replace(plan, layout=layout, why=why)
    return msgspec.structs.replace(new, predicted=_predicted(new, machine))


def described(layout: Layout) -> str:
    """The layout's processes in words, such as "data 2 x tensor 2, 4 x 2 sequences each"."""
    micro = f"{layout.micro_batch} x {layout.accumulation} sequences each"
    return f"{processes.named(layout) or 'one process'}, {micro}"


def _laid_out(plan: Plan, intent: LayoutIntent) -> Layout:
    old = plan.layout
    given = {k: v for k, v in msgspec.structs.asdict(intent).items() if v is not None}
    count = given.pop("processes", None)
    new = msgspec.structs.replace(old, **given)
    if count is not None:
        # What is not said stays, and data ranks are as many as that leaves; else they are alone.
        if count % (new.processes // new.data):
            new = msgspec.structs.replace(old, **{**_ALONE, **given})
        around = new.processes // new.data
        new = msgspec.structs.replace(new, data=max(1, count // around))
    known = {name: getattr(new, name) for name in LayoutIntent.__struct_fields__}
    known["processes"] = count
    processes.check(LayoutIntent(**known), plan.model, plan.batch_sequences)
    each = plan.batch_sequences // new.batches
    if intent.micro_batch is not None and each % intent.micro_batch:
        raise BadInput(
            f"{each} sequences a process are no multiple of micro-batches of {intent.micro_batch}",
            hint=f"--set layout.micro_batch=N with N a divisor of {each}",
        )
    micro = max(n for n in range(1, min(new.micro_batch, each) + 1) if each % n == 0)
    threads = intent.threads or max(1, old.threads * old.processes // new.processes)
    return msgspec.structs.replace(
        new, micro_batch=micro, accumulation=each // micro, threads=threads
    )


def _predicted(plan: Plan, machine: Machine) -> Ledger:
    before = plan.predicted.total
    cadence = Cadence(
        evaluation=plan.evaluation, checkpoints=plan.checkpoints,
        seconds_evaluating=before.seconds_evaluating, seconds_saving=before.seconds_saving,
    )  # fmt: skip
    run = Run(
        steps=plan.steps, batch_sequences=plan.batch_sequences, cadence=cadence,
        seconds_start=before.seconds_start, reads_text=plan.data is not None,
        gradients=plan.exchange, optimizer=plan.optimizer, learning=plan.learning,
        judged=Judged(
            teacher=None if plan.teacher is None else plan.teacher.model,
            twice=isinstance(plan.objective, Prefer),
        ),
    )  # fmt: skip
    return predict(plan.model, plan.layout, machine, run)
