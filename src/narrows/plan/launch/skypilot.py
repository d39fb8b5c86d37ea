"""SkyPilot: a task that rents the nodes and runs torchrun on each (https://docs.skypilot.co)."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath
from typing import ClassVar

import msgspec

from narrows.plan.launch.work import Device, Work
from narrows.spec.errors import BadInput
from narrows.spec.record import Record

_PLAN = "narrows/plan.toml"
_RUN = r"""
cd ~
export OMP_NUM_THREADS={threads}
torchrun --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \
  --master-addr "${{SKYPILOT_NODE_IPS%%$'\n'*}}" --master-port {port} \
  --nproc-per-node {per_node} \
  {command}
"""
_PORT = 29500


class SkyPilot(Record):
    """`setup` installs narrows on a fresh machine; `bucket`, such as s3://NAME, keeps the run;
    `cloud` is CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE; `accelerator` a name that SkyPilot knows.
    """

    device: Device
    setup: str
    accelerator: str | None = None
    cloud: str | None = None
    bucket: str | None = None

    suffix: ClassVar[str] = ".yaml"
    runs: ClassVar[str | None] = "runs"

    def __post_init__(self) -> None:
        if self.device == "gpu" and self.accelerator is None:
            raise BadInput("which GPU to rent is not known", hint="--accelerator H100")
        if self.device == "cpu" and self.accelerator is not None:
            raise BadInput("--accelerator has no use with --device cpu", hint="--device gpu")

    def text(self, work: Work) -> str:
        """One YAML document; raises BadInput where the run has no place to be kept."""
        if work.nodes > 1 and self.bucket is None:
            raise BadInput(
                f"{work.nodes} rented machines share no disk to keep the run on",
                hint="--bucket s3://NAME, or one node: --nodes 1",
            )
        run = PurePosixPath(work.run)
        if self.bucket is not None and run.parent in (PurePosixPath("."), PurePosixPath("/")):
            what = f"the bucket cannot be mounted at the folder that {work.run} lies in"
            raise BadInput(what, hint=f"--run runs/{run.name}")
        there = msgspec.structs.replace(work, file=_PLAN)
        script = _RUN.format(
            threads=work.threads, port=_PORT, per_node=work.per_node,
            command=shlex.join(there.under_torchrun),
        )  # fmt: skip
        lines = [
            f"# {work.title}",
            f"# Submit: sky launch -c {work.label} FILE. Yours to change: resources, setup.",
            *self._keeping(work, run),
            f"name: {work.label}",
            f"num_nodes: {work.nodes}",
            "resources:",
            *self._resources(work),
            "# Copied from here: the plan, and the text at the path that the plan names.",
            "file_mounts:",
            f"  {_yaml(f'~/{_PLAN}')}: {_yaml(work.file)}",
            f"  {_yaml(work.data)}: {_yaml(work.data)}",
            *self._mount(run),
            "setup: |",
            *_indented(self.setup),
            "run: |",
            *_indented(script.strip()),
        ]
        return "\n".join(lines) + "\n"

    def submission(self, work: Work, file: str) -> list[str]:
        """What rents the machines; SkyPilot shows the price and asks first."""
        return ["sky", "launch", "-c", work.label, file]

    def _resources(self, work: Work) -> list[str]:
        if self.device == "gpu":
            lines = [f"  accelerators: {_yaml(f'{self.accelerator}:{work.per_node}')}"]
        else:
            lines = [f'  cpus: "{work.per_node * work.threads}+"']
        cloud = [f"  infra: {_yaml(self.cloud)}"] if self.cloud else []
        return lines + (cloud or ["  # infra: aws   (left out, SkyPilot takes the cheapest)"])

    def _mount(self, run: PurePosixPath) -> list[str]:
        if self.bucket is None:
            return []
        folder = str(run.parent) if run.is_absolute() else f"~/{run.parent}"
        # MOUNT_CACHED alone lets files be appended to and renamed, as a run does.
        return [
            f"  {_yaml(folder)}:",
            f"    source: {_yaml(self.bucket)}",
            "    mode: MOUNT_CACHED",
        ]

    def _keeping(self, work: Work, run: PurePosixPath) -> list[str]:
        if self.bucket is not None:
            return []
        where = run if run.is_absolute() else f"~/{run}"
        return [f"# Before sky down, fetch the run: rsync -r {work.label}:{where} runs/"]


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]


def _yaml(value: str) -> str:
    """JSON, which YAML 1.2 reads as it is."""
    return json.dumps(value)
