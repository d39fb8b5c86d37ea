"""Tasks of lm-evaluation-harness, run by the installed harness on a model of ours.

The harness reads the task, asks, filters and scores; its numbers are given as it gives them. What
each document adds is taken from its samples wherever that gives back the harness' own number.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from narrows.evaluate.assessment import Found, Item, Manner, Metric, Tasks
from narrows.evaluate.bootstrap import interval
from narrows.evaluate.forms import Form, value
from narrows.evaluate.passes import Passes
from narrows.evaluate.progress import Talk
from narrows.infer.loading import Generator
from narrows.spec.errors import BadInput

_SAME = 1e-9
Scores = dict[int, tuple[float, ...]]


def refuse_absent() -> None:
    """Raises BadInput where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput(
            "tasks need lm-evaluation-harness, which is not installed",
            hint="pip install 'narrows[harness]'",
        )


def run(
    generator: Generator, data: Tasks, manner: Manner, passes: Passes, talk: Talk
) -> Found:  # fmt: skip
    """Every metric of the task, or of those it groups; raises BadInput where there is no such
    task, or it asks for what our models cannot.
    """
    from narrows.evaluate.harness_model import HarnessModel

    model = HarnessModel(generator, manner, passes, talk)
    told = _results(model, data, manner)
    metrics, items, digest = list[Metric](), dict[tuple[str, int], Item](), hashlib.sha256()
    for task, results in told["results"].items():
        samples = told["samples"].get(task, [])
        for sample in samples:
            for name in ("doc_hash", "prompt_hash", "target_hash"):
                digest.update(sample[name].encode())
            number = sample["doc_id"] + 1
            items.setdefault(
                (task, number),
                Item(number=number, task=task, sums={}, answer=_answer(sample)),
            )  # fmt: skip
        for key, given in _numbers(results):
            metric, added = _metric(task, key, given, told, manner.seed)
            metrics.append(metric)
            for number, sums in added.items():
                known = items[task, number]
                items[task, number] = replace(known, sums={**known.sums, metric.name: sums})
    notes: tuple[str, ...] = (f"lm-evaluation-harness {importlib.metadata.version('lm_eval')}",)
    if model.cut:
        notes += (f"{model.cut} questions were longer than the context and lost their beginning",)
        talk(notes[-1])
    found = tuple(items[place] for place in sorted(items))
    return Found(found, tuple(metrics), digest.hexdigest(), model.tokens, notes=notes)


def _results(model: Any, data: Tasks, manner: Manner) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # What the harness prints is talk; standard output belongs to the answer.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            manager = TaskManager(include_defaults=not Path(data.task).is_file())
            manager.load([data.task])
        except Exception as error:  # whatever a file, a data set or the network make of it
            raise BadInput(
                f"the harness cannot load the task {data.task}",
                causes=[f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"],
                hint="give a name of: lm_eval ls tasks, or the path of a task's .yaml",
            ) from error
        told = simple_evaluate(
            model, tasks=[data.task], num_fewshot=data.shots, limit=manner.limit,
            task_manager=manager, bootstrap_iters=0, apply_chat_template=data.chat,
        )  # fmt: skip
    found: Mapping[str, Any] = told
    return found


def _numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Metrics as the harness names them, "acc,none"; no errors of theirs, no facts of the task."""
    for key, given in results.items():
        if "," in key and "_stderr" not in key and isinstance(given, int | float):
            yield key, float(given)


def _metric(
    task: str, key: str, given: float, told: Mapping[str, Any], seed: int
) -> tuple[Metric, Scores]:
    """One number of a task, and what its documents add to it."""
    name, _, kept_by = key.partition(",")
    samples = [each for each in told["samples"].get(task, []) if each["filter"] == kept_by]
    form, added = _form({each["doc_id"] + 1: each.get(name) for each in samples}, given)
    around = interval(form, np.array(list(added.values())), seed) if form else None
    metric = Metric(
        name=f"{task} {name}" + (f" ({kept_by})" if kept_by != "none" else ""),
        form=form, value=given, items=len(samples),
        better="higher" if told["higher_is_better"].get(task, {}).get(name, True) else "lower",
        low=around and around.low, high=around and around.high,
    )  # fmt: skip
    return metric, added


def _form(said: Mapping[int, Any], given: float) -> tuple[Form | None, Scores]:
    """How the documents' own numbers make the task's, and what each adds; None where they don't."""
    numbers = {place: np.atleast_1d(each) for place, each in said.items() if _is_number(each)}
    if not numbers or len(numbers) < len(said):
        return None, {}
    for form, sign in _CANDIDATES:
        added: Scores = {
            place: (float(sign * each[0]), float(each[1]) if len(each) == 2 else 1.0)
            for place, each in numbers.items()
        }
        found = value(form, np.array(list(added.values())).sum(0))
        if abs(float(found) - given) <= _SAME * max(1.0, abs(given)):
            return form, added
    return None, {}


_CANDIDATES: tuple[tuple[Form, float], ...] = (("mean", 1.0), ("perplexity", -1.0), ("bits", -1.0))


def _is_number(said: Any) -> bool:
    each = said if isinstance(said, tuple | list) else [said]
    return len(each) in (1, 2) and all(isinstance(part, int | float | np.number) for part in each)


def _answer(sample: Mapping[str, Any]) -> str | None:
    """What was written, as the task's filter leaves it; None where nothing was to be."""
    first = sample["filtered_resps"][0]
    return first if isinstance(first, str) else None
