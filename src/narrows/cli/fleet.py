"""What somebody wants to know of machines that they do not have, read from the arguments."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrows.cli import folder
from narrows.cli.parser import given
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.plan.fleet.question import Question
    from narrows.spec.fleet import Fleet, Spread
    from narrows.spec.model import ModelSpec
    from narrows.spec.trace import Comparisons

_BATCH_TOKENS = 4_194_304
_BATCH_MOST = 1_000_000_000
_CONTEXT = 8192
"""What models are trained on first, however long the contexts that they learn in the end."""
_CONTEXT_SIZED = 2048
"""Of a model that the budget sizes: as in the trainings that the scaling law was fitted to."""
_ADAPTER_RANK = 16
_CLASSES = 8
_NF4_BITS = 4.127
"""Of a weight, its scale included: 0.127 with scales quantized again (arXiv:2305.14314)."""
_LAYOUT = (
    "precision", "tensor", "pipeline", "interleave", "context", "expert", "micro_batch",
    "first_fewer", "last_fewer", "sharding", "reshard", "recompute", "schedule", "placement",
    "exchange", "sequence_parallel", "state_bits", "offload", "chunked_loss",
)  # fmt: skip
_TRUTHS = {"true": True, "false": False}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a plan for a fleet."""
    parser.add_argument(
        "--model", metavar="NAME", help="a preset, a GGUF file, a run, or a folder with config.json"
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="positions of a sequence (8192, or fewer)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="sequences of a step (4M tokens)")
    parser.add_argument("--against", action="append", default=[], metavar="NAME",
                        help="another fleet to set beside it; repeatable")  # fmt: skip
    parser.add_argument("--tune", metavar="HOW",
                        help="lora, qlora: adapters of rank 16 beside whole or 4-bit weights; "
                        "head: a head of classes alone; last:N: the last N layers")  # fmt: skip
    parser.add_argument("--trace", action="store_true",
                        help="run a rank's step without memory, beside the plan")  # fmt: skip
    parser.add_argument("--page", metavar="FILE", help="write the forecast as a page, too")
    parser.add_argument("--region", metavar="NAME",
                        help="where machines stand, for carbon: france, us-west, ...")  # fmt: skip
    parser.add_argument("--pue", type=float, metavar="N",
                        help="what the building draws for a watt of machines: 1.1")  # fmt: skip
    parser.add_argument("--goal", choices=["time", "money", "energy", "memory"],
                        help="what layout and machine are best for (time)")  # fmt: skip


def understand(chosen: argparse.Namespace) -> None:
    """Take a model named where a job could stand for --model, and no machine for this one."""
    if chosen.model is None and chosen.file and _is_model(chosen.file):
        chosen.model, chosen.file = chosen.file, None
    if chosen.model is not None and chosen.machine is None:
        chosen.machine = "here"


def _is_model(name: str) -> bool:
    """Whether that is a published model or what has the shape of one, and no file of a job; raises
    BadInput where it is neither.
    """
    path = Path(name)
    if path.exists():
        shapes = (path / "config.json", path / "plan.toml")
        return (
            path.suffix == ".gguf"
            or path.name == "config.json"
            or any(each.exists() for each in shapes)
        )
    if path.suffix == ".toml":
        return False
    from narrows.model.presets import preset

    try:
        preset(name)
    except BadInput as unknown:
        raise BadInput(
            f"{name} is neither a file nor a published model", hint=unknown.hint
        ) from None
    return True


def is_fleet(chosen: argparse.Namespace) -> bool:
    """Whether a published model is meant, or devices of the catalogue."""
    machine = chosen.machine
    return chosen.model is not None or (
        machine not in (None, "here") and not Path(machine).exists()
    )


def named(name: str) -> Fleet:
    """The fleet of that name; "here" is this machine, measured now where it was not yet, and a file
    one that was probed.
    """
    from narrows.cli import intent
    from narrows.hardware.fleet import fleet, fleet_here

    if name == "here" or Path(name).is_file():
        return fleet_here(intent.machine(name))
    return fleet(name)


def _placed(name: str, chosen: argparse.Namespace) -> Fleet:
    """The fleet of that name where the arguments say that machines stand."""
    found = named(name)
    if chosen.region is None and chosen.pue is None:
        return found
    from narrows.hardware.regions import placed

    return placed(found, chosen.region, chosen.pue)


def refuse(chosen: argparse.Namespace, more: Sequence[str] = ()) -> None:
    """Raises BadInput where something was given, of these or `more`, that a machine at hand is not
    asked.
    """
    others = ("model", "context", "batch", "goal", "serve", "rate", "against", "tune", "page",
              "region", "pue", "trace", *more)  # fmt: skip
    if option := given(chosen, others):
        raise BadInput(
            f"{option} is of machines of the catalogue",
            hint="name one, such as --machine 8xh100-sxm",
        )


def question(chosen: argparse.Namespace) -> Question:
    """The arguments as a question; raises BadInput where they contradict each other."""
    from narrows.hardware.fleet import ladder
    from narrows.plan.fleet.question import Question
    from narrows.plan.fleet.variants import Wanted
    from narrows.spec.job import budget

    refuse_what_is_of_a_job(chosen)
    known = _placed(chosen.machine, chosen)
    if chosen.batch is not None and not 1 <= chosen.batch <= _BATCH_MOST:
        raise BadInput(f"--batch is {chosen.batch}", hint=f"1 to {_BATCH_MOST:,} sequences")
    if not chosen.model:
        return _sized(chosen, known)
    spec = model(chosen.model, chosen.context)
    usual = max(1, _BATCH_TOKENS // spec.context)
    return Question(
        name=chosen.model, model=spec, fleet=known,
        batch=usual if chosen.batch is None else chosen.batch,
        wanted=Wanted(**_wanted(chosen, known), **_tuning(chosen, spec)),
        goal=chosen.goal or "time",
        budget=budget(*chosen.budget) if chosen.budget else None,
        against=tuple(_placed(name, chosen) for name in chosen.against), ladder=ladder(known),
    )  # fmt: skip


def refuse_what_is_of_a_job(chosen: argparse.Namespace) -> None:
    """Raises BadInput where something was given that only a job at hand is asked."""
    machine = chosen.machine
    if machine.endswith(".toml") and not Path(machine).exists():
        raise BadInput(f"{machine} does not exist", hint="narrows probe -o machine.toml")
    if chosen.file and chosen.model:
        what = f"{chosen.file} and --model {chosen.model} both say what to plan"
        raise BadInput(what, hint="leave one of them out")
    if chosen.file:
        what = f"{chosen.file} is a job for this machine or a probed one"
        raise BadInput(what, hint=f"name a model: narrows plan llama-3.1-8b --machine {machine}")
    if option := given(chosen, ("corpus", "allow", "processes")):
        raise BadInput(f"{option} says nothing of a fleet", hint="leave it out")


def _sized(chosen: argparse.Namespace, known: Fleet) -> Question:
    """Of the size that the budget buys."""
    from narrows.hardware.fleet import ladder
    from narrows.plan.fleet.dial import dial
    from narrows.plan.fleet.question import Wish
    from narrows.plan.fleet.variants import Wanted
    from narrows.spec.job import budget

    machine = shlex.quote(chosen.machine)
    if not chosen.budget:
        raise BadInput(
            f"nothing says which model to train on {chosen.machine}",
            hint=f"narrows plan llama-3.1-8b --machine {machine}",
        )
    if chosen.tune:
        raise BadInput(
            "adapters are beside the weights of a model, and none is named",
            hint=f"narrows plan llama-3.1-8b --machine {machine} --tune {chosen.tune}",
        )
    return dial(Wish(
        fleet=known, budget=budget(*chosen.budget), batch=chosen.batch, goal=chosen.goal or "time",
        context=_CONTEXT_SIZED if chosen.context is None else chosen.context,
        wanted=Wanted(**_wanted(chosen, known)),
        against=tuple(_placed(name, chosen) for name in chosen.against), ladder=ladder(known),
    ))  # fmt: skip


def traced(asked: Question, spread: Spread) -> tuple[Comparisons, str]:
    """The layout beside one rank's step of it, of each kind of stage, and how that reads. Loads
    torch.
    """
    from narrows.plan.fleet import beside, told
    from narrows.plan.fleet.work import Work
    from narrows.spec.trace import Comparisons

    layout = beside.as_run(spread, asked.model.context)
    from narrows.parallel.trace import trace

    work = Work.of(asked.model, asked.model.context)
    found = Comparisons(ranks=tuple(
        beside.compare(asked.name, work, spread, trace(asked.model, layout, rank=rank))
        for rank in beside.ranks(spread)
    ))  # fmt: skip
    return found, told.text(found)


def model(name: str, context: int | None) -> ModelSpec:
    """A preset by name, or what a run, a GGUF file or a folder's config.json says, with another
    context where given.
    """
    import msgspec

    from narrows.spec.model import Learned

    if _is_config(name):
        from narrows.model.configuration import read_config

        return read_config(name, context)
    spec = _shape(name)
    usual = min(spec.context, _CONTEXT)
    if isinstance(spec.positions, Learned) and (context or 0) > spec.context:
        raise BadInput(
            f"context is {context}, and the model has embeddings of {spec.context} positions",
            hint=f"use --context {spec.context} or less",
        )
    return msgspec.structs.replace(spec, context=usual if context is None else context)


def longest(name: str) -> int:
    """Positions that the model was made for."""
    from narrows.model.configuration import read_config

    return read_config(name, None).context if _is_config(name) else _shape(name).context


def _is_config(name: str) -> bool:
    path = Path(name)
    return name.endswith(".json") or (path.is_dir() and not (path / "plan.toml").exists())


def _shape(name: str) -> ModelSpec:
    """That of a run, of a GGUF file, for which torch is loaded, or of a preset."""
    if Path(name).is_dir():
        return folder.plan_of(Path(name)).model
    if name.endswith(".gguf"):
        from narrows.model.opening import opened

        return opened(name).spec
    from narrows.model.presets import preset

    return preset(name).spec


def _tuning(chosen: argparse.Namespace, spec: ModelSpec) -> dict[str, Any]:
    """What of the weights is trained, what gradients go back through, and how the rest is kept."""
    from narrows.plan.fleet.work import Work, adapter_share

    how = chosen.tune
    if how is None:
        return {}
    if how in ("lora", "qlora"):
        share = adapter_share(Work.of(spec, spec.context), _ADAPTER_RANK)
        return {"trained": share, "stored_bits": _NF4_BITS if how == "qlora" else None}
    if how == "head":
        share = _CLASSES * spec.width / spec.parameters
        return {"trained": share, "reached": 0.0, "logits": False}
    kind, _, count = how.partition(":")
    if kind != "last" or not count.isdigit() or not 1 <= int(count) <= spec.layers:
        raise BadInput(
            f"--tune {how} is no way to tune {chosen.model}",
            hint=f"lora, qlora, head, or last:N with N from 1 to {spec.layers}",
        )
    return {"trained": int(count) / spec.layers, "reached": int(count) / spec.layers}


def _wanted(chosen: argparse.Namespace, known: Fleet) -> dict[str, Any]:
    """The choices given, in the precision that the devices have."""
    from narrows.spec.errors import nearest
    from narrows.spec.fleet import CHOICES_OF, Spread
    from narrows.spec.record import from_builtins

    found: dict[str, Any] = {}
    for assignment in chosen.overrides:
        key, _, value = assignment.partition("=")
        name = key.strip().removeprefix("layout.")
        if name not in _LAYOUT or not value:
            near = nearest(name, _LAYOUT) or "tensor"
            raise BadInput(
                f"--set {assignment} is no choice of a fleet's layout",
                hint=f"did you mean --set layout.{near}=...? (known: {', '.join(_LAYOUT)})",
            )
        text = value.strip().strip("\"'")
        found[name] = int(text) if text.lstrip("-").isdigit() else _TRUTHS.get(text, text)
    if found.get("schedule") == "zero_bubble":
        found.setdefault("interleave", 2)
    from_builtins(Spread, found, source="--set layout")
    for name, (of, without) in CHOICES_OF.items():
        if name in found and found.get(of) in without:
            raise BadInput(
                f"layout.{name} says nothing where layout.{of} is {found[of]}",
                hint="leave one of them out",
            )
    wished = found.setdefault("precision", known.precision)
    if wished not in known.peak:
        near = "fp8" if wished == "fp4" and "fp8" in known.peak else known.precision
        raise BadInput(
            f"{known.accelerator} has no {wished} figures", hint=f"--set layout.precision={near}"
        )
    return found
