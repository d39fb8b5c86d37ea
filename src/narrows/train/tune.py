"""A search over keys of a job: trials that Optuna proposes, each planned, trained and priced.

The folder holds all of it: journal.jsonl, which Optuna writes and reads, and a run folder for each
trial. Killed at any moment the search goes on from them, in the midst of a trial, too.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from narrows.hardware.power import PowerMeter
from narrows.kernels.allocator import give_back
from narrows.spec.errors import BadInput, DoesNotFit, RunFailed
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import load, save
from narrows.spec.tuning import Axis, Outcome, Range, Trial, Tuned, Value
from narrows.spec.units import Joules, Seconds
from narrows.train.lock import locked
from narrows.train.run import Also, train

_PARTS = 100
"""A trial's progress is told in so many parts, since trials may differ in steps."""
_FIRST, _WARM = 4, 20
"""No trial is given up among the first, nor in its first parts (arXiv:1907.10902, section 3.2)."""
_AT_RANDOM = 10
"""TPE's first trials, which know nothing yet."""
_UNAFFORDED = "longer than what was left of the budget"
_JOURNAL = "journal.jsonl"
_ATTRIBUTES = ("seconds", "joules", "steps", "message")


class Limits(NamedTuple):
    """When a search ends: after so many trials, seconds or joules."""

    trials: int
    seconds: float | None = None
    joules: float | None = None


class Search(NamedTuple):
    """What is searched: a job's name, its axes, and how values by key become a plan."""

    name: str
    axes: tuple[Axis, ...]
    planned: Callable[[dict[str, Value]], Plan]
    seed: int = 0


class _Pruned(Exception):
    """A trial that others have left behind."""


def tune(
    search: Search, limits: Limits, folder: Path, machine: Machine, talk: Callable[[str], None]
) -> Tuned:
    """Search until a limit is met; what the folder holds of an earlier start is gone on from.

    Raises BadInput where the folder holds another search, RunFailed where no trial came through.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(search, folder)
    with locked(folder):
        study = _study(folder / _JOURNAL, search)
        running = _Search(search, limits, folder, machine, talk)
        ended = running.all(study)
        found = _found(study, search, ended)
    save(found, folder / "tuned.json")
    if found.best is None:
        told = [each.message for each in found.trials if each.message]
        raise RunFailed(
            f"none of {len(found.trials)} trials came through", causes=told[-1:],
            hint="narrows plan job.toml, and narrower --over",
        )  # fmt: skip
    return found


class _Search:
    """Trials, one after the other."""

    def __init__(
        self, search: Search, limits: Limits, folder: Path, machine: Machine,
        talk: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.search, self.limits, self.folder = search, limits, folder
        self.machine, self.talk = machine, talk

    def all(self, study: Any) -> str:
        """Until a limit is met, which is returned in words."""
        from optuna.trial import Trial as Proposed
        from optuna.trial import TrialState

        for begun in study.get_trials(states=(TrialState.RUNNING,)):
            self.talk(f"trial {begun.number} goes on")
            self._one(study, Proposed(study, begun._trial_id))
        while True:
            ended = self._ended(study)
            if ended:
                return ended
            proposed = self._next(study)
            if proposed is None:
                return "every combination of values is tried"
            if not self._one(study, proposed):
                return "what was left of the budget held no further trial"

    def _next(self, study: Any) -> Any:
        """A trial that is to be made, of few combinations each once; None where none is left."""
        from optuna.trial import TrialState

        combinations = _combinations(self.search, max(_AT_RANDOM, self.limits.trials))
        if combinations and not study.get_trials(states=(TrialState.WAITING,)):
            # What a budget did not hold, a larger one may.
            tried = [each.params for each in study.get_trials(deepcopy=False)
                     if each.user_attrs.get("message") != _UNAFFORDED]  # fmt: skip
            left = [each for each in combinations if each not in tried]
            if not left:
                return None
            study.enqueue_trial(left[0])
        return study.ask({each.key: _distribution(each) for each in self.search.axes})

    def _ended(self, study: Any) -> str | None:
        seconds, joules = _spent(study)
        limits, count = self.limits, len(study.get_trials(deepcopy=False))
        if count >= limits.trials:
            return f"{count} trials"
        if limits.seconds is not None and seconds >= limits.seconds:
            return f"{Seconds(limits.seconds).text()} are over"
        if limits.joules is not None and joules >= limits.joules:
            return f"{Joules(limits.joules).text()} are spent"
        return None

    def _one(self, study: Any, proposed: Any) -> bool:
        """Plan and train it; whether the budget holds it."""
        from optuna.trial import TrialState

        values = dict(proposed.params)
        self.talk(f"trial {proposed.number}: {told(values)}")
        try:
            plan = self.search.planned(values)
            _check_alone(plan)
        except (BadInput, DoesNotFit) as refused:
            proposed.set_user_attr("message", refused.what)
            self.talk(f"  {refused.what}")
            study.tell(proposed, state=TrialState.FAIL)
            return True
        run = self.folder / _folder(proposed.number)
        if not self._affordable(study, plan) and not (run / "plan.toml").exists():
            proposed.set_user_attr("message", _UNAFFORDED)
            self.talk(f"  {_UNAFFORDED}")
            study.tell(proposed, state=TrialState.FAIL)
            return False
        loss, state = self._trained(study, proposed, plan, run)
        study.tell(proposed, loss, state=state)
        return True

    def _affordable(self, study: Any, plan: Plan) -> bool:
        seconds, joules = _spent(study)
        total, limits = plan.predicted.total, self.limits
        if limits.seconds is not None and seconds + total.seconds > limits.seconds:
            return False
        return limits.joules is None or joules + total.joules <= limits.joules

    def _trained(
        self, study: Any, proposed: Any, plan: Plan, run: Path
    ) -> tuple[float | None, Any]:
        """Its last validation loss, and what became of it; its cost is noted as it goes."""
        from optuna.trial import TrialState

        meter, began = PowerMeter(self.machine), time.perf_counter()
        before = [proposed.user_attrs.get(name, 0.0) for name in ("seconds", "joules")]
        known = study.get_trials(deepcopy=False)[proposed.number].intermediate_values
        losses: list[float] = []

        def note(step: int) -> None:
            proposed.set_user_attr("steps", step)
            proposed.set_user_attr("seconds", before[0] + time.perf_counter() - began)
            proposed.set_user_attr("joules", before[1] + meter.joules())

        def evaluated(step: int, loss: float) -> None:
            losses.append(loss)
            note(step)
            part = round(_PARTS * step / plan.steps)
            if part not in known:
                proposed.report(loss, part)
            if step < plan.steps and proposed.should_prune():
                raise _Pruned

        resume = (run / "plan.toml").exists()
        # What the last trial held would hide what this one takes.
        give_back()
        try:
            train(
                plan, run, machine=self.machine, resume=resume, talk=_nobody,
                also=Also(evaluated=evaluated),
            )  # fmt: skip
        except _Pruned:
            self.talk(f"  given up at {losses[-1]:.4f}: others were better by then")
            return None, TrialState.PRUNED
        except RunFailed as failed:
            proposed.set_user_attr("message", failed.what)
            self.talk(f"  {failed.what}")
            return None, TrialState.FAIL
        loss = losses[-1] if losses else _last_loss(run)
        note(plan.steps)
        self.talk(f"  validation loss {loss:.4f}")
        return loss, TrialState.COMPLETE


def told(values: dict[str, Value]) -> str:
    """Values by key, in a line."""
    shown = (f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in values.items())
    return ", ".join(shown)


def _study(journal: Path, search: Search) -> Any:
    optuna = _optuna()
    for leftover in journal.parent.glob(f"{_JOURNAL}.lock*"):
        # Of a search that was killed: our own lock says that none is under way.
        leftover.unlink()
    _mend(journal)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(journal))
    )
    return optuna.create_study(
        storage=storage, study_name=search.name, load_if_exists=True, direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=search.seed + _lines(journal)),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST, n_warmup_steps=_WARM),
    )  # fmt: skip


def _optuna() -> Any:
    try:
        import optuna
        import sklearn  # noqa: F401  (what fANOVA grows its trees with)
    except ImportError as error:
        raise BadInput(
            f"a search needs {error.name}, which is not installed",
            hint="pip install 'narrows[tune]'",
        ) from None
    return optuna


def _mend(journal: Path) -> None:
    """Drop a last line that a killed search left half written."""
    if journal.exists():
        whole = journal.read_bytes()
        journal.write_bytes(whole[: whole.rfind(b"\n") + 1])


def _lines(journal: Path) -> int:
    """So that a search that goes on does not propose again what it proposed at first."""
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _distribution(each: Axis) -> Any:
    from optuna import distributions

    if not isinstance(each, Range):
        return distributions.CategoricalDistribution(each.values)
    if each.whole:
        return distributions.IntDistribution(int(each.low), int(each.high), log=each.log)
    return distributions.FloatDistribution(float(each.low), float(each.high), log=each.log)


def _combinations(search: Search, most: int) -> list[dict[str, Value]]:
    """All that there are, in an order that the seed decides; none where they are more than `most`.

    A sampler draws with replacement: of few it would try some twice, and some never.
    """
    lists: list[tuple[Value, ...]] = []
    for each in search.axes:
        if not isinstance(each, Range):
            lists.append(each.values)
        elif each.whole and each.high - each.low < most:
            lists.append(tuple(range(int(each.low), int(each.high) + 1)))
        else:
            return []
    if math.prod(map(len, lists)) > most:
        return []
    keys = [each.key for each in search.axes]
    found = [dict(zip(keys, values, strict=True)) for values in itertools.product(*lists)]
    random.Random(search.seed).shuffle(found)
    return found


def _check_same(search: Search, folder: Path) -> None:
    """A folder goes on with the axes that it began with."""
    path = folder / "search.json"
    wanted = Tuned(
        name=search.name, axes=search.axes, trials=(), importance={}, best=None, ended=""
    )
    if path.exists() and load(Tuned, path) != wanted:
        raise BadInput(
            f"{folder} holds another search", hint="the same job and --over, or another --run"
        )
    save(wanted, path)


def _check_alone(plan: Plan) -> None:
    if plan.layout.processes > 1:
        raise BadInput(
            f"a trial is one process, and the layout takes {plan.layout.processes}",
            hint="--set layout.processes=1",
        )


def _spent(study: Any) -> tuple[float, float]:
    """Seconds and joules of all trials so far."""
    known = [each.user_attrs for each in study.get_trials(deepcopy=False)]
    seconds, joules = (sum(each.get(n, 0.0) for each in known) for n in ("seconds", "joules"))
    return seconds, joules


def _found(study: Any, search: Search, ended: str) -> Tuned:
    trials = tuple(_record(each) for each in study.get_trials(deepcopy=False))
    done = [each for each in trials if each.outcome == "done"]
    best = min(done, key=lambda each: each.loss or math.inf, default=None)
    return Tuned(
        name=search.name, axes=search.axes, trials=trials, importance=_importance(study, done),
        best=None if best is None else best.number, ended=ended,
    )  # fmt: skip


def _record(trial: Any) -> Trial:
    outcomes: dict[str, Outcome] = {"COMPLETE": "done", "PRUNED": "pruned"}
    noted = {name: trial.user_attrs[name] for name in _ATTRIBUTES if name in trial.user_attrs}
    last = max(trial.intermediate_values, default=None)
    return Trial(
        number=trial.number, outcome=outcomes.get(trial.state.name, "failed"),
        values=dict(trial.params), folder=_folder(trial.number),
        loss=None if last is None else trial.intermediate_values[last],
        **{"steps": 0, "seconds": 0.0, "joules": 0.0, **noted},
    )  # fmt: skip


def _importance(study: Any, done: list[Trial]) -> dict[str, float]:
    """Each key's share of the losses' variance (fANOVA, Hutter et al. 2014), once there are trials
    enough to grow its trees on.
    """
    if len(done) < _FIRST:
        return {}
    optuna = _optuna()
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):
        # All losses are equal, or all trials.
        return {}
    return {key: float(share) for key, share in found.items()}


def _folder(number: int) -> str:
    return f"trial-{number:03d}"


def _last_loss(run: Path) -> float:
    """Of a trial that had ended when the search was killed."""
    import json

    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [each["validation_loss"] for each in map(json.loads, lines)
              if "validation_loss" in each]  # fmt: skip
    if not losses:
        raise RunFailed(f"{run} has no validation loss", hint="another --run")
    return float(losses[-1])


def _nobody(text: str) -> None:
    """The trial's own talk."""
