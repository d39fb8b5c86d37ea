"""Train by a plan: the one loop, and everything a run folder keeps of it.

plan → Trainer.step, again and again → metrics.jsonl, checkpoints, and at the end ledger.json
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from narrows.data.packed import Packed
from narrows.data.published import FILES as WORDS
from narrows.data.staging import Split
from narrows.hardware.power import PowerMeter
from narrows.kernels.meter import MemoryMeter
from narrows.model.transformer import Transformer
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput, Diverged, Interrupted
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Machine
from narrows.spec.objective import OF_DOCUMENTS, Distil, NextToken, Prefer
from narrows.spec.plan import Plan
from narrows.spec.record import load, save
from narrows.spec.resuming import resuming
from narrows.train.account import Account
from narrows.train.checkpoint import Checkpoints, State
from narrows.train.feeding import feed
from narrows.train.group import joined, speaks
from narrows.train.health import LossWatch, non_finite
from narrows.train.lock import disk_errors, locked
from narrows.train.metrics import Metrics, NoMetrics, ProgressLine
from narrows.train.noise import NoiseScale
from narrows.train.pulse import Pulse, alive
from narrows.train.ramp import Ramp
from narrows.train.reference import refer
from narrows.train.schedule import listened
from narrows.train.sentry import watched
from narrows.train.signals import StopRequest
from narrows.train.state import contents, newest, restore
from narrows.train.step import StepResult, Trainer, all_finite, evaluate, read
from narrows.train.timeline import STEPS, WARM, Recorder

Sampler = Callable[[Transformer], str]


class Also(NamedTuple):
    """What a run keeps beside its losses: text that it writes, and what processes do when; and who
    hears of a validation loss after so many steps.
    """

    sample: Sampler | None = None
    timeline: bool = False
    evaluated: Callable[[int, float], None] | None = None


_NOTHING = Also()


def train(
    plan: Plan, run: Path, *, machine: Machine, resume: bool, talk: Callable[[str], None],
    also: Also = _NOTHING,
) -> Ledger:  # fmt: skip
    """Run `plan` in the folder `run` and return the measured ledger.

    Raises BadInput where the run cannot start, RunFailed where it had to stop, and Interrupted
    after ctrl-C; the newest checkpoint is kept in every case and `resume` goes on from it.
    """
    with (
        locked(run), alive() as pulse, disk_errors(run), joined(machine.device.kind) as store,
        watched(pulse, store, run, talk),
    ):  # fmt: skip
        talk = talk if speaks() else _nobody
        session = _Session(plan, run, machine, talk, pulse)
        if resume:
            session.resume()
            if session.step >= plan.steps and (run / "ledger.json").exists():
                talk("the run is finished: nothing is left to train")
                session.metrics.close()
                return load(Ledger, run / "ledger.json")
        else:
            session.begin()
            session.refer(resume=False)
        if also.timeline:
            first = max(session.step, min(session.step + WARM, plan.steps - STEPS))
            session.recorder = Recorder(session.trainer, run, first)
        with StopRequest() as stop:
            return session.loop(stop, also)


class _Session:
    """One start of a run: from where it begins or resumes until it ends or stops."""

    def __init__(
        self, plan: Plan, run: Path, machine: Machine, talk: Callable[[str], None], pulse: Pulse
    ) -> None:
        self.plan, self.run, self.machine, self.talk = plan, run, machine, talk
        self.pulse = pulse
        if plan.data is None:
            raise BadInput("the plan has no data to train on", hint="add [data] to the job")
        dataset = load(Dataset, Path(plan.data.folder) / "dataset.json")
        self.training = feed(plan, dataset, "train")
        self.validation = feed(plan, dataset, "validation")
        self.device = _device(machine)
        self.memory = MemoryMeter(self.device.type)
        self.power = PowerMeter(machine)
        self.account = Account(plan, machine, self.power, self.memory)
        self.trainer = Trainer(plan, self.device, run)
        self.trainer.accept, self.trainer.sign = self._accept, pulse.again
        self.trainer.settle = self._settle
        everyone = self.trainer.ranks.everyone
        self.checkpoints = Checkpoints(
            run / "checkpoints", plan.checkpoints.keep, talk, everyone.rank, everyone.size
        )
        self.metrics: Metrics | NoMetrics
        self.few = isinstance(plan.objective, (*OF_DOCUMENTS, Prefer))
        self.watch = LossWatch(few=self.few)
        self.recorder: Recorder | None = None
        self.step, self.best, self.warned = 0, math.inf, False
        self.left_out = 0

    def refer(self, *, resume: bool) -> None:
        """What the model said at first, where it is to leave that behind."""
        if not isinstance(self.plan.objective, Prefer):
            return
        assert isinstance(self.training, Packed) and isinstance(self.validation, Packed)
        self.pulse.beat(self.step, "evaluating")
        feeds: dict[Split, Packed] = {"train": self.training, "validation": self.validation}
        refer(self.trainer, feeds, self.run, resume=resume)

    def begin(self, at: int | None = None) -> None:
        """A fresh run: what it is made from is laid beside it first. At step 0 it begins again, and
        what happened before stays.
        """
        if not self.trainer.ranks.first:
            self.metrics = NoMetrics()
            return
        save(self.plan, self.run / "plan.toml")
        save(self.machine, self.run / "machine.toml")
        assert self.plan.data is not None
        for name in (*WORDS, "dataset.json"):
            source = Path(self.plan.data.folder) / name
            if source.exists():
                shutil.copyfile(source, self.run / name)
        (self.run / "samples.jsonl").unlink(missing_ok=True)
        self.metrics = Metrics(self.run, at)

    def resume(self) -> None:
        """Take up the newest good checkpoint; with none, begin again."""
        found = newest(self.trainer, self.checkpoints)
        self.refer(resume=found is not None)
        if found is None:
            self.talk("no checkpoint yet: training starts from the beginning")
            return self.begin(at=0)
        path, state = found
        self.account.elapsed_before = state.elapsed_s
        self.best = self.checkpoints.best()
        self._take(path, state)
        self.watch = LossWatch(state.recent, state.spikes, few=self.few)
        self.metrics.write(step=self.step, event="resume", message=f"from {path.name}")
        self.talk(f"resuming at step {self.step} of {self.plan.steps}")

    def _take(self, path: Path, state: State) -> None:
        """Go on from a checkpoint; what was written of later steps goes."""
        restore(self.trainer, path, self.talk)
        self.step, self.trainer.skipped = state.step, state.skipped
        self.trainer.heard, self.trainer.noise = state.heard, NoiseScale(state.noise)
        self.trainer.ramp = state.ramp or Ramp()
        self.metrics = Metrics(self.run, self.step) if self.trainer.ranks.first else NoMetrics()

    def loop(self, stop: StopRequest, also: Also) -> Ledger:
        """Every step that is left."""
        plan = self.plan
        line = ProgressLine(plan.steps if self.trainer.ranks.first else None)
        self.account.started()
        try:
            stopping = self._stopping(stop)
            while self.step < plan.steps and not stopping:
                before = self.step
                self._train_step(line)
                self._agree()
                done = self.step == plan.steps
                validation = None
                if done or _passed(before, self.step, plan.evaluation.every):
                    validation = self._evaluate()
                    if also.evaluated is not None:
                        also.evaluated(self.step, validation)
                # Asked once a step, so that what ends the loop has been saved.
                stopping = self._stopping(stop)
                if done or stopping or _passed(before, self.step, plan.checkpoints.every):
                    self._save(validation, also.sample)
            self.pulse.beat(self.step, "ending")
            self.checkpoints.wait()
            line.end()
            if self.step < plan.steps:
                raise Interrupted(
                    f"stopped after step {self.step} of {plan.steps}; the state is saved",
                    hint=resuming(self.run),
                )
            if self.account.sampled:
                self.trainer.accept = all_finite
                self.account.look(self.trainer, self.step - 1, self.training)
            return self._ledger()
        finally:
            line.end()
            self.metrics.close()

    def _stopping(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop: all see the same, where all have the same
        weights.
        """
        trainer = self.trainer
        if not trainer.meets(self.step):
            return False
        return trainer.split.total(float(stop.asked), trainer.ranks.everyone) > 0.0

    def _train_step(self, line: ProgressLine) -> None:
        number, times = self.step, self.trainer.ramp.times
        self.pulse.beat(number)
        noting = self.recorder.step(number) if self.recorder else nullcontext()
        with self.account.timing_step(), noting:
            result = self.trainer.step(number, self.training)
        if not result.taken:
            self._leave_out(number, result)
            return
        self.watch.took(result.loss)
        self.step += result.steps
        values = self.account.row(self.step, result)
        self.metrics.write(**values)
        line.show(values, self.account.seconds_left(self.step))
        if self.trainer.ramp.times > times:
            self._grown()
        self._warn()

    def _grown(self) -> None:
        """The batch has become larger: said, and written down."""
        sequences = self.trainer.ramp.times * self.plan.batch_sequences
        noise = self.trainer.noise.tokens or 0.0
        message = f"{sequences} sequences an update: the gradients' noise scale is {noise:,.0f} "
        message += f"tokens, no less than the {sequences * self.plan.context:,} of these"
        self.metrics.write(step=self.step, event="batch", message=message)
        self.talk(f"\n{message}")

    def _settle(self) -> None:
        """Wait for the checkpoint that is written from what the step is about to change."""
        writing = self.checkpoints.writing
        if writing:
            self.pulse.beat(self.step, "saving")
        with self.account.timing_wait():
            self.checkpoints.wait()
        if writing:
            self.pulse.beat(self.step)

    def _accept(self, loss: float, norm: float) -> bool:
        """Whether every process that takes the step accepts it: they find the same, but for the
        last digit.
        """
        return self.trainer.split.total(float(not self.watch.accepts(loss, norm))) == 0.0

    def _agree(self) -> None:
        """Islands that have met remember the same losses, which a checkpoint keeps, and hear what
        others left out.
        """
        trainer, islands = self.trainer, self.trainer.ranks.islands
        if trainer.outer is None or not trainer.meets(self.step):
            return
        self.watch.shared(islands, self.device)
        others = int(trainer.split.total(float(self.left_out), islands)) - self.left_out
        self.left_out = 0
        if others:
            message = f"other islands left out {others} updates since all met"
            self.metrics.write(step=self.step, event="skip", message=message)
            self.talk(f"\nwarning: {message}")

    def _leave_out(self, number: int, result: StepResult) -> None:
        """The plan's way with a step whose loss jumps or is no number; raises Diverged where that
        is to stop, or where it comes too often.
        """
        failure = self._diagnosed(number, result)
        told = "; ".join([failure.what, *failure.causes])
        if self.plan.on_spike == "stop" or not self.watch.pardons():
            self.metrics.write(step=number, event="stopped", message=failure.what)
            raise failure
        found = None
        if self.plan.on_spike == "rollback":
            self.checkpoints.wait()
            found = newest(self.trainer, self.checkpoints)
        if found is None:
            self.step, self.left_out = self.step + result.steps, self.left_out + 1
            message = f"{told}: its update is left out"
            self.metrics.write(step=number, event="skip", message=message)
        else:
            path, state = found
            self.metrics.close()
            skipped = self.trainer.skipped + number + result.steps - state.step
            self._take(path, state)
            self.watch = LossWatch(state.recent, self.watch.spikes, few=self.few)
            self.trainer.skipped = skipped
            message = f"{told}: back to {path.name}, and on with the data that follows"
            self.metrics.write(step=state.step, event="rollback", message=message)
        self.talk(f"\nwarning: {message}")

    def _diagnosed(self, number: int, result: StepResult) -> Diverged:
        if math.isfinite(result.loss) and math.isfinite(result.gradient_norm):
            return self.watch.jump(number, result.loss, result.gradient_norm)
        start = (number + self.trainer.skipped) * self.plan.batch_sequences
        rows = read(self.training, start, 1, self.device)
        return non_finite(self.trainer.split, rows, number, result.loss)

    def _warn(self) -> None:
        found = None if self.warned else self.account.unforeseen()
        if found is None:
            return
        self.warned = True
        event, message = found
        self.metrics.write(step=self.step, event=event, message=message)
        self.talk(f"\nwarning: {message}")

    def _evaluate(self) -> float:
        self.pulse.beat(self.step, "evaluating")
        with self.account.timing_evaluation():
            count = self.plan.evaluation.sequences
            with self.trainer.optimizer.answering():
                loss, right = evaluate(self.trainer, self.validation, count)
        self.trainer.heard = listened(self.plan.schedule, self.trainer.heard, loss)
        told = {} if right is None else {"accuracy": right}
        assert self.plan.data is not None
        if isinstance(self.plan.objective, NextToken | Distil):
            told["bits_per_byte"] = loss / math.log(2.0) / self.plan.data.bytes_per_token
        self.metrics.write(
            step=self.step, tokens=float(self.step * self.plan.step_tokens), validation_loss=loss,
            **told,
        )  # fmt: skip
        return loss

    def _save(self, validation: float | None, sample: Sampler | None) -> None:
        best = validation is not None and validation < self.best
        self.best = validation if validation is not None and best else self.best
        state = State(
            step=self.step, tokens=float(self.step * self.plan.step_tokens),
            elapsed_s=self.account.elapsed(), validation_loss=validation,
            skipped=self.trainer.skipped, recent=tuple(self.watch.recent),
            spikes=self.watch.spikes, heard=self.trainer.heard,
            noise=self.trainer.noise.known(), sha256={},
            ramp=self.trainer.ramp if self.plan.batch_ramp else None,
        )  # fmt: skip
        self.pulse.beat(self.step, "saving")
        with self.account.timing_wait():
            self.checkpoints.save(contents(self.trainer), state, best)
            if self.step == self.plan.steps:
                self.checkpoints.wait()
        # One process alone cannot compute what all have parts of.
        if sample is not None and self.plan.layout.processes == 1:
            with self.trainer.optimizer.answering():
                _keep_sample(self.run, self.step, sample, self.trainer.model)
        self._ledger()

    def _ledger(self) -> Ledger:
        ledger = self.account.ledger(self.trainer, self.step)
        if self.trainer.ranks.first:
            save(ledger, self.run / "ledger.json")
        return ledger


def _passed(before: int, step: int, every: int) -> bool:
    """Whether a multiple of `every` lies behind `before` and not behind `step`."""
    return step // every > before // every


def _nobody(text: str) -> None:
    """Where another process speaks."""


def _keep_sample(run: Path, step: int, sample: Sampler, model: Transformer) -> None:
    import json

    was_training, state = model.training, torch.get_rng_state()
    model.eval()
    text = sample(model)
    model.train(was_training)
    torch.set_rng_state(state)
    with (run / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "prompt": "", "text": text}) + "\n")


def _device(machine: Machine) -> torch.device:
    if machine.device.kind == "cpu":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    if found is None:
        raise BadInput(
            f"the plan's machine computes on {machine.device.kind}, and torch sees no accelerator",
            hint="narrows doctor",
        )
    return found
