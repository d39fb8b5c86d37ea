"""Which run folder a command means."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.spec.errors import BadInput, nearest
from narrows.spec.resuming import resuming

if TYPE_CHECKING:
    from narrows.spec.job import Job
    from narrows.spec.plan import Plan


def existing(folder: str) -> Path:
    """The run folder at `folder`; raises BadInput with the runs there are where it is none."""
    path = Path(folder)
    if (path / "plan.toml").is_file():
        return path
    what = f"{path} is not a run folder" if path.exists() else f"{path} does not exist"
    raise BadInput(what, hint=_runs(path))


def of_model(path: str) -> Path:
    """A run folder, a published model's folder or name on the hub, or a GGUF file; raises BadInput
    as `existing` does where it is none.
    """
    from narrows.spec.hub import repository

    found = Path(path).expanduser()
    if repository(path):
        return Path(path)
    if found.suffix == ".gguf" or (found / "config.json").is_file():
        return found
    if not found.exists() and (name := _published(path)):
        what = f"{path} is a published model, whose weights are not here"
        raise BadInput(what, hint=f"by its name on the Hugging Face hub they are fetched: {name}")
    return existing(path)


def _published(name: str) -> str | None:
    """What a preset's weights are called on the hub."""
    from narrows.model.presets import preset

    try:
        found = re.search(r"\bof ([\w.-]+/[\w.-]*\w)", preset(name).source)
    except BadInput:
        return None
    return found[1] if found else None


def fresh(chosen: str | None, name: str) -> Path:
    """The folder for a new run: `chosen`, which must be free, else the first free runs/NAME-N."""
    if chosen:
        path = Path(chosen)
        if (path / "plan.toml").exists():
            hint = f"{resuming(path)}, or another --run"
            raise BadInput(f"{path} holds a run already", hint=hint)
        return path
    first, count = Path("runs") / name, 1
    path = first
    while path.exists():
        count += 1
        path = first.with_name(f"{name}-{count}")
    return path


def shared(chosen: str | None, wanted: Job | Plan) -> Path:
    """The folder of a run that several processes work in: named by all alike, new or of the same
    plan.
    """
    from narrows.spec.plan import Plan

    if chosen is None or not isinstance(wanted, Plan):
        raise BadInput(
            "one of several processes needs a plan and the folder that all work in",
            hint="narrows train plan.toml --run DIR",
        )
    path = Path(chosen)
    if (path / "plan.toml").exists() and plan_of(path) != wanted:
        raise BadInput(f"{path} holds a run of another plan", hint="another --run")
    return path


def newest(name: str | None) -> Path:
    """The run in runs/ that was touched last, of those of `name` where one is given."""
    runs = [path.parent for path in Path("runs").glob("*/plan.toml")]
    if name is not None:
        runs = [run for run in runs if re.fullmatch(rf"{re.escape(name)}(-\d+)?", run.name)]
    if not runs:
        which = f"run of {name}" if name else "run"
        raise BadInput(f"there is no {which} to resume", hint=_runs(Path("runs") / (name or "x")))
    return max(runs, key=lambda run: (run / "metrics.jsonl").stat().st_mtime_ns
               if (run / "metrics.jsonl").exists() else 0)  # fmt: skip


def plan_of(folder: Path) -> Plan:
    """The plan that a run folder was made by."""
    from narrows.spec.plan import Plan
    from narrows.spec.record import load

    return load(Plan, folder / "plan.toml")


def step_of(folder: Path) -> int:
    """After how many steps the newest checkpoint of a run was written; 0 where there is none."""
    names = [path.name for path in (folder / "checkpoints").glob("step-*") if not path.suffix]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def after(folder: Path) -> str:
    """The command that usually follows a training in the run folder, however far that came."""
    where, model = shlex.quote(str(folder)), plan_of(folder).model
    if not step_of(folder):
        return resuming(folder)
    answers = model.writes or model.classes
    return f'narrows generate {where} --prompt "..."' if answers else f"narrows serve {where}"


def _runs(path: Path) -> str:
    """The nearest run, or the command that makes one."""
    names = [str(plan.parent) for plan in (*path.parent.glob("*/plan.toml"), *_default())]
    guess = nearest(str(path), names)
    if guess or names:
        return f"did you mean {guess or names[0]}?"
    return "train one: narrows train --corpus shakespeare --budget 5min"


def _default() -> list[Path]:
    return sorted(Path("runs").glob("*/plan.toml"))


def contents(path: str) -> str:
    """A text file's; raises BadInput where it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="check the path") from None
