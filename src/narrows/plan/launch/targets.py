"""Where a plan may be launched, and the options that each place takes.

Each kind says how its file ends (`suffix`) and in which folder `runs` are kept there by default:
None where the processes see this file system.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from narrows.plan.launch.kubernetes import Kubernetes
from narrows.plan.launch.ray import Ray
from narrows.plan.launch.skypilot import SkyPilot
from narrows.plan.launch.slurm import Slurm
from narrows.plan.launch.torchrun import Torchrun
from narrows.spec.errors import BadInput
from narrows.spec.record import from_builtins

Target = Torchrun | Slurm | Kubernetes | Ray | SkyPilot
KINDS: dict[str, type[Target]] = {
    "torchrun": Torchrun,
    "slurm": Slurm,
    "kubernetes": Kubernetes,
    "ray": Ray,
    "skypilot": SkyPilot,
}
_MEANT = {
    "device": "--device cpu or --device gpu: what each process computes on",
    "image": "--image REGISTRY/NAME:TAG: a container image with narrows in it",
    "claim": "--claim NAME: the volume claim that keeps the text and the run",
    "setup": '--setup "COMMANDS": what installs narrows on a fresh machine',
}


def target(name: str, given: Mapping[str, str | int]) -> Target:
    """The place `name` with the options given; raises BadInput for one that it has no use for, and
    names the first one that it needs and lacks.
    """
    kind = KINDS[name]
    fields = msgspec.structs.fields(kind)
    if foreign := [option for option in given if option not in kind.__struct_fields__]:
        known = ", ".join(f"--{field.name}" for field in fields)
        raise BadInput(f"{name} has no use for --{foreign[0]}", hint=f"it takes: {known}")
    for field in fields:
        if field.required and field.name not in given:
            raise BadInput(f"{name} needs --{field.name}", hint=_MEANT[field.name])
    return from_builtins(kind, dict(given), source=f"--on {name}")
