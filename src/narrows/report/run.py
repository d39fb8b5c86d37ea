"""A run folder, read tolerantly: whatever a killed run left behind is still worth showing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from narrows.report.words import Phrase
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.ledger import Ledger, MemoryPeak, Total
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import Record, load
from narrows.spec.timeline import Timeline

R = TypeVar("R", bound=Record)
NAN = math.nan


class Step(Record):
    """One optimizer step as metrics.jsonl has it; NaN where a value is absent or not finite."""

    step: int
    tokens: float = NAN
    loss: float = NAN
    learning_rate: float = NAN
    gradient_norm: float = NAN
    seconds: float = NAN
    tokens_per_s: float = NAN
    mfu: float = NAN
    memory_bytes: float = NAN
    watts: float = NAN
    elapsed_s: float = NAN


class Evaluated(Record):
    """Loss on text that was held out."""

    step: int
    tokens: float = NAN
    validation_loss: float = NAN
    bits_per_byte: float = NAN
    accuracy: float = NAN


class Event(Record):
    """Something that happened to the run."""

    step: int
    event: str
    message: str = ""


class Sample(Record):
    """Text that the model wrote; anything may be in it."""

    step: int
    prompt: str
    text: str


class Run(Record):
    """Everything a run folder says. `notes` tells what is missing or could not be read."""

    folder: Path
    plan: Plan
    machine: Machine | None
    dataset: Dataset | None
    measured: Ledger | None
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluated, ...]
    events: tuple[Event, ...]
    samples: tuple[Sample, ...]
    timeline: Timeline | None = None
    notes: tuple[Phrase, ...]

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken, by metrics or ledger, whichever knows more."""
        logged = self.steps[-1].step if self.steps else 0
        return max(logged, self.measured.total.steps if self.measured else 0)

    @property
    def finished(self) -> bool:
        """Whether every planned step was taken."""
        return self.steps_done >= self.plan.steps

    @property
    def unlogged(self) -> Phrase:
        """What to say where no step's metrics are there."""
        if not self.steps_done:
            return Phrase("No step has been logged yet.", "尚未记录任何一步。")
        return Phrase(
            f"{self.steps_done:,} steps were taken, and metrics.jsonl no longer tells of them.",
            f"已训练 {self.steps_done:,} 步，但 metrics.jsonl 中已无记录。",
        )

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss was not finite."""
        return next((step.step for step in self.steps if not math.isfinite(step.loss)), None)

    @property
    def best(self) -> Evaluated | None:
        """The evaluation with the lowest loss."""
        finite = [each for each in self.evaluations if math.isfinite(each.validation_loss)]
        return min(finite, key=lambda each: each.validation_loss, default=None)


def read(folder: Path | str) -> Run:
    """Read a run folder; raises BadInput where it is none, with the runs that are near."""
    folder = Path(folder)
    if not (folder / "plan.toml").is_file():
        raise _not_a_run(folder)
    plan = load(Plan, folder / "plan.toml")
    notes: list[Phrase] = []
    machine = _optional(Machine, folder / "machine.toml", notes)
    ledger = _optional(Ledger, folder / "ledger.json", notes)
    dataset_file = folder / "dataset.json"
    if plan.data is not None and not dataset_file.exists():
        # Laid into the folder where training begins; until then it is where the text was prepared.
        dataset_file = Path(plan.data.folder) / "dataset.json"
    dataset = _optional(Dataset, dataset_file, notes) if dataset_file.exists() else None
    timed = folder / "timeline.json"
    lines = tuple(_lines(folder / "metrics.jsonl", notes))
    steps = _by_step(_built(Step, line) for line in lines if "loss" in line)
    evaluations = _by_step(_built(Evaluated, line) for line in lines if "validation_loss" in line)
    if ledger and not (folder / "metrics.jsonl").exists():
        notes.append(Phrase("metrics.jsonl is not there.", "没有 metrics.jsonl。"))
    events = tuple(filter(None, (_built(Event, line) for line in lines if "event" in line)))
    samples = (_built(Sample, line) for line in _lines(folder / "samples.jsonl", notes))
    return Run(
        folder=folder,
        plan=plan,
        machine=machine,
        dataset=dataset,
        measured=ledger or from_metrics(plan, machine, steps),
        steps=steps,
        evaluations=evaluations,
        events=events,
        samples=tuple(filter(None, samples)),
        timeline=_optional(Timeline, timed, notes) if timed.exists() else None,
        notes=tuple(notes),
    )


def from_metrics(plan: Plan, machine: Machine | None, steps: tuple[Step, ...]) -> Ledger | None:
    """A measured ledger of what metrics alone tell: no rows, energy by the watts logged."""
    seconds = [step.seconds for step in steps if math.isfinite(step.seconds)]
    if not seconds:
        return None
    joules = sum(
        step.watts * step.seconds for step in steps if math.isfinite(step.watts * step.seconds)
    )
    elapsed = _last_finite(step.elapsed_s for step in steps)
    elapsed = elapsed if math.isfinite(elapsed) else sum(seconds)
    tokens = _last_finite(step.tokens for step in steps)
    return Ledger(
        basis="measured",
        energy_basis="estimated",
        rows=(),
        step_seconds=median(seconds),
        step_tokens=float(plan.step_tokens),
        mfu=_middle([step.mfu for step in steps]),
        memory=MemoryPeak(peak=_largest([step.memory_bytes for step in steps])),
        total=Total(
            steps=steps[-1].step,
            tokens=tokens,
            seconds=elapsed,
            seconds_training=sum(seconds),
            seconds_start=NAN,
            seconds_evaluating=NAN,
            seconds_saving=NAN,
            joules=joules or NAN,
            dollars=_dollars(machine, elapsed),
            carbon_grams=_grams(machine, joules),
        ),
    )


def _not_a_run(folder: Path) -> BadInput:
    if not folder.exists():
        what, near = f"{folder} does not exist", folder.parent
    elif not folder.is_dir():
        what, near = f"{folder} is a file, not a run folder", folder.parent
    else:
        what, near = f"{folder} is not a run folder: it has no plan.toml", folder
    for place in (near, near / "runs", folder.parent):
        plans = [path for path in place.glob("*/plan.toml") if path.is_file()]
        if plans:
            latest = max(plans, key=lambda path: path.stat().st_mtime).parent
            return BadInput(what, hint=f"narrows report {latest}")
    return BadInput(what, hint="`narrows train job.toml` makes one under runs/")


def _optional(kind: type[R], path: Path, notes: list[Phrase]) -> R | None:
    """The record in `path`, or None and a note."""
    if not path.exists():
        notes.append(
            Phrase(f"{path.name} is not there (yet).", f"（尚）没有 {path.name}。"),
        )
        return None
    try:
        return load(kind, path)
    except BadInput as error:
        reason = error.what.removeprefix(f"{path}").lstrip(": ")
        notes.append(
            Phrase(f"{path.name} could not be used: {reason}", f"{path.name} 无法使用：{reason}")
        )
        return None


def _lines(path: Path, notes: list[Phrase]) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file. A last line cut off by a kill is expected, others are told."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    lines = content.decode("utf-8", errors="replace").split("\n")
    broken = 0
    for number, line in enumerate(lines):
        if not line.strip("\0 \r\t"):
            continue
        try:
            found = json.loads(line)
        except ValueError:
            broken += number < len(lines) - 1
            continue
        if isinstance(found, dict):
            yield found
    if broken:
        notes.append(
            Phrase(
                f"{broken} unreadable lines of {path.name} were skipped.",
                f"跳过了 {path.name} 中 {broken} 行无法读取的内容。",
            )
        )


def _built(kind: type[R], line: dict[str, Any]) -> R | None:
    """A record of the fields that it knows, or None where the required ones are not there."""
    values: dict[str, Any] = {}
    for name, annotation in kind.__annotations__.items():
        if name not in line:
            continue
        value = line[name]
        if annotation == "str":
            values[name] = value if isinstance(value, str) else json.dumps(value)
        elif annotation == "int":
            if not isinstance(value, int):
                return None
            values[name] = value
        else:
            number = float(value) if isinstance(value, (int, float)) else NAN
            values[name] = number if math.isfinite(number) else NAN
    try:
        return kind(**values)
    except TypeError:
        return None


S = TypeVar("S", Step, Evaluated)


def _by_step(found: Iterator[S | None]) -> tuple[S, ...]:
    """In order of step; where a resumed run took a step again, the later one counts."""
    latest = {each.step: each for each in found if each is not None}
    return tuple(latest[step] for step in sorted(latest))


def _last_finite(values: Iterator[float]) -> float:
    return next((value for value in reversed(list(values)) if math.isfinite(value)), NAN)


def _middle(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else NAN


def _largest(values: list[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=NAN)


def _dollars(machine: Machine | None, seconds: float) -> float:
    return float(machine.electricity.price.value) * seconds / 3600 if machine else NAN


def _grams(machine: Machine | None, joules: float) -> float:
    if machine is None:
        return NAN
    return float(machine.electricity.carbon.value) * joules / 3.6e6
