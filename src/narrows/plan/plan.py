"""A job and a machine → a plan: every value settled, each derived one with its why."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

import narrows
from narrows.plan import finetuning, gradients, optimizer, ramp, recipe
from narrows.plan.curves import matmul_peak
from narrows.plan.design import Design, design
from narrows.plan.dial import MARGIN, Allowance, start_seconds, usable_seconds, worthwhile_tokens
from narrows.plan.doubling import doubling
from narrows.plan.explain import alternatives, layout_whys, threads_why
from narrows.plan.layouts import Layouts
from narrows.plan.network import Network
from narrows.plan.offers import offers
from narrows.plan.predict import Run, predict
from narrows.plan.refuse import check_disk, refusal
from narrows.plan.scaling import EPOCHS_MOST
from narrows.plan.search import Found, options, search
from narrows.plan.text import Text, known_text
from narrows.plan.together import evaluation_seconds
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.job import Job
from narrows.spec.layout import Layout
from narrows.spec.machine import Machine
from narrows.spec.objective import Prefer
from narrows.spec.plan import Data, Plan, Provenance, Start
from narrows.spec.record import digest
from narrows.spec.units import Seconds, Tokens

_VALIDATION_SEQUENCES_UNKNOWN = 64
_FILLING_ROUNDS = 4
_SEVERAL_PAY = 0.9
"""Of one process's step, what several must need at most where nobody asked for them: they start
later, and each of them can be lost.
"""


class _Settled(msgspec.Struct, frozen=True, kw_only=True):
    """Everything decided: the design, the layout among all that were found, and the run."""

    wanted: Design
    found: Found
    chosen: int
    run: Run

    @property
    def layout(self) -> Layout:
        return self.found.layout(self.chosen)


def make_plan(
    job: Job, machine: Machine, dataset: Dataset | None, start: Start | None = None,
    teacher: Start | None = None,
) -> Plan:  # fmt: skip
    """Settle `job` on `machine`; `start` is the model that the job starts from, `teacher` the one
    that it learns from.

    Raises BadInput where the job contradicts itself or the data, DoesNotFit where no allowed
    layout fits memory, or the checkpoints the disk.
    """
    text = known_text(job, dataset, start)
    job = msgspec.structs.replace(job, layout=finetuning.layout_of(job))
    wanted = design(job, machine, text, start, teacher)
    train = job.train
    candidates = gradients.able(
        options(job.layout, machine, wanted.model, wanted.batch), train.exchange
    )
    # Its rate waits for the number of steps; what it keeps and moves does not.
    intent, step_tokens = wanted.intent(train), float(wanted.step_tokens)
    updated = recipe.optimizer(intent, wanted.model, wanted.tokens, step_tokens, {})
    candidates = optimizer.able(candidates, updated, train.exchange, train.on_spike)
    candidates = ramp.able(candidates, train.batch_ramp, train.exchange, wanted.batch)
    found = search(wanted.shapes, candidates, machine, reads_text=text.prepared)
    chosen = _choose(wanted, found, machine)
    if chosen is None:
        raise refusal(job, machine, wanted.model, wanted.batch, found)
    run = _run(job, machine, text, wanted, found, chosen)
    settled = _Settled(wanted=wanted, found=found, chosen=chosen, run=run)
    keep = run.cadence.checkpoints.keep
    check_disk(machine, wanted.shapes, settled.layout, run.optimizer, keep)
    return _record(job, machine, dataset, settled)


def _choose(wanted: Design, found: Found, machine: Machine) -> int | None:
    """The candidate that ends first, or in a budget of time the one that does the most steps.
    Where it is open, several processes must be worth it.
    """
    alone = found.column("processes") == 1
    one = _best(wanted, found, machine, alone)
    several = _best(wanted, found, machine, ~alone)
    if one is None or several is None:
        return several if one is None else one
    return several if found.step[0, several] < _SEVERAL_PAY * found.step[0, one] else one


def _best(
    wanted: Design, found: Found, machine: Machine, among: npt.NDArray[np.bool_]
) -> int | None:
    limits = wanted.limits
    if wanted.steps is not None or limits is None or limits.seconds is None:
        steps = wanted.steps or max(1.0, wanted.tokens / wanted.step_tokens)
        return found.best(steps, among=among)
    uncompiled = found.best(1.0, among=among & (found.once[0] == 0))
    if uncompiled is None:
        return found.best(1.0, among=among)
    left = usable_seconds(limits.seconds, start_seconds(machine))
    return found.best(max(1.0, left / float(found.step[0, uncompiled])), among=among)


def _run(job: Job, machine: Machine, text: Text, wanted: Design, found: Found, chosen: int) -> Run:
    """How many steps, and when to evaluate and save."""
    model = wanted.model
    updated = found.group_of(chosen).optimizer
    layouts = Layouts.of(found.layout(chosen), job.train.exchange, updated)
    step = float(found.step[0, chosen])
    forward = float(evaluation_seconds(wanted.shapes, layouts, machine)[0, 0])
    forward /= float(layouts.micro_batch[0])
    validation = text.tokens_validation
    once = start_seconds(machine) + float(found.once[0, chosen])
    if isinstance(wanted.objective, Prefer):
        # What the model says at first of every answer (train/reference.py).
        once += forward * ((text.tokens_train or 0) + (validation or 0)) / model.context
    sequences = _VALIDATION_SEQUENCES_UNKNOWN * int(layouts.micro_batch[0])
    if validation is not None:
        sequences = max(1, (validation - 1) // model.context)

    pace = recipe.Pace(
        step_seconds=step,
        sequence_seconds=forward,
        save_bytes=optimizer.checkpoint_bytes(wanted.shapes, layouts.setting.value_bytes, updated),
        validation_sequences=sequences,
        context=model.context,
    )

    def cadence(steps: int) -> recipe.Cadence:
        return recipe.cadence(job.train, machine, pace, steps)

    limits = wanted.limits
    steps = wanted.steps or max(1, round(wanted.tokens / wanted.step_tokens))
    if limits is None or limits.seconds is None:
        if wanted.steps is None:
            wanted.why.setdefault("train.steps", Tokens(wanted.tokens).text())
    else:
        fitting = _filling(usable_seconds(limits.seconds, once), step, cadence)
        if wanted.steps is None:
            steps, wanted.why["train.steps"] = _capped(fitting, limits, text, wanted)
        _check_time(limits, steps, fitting, once + step)
    _check_tokens(wanted, steps)
    return Run(
        steps=steps, batch_sequences=wanted.batch, seconds_start=once, cadence=cadence(steps),
        reads_text=text.prepared, gradients=job.train.exchange, said=wanted.said,
        attended=wanted.attended, optimizer=updated, learning=wanted.learning,
        judged=wanted.judged,
    )  # fmt: skip


def _capped(fitting: int, limits: Allowance, text: Text, wanted: Design) -> tuple[int, str]:
    """Steps that fit the time, or fewer where tokens are limited or the text is worn out; why."""
    step_tokens = wanted.step_tokens
    reasons = {f"as many as {limits.binding} hold, {MARGIN:.0%} kept back": float(fitting)}
    if limits.tokens is not None:
        reasons[f"the budget of {Tokens(limits.tokens).text()}"] = limits.tokens / step_tokens
    worn = worthwhile_tokens(text.tokens_train) / step_tokens
    reasons[f"{EPOCHS_MOST} epochs: more of the same teaches nothing (arXiv:2305.16264)"] = worn
    if wanted.epochs is not None:
        read = wanted.epochs * text.tokens_train if text.tokens_train else wanted.tokens
        reasons[wanted.why["train.epochs"]] = read / step_tokens
    reason = min(reasons, key=lambda each: reasons[each])
    # A budget that holds no step at all is refused by the caller.
    return min(fitting, max(1, int(reasons[reason]))), reason


def _filling(left: float, step: float, cadence: Callable[[int], recipe.Cadence]) -> int:
    """The most steps that fit the seconds left with their evaluations and checkpoints, or 0."""
    steps = max(0, int(left / step))
    for _ in range(_FILLING_ROUNDS):
        if steps == 0:
            break
        due = cadence(steps)
        over = steps * step + due.seconds_evaluating + due.seconds_saving - left
        if over <= 0:
            break
        steps = max(0, steps - int(over / step) - 1)
    return steps


def _check_time(limits: Allowance, steps: int, fitting: int, first: float) -> None:
    """Refuse a budget that does not hold the steps asked for, or not even one."""
    assert limits.seconds is not None
    if fitting == 0:
        raise BadInput(
            f"{limits.binding} is over before the first step ends, after {Seconds(first).text()}",
            hint=f'a smaller model or batch, or --set budget.time="{round(20 * first + 60)} s"',
        )
    if steps > fitting:
        raise BadInput(
            f"{steps} steps take longer than {limits.binding}",
            hint=f"--set train.steps={fitting}",
        )


def _check_tokens(wanted: Design, steps: int) -> None:
    limits, tokens = wanted.limits, steps * wanted.step_tokens
    if limits is None or limits.tokens is None or wanted.steps is None or tokens <= limits.tokens:
        return
    raise BadInput(
        f"{steps} steps see {Tokens(tokens).text()}, and the budget is "
        f"{Tokens(limits.tokens).text()}",
        hint=f"--set train.steps={max(1, int(limits.tokens / wanted.step_tokens))}",
    )


def _record(job: Job, machine: Machine, dataset: Dataset | None, settled: _Settled) -> Plan:
    wanted, run, layout = settled.wanted, settled.run, settled.layout
    model, why = wanted.model, wanted.why
    tokens = float(run.steps * wanted.step_tokens)
    updated = recipe.optimizer(
        wanted.intent(job.train), model, tokens, float(wanted.step_tokens), why
    )  # fmt: skip
    schedule = recipe.schedule(job.train, model, run.steps, wanted.step_tokens, why)
    exchange = gradients.settled(job.train, schedule, why)
    gradients.check(exchange, job.train.on_spike, run.cadence.evaluation, run.cadence.checkpoints)
    why.update(_layout_whys(job, machine, settled))
    ledger = predict(model, layout, machine, run)
    if job.train.batch_ramp is not None:
        why["train.batch_ramp"] = ramp.why(
            job.train.batch_ramp, wanted.batch, model.context, run.steps, ledger
        )
    layouts = Layouts.of(layout, exchange, updated)
    saving = doubling(wanted.shapes, layouts, machine, _seconds_with_more_memory(settled))
    besides = ledger.total.seconds - ledger.total.seconds_training
    return Plan(
        name=job.name,
        seed=job.seed,
        objective=wanted.objective,
        start=wanted.start,
        teacher=wanted.teacher,
        model=finetuning.whole(model, wanted.start),
        layout=layout,
        optimizer=updated,
        schedule=schedule,
        batch_sequences=wanted.batch,
        context=model.context,
        steps=run.steps,
        on_spike=job.train.on_spike,
        batch_ramp=job.train.batch_ramp,
        exchange=exchange,
        adapter=wanted.learning.adapter,
        frozen=wanted.learning.frozen,
        evaluation=run.cadence.evaluation,
        checkpoints=run.cadence.checkpoints,
        data=_data(dataset),
        power_watts=ledger.watts,
        peak_flop_per_s=matmul_peak(machine, layouts.setting),
        why=why,
        made_from=_provenance(job, machine, dataset),
        bottleneck=saving[0].resource,
        doubling=saving,
        offers=offers(wanted.shapes, layouts, machine, saving[0].resource),
        alternatives=alternatives(settled.found, settled.chosen, run.steps, besides),
        predicted=ledger,
    )


def _layout_whys(job: Job, machine: Machine, settled: _Settled) -> dict[str, str]:
    fields = msgspec.structs.asdict(job.layout)
    asked = {name for name, value in fields.items() if value is not None}
    whys = layout_whys(settled.found, settled.chosen, settled.run.steps, asked)
    if "threads" not in asked:
        whys["layout.threads"] = threads_why(machine, settled.layout.threads)
    if settled.layout.processes > 1:
        whys["network"] = Network.of(settled.layout, machine).why()
    return whys


def _seconds_with_more_memory(settled: _Settled) -> float:
    """The best step of all candidates once twice the memory is free."""
    found = settled.found
    roomy = found.best(settled.run.steps, among=found.peak[0] <= 2 * found.limit, fitting=False)
    return float(found.step[0, settled.chosen if roomy is None else roomy])


def _data(dataset: Dataset | None) -> Data | None:
    if dataset is None:
        return None
    return Data(
        folder=dataset.folder,
        digest=dataset.digest,
        tokens_train=dataset.tokens_train,
        tokens_validation=dataset.tokens_validation,
        bytes_per_token=dataset.bytes_per_token,
    )


def _provenance(job: Job, machine: Machine, dataset: Dataset | None) -> Provenance:
    return Provenance(
        job=digest(job),
        machine=digest(machine),
        machine_name=machine.name,
        dataset=None if dataset is None else dataset.digest,
        narrows=narrows.__version__,
    )
