"""Ray: a script whose TorchTrainer starts `narrows train` in each of its workers."""

from __future__ import annotations

from typing import ClassVar

from narrows.plan.launch.work import RESTARTS, Device, Work
from narrows.spec.record import Record

_SCRIPT = '''\
"""{title}

Start: python FILE where the cluster is, or ray job submit -- python FILE.
Ray packs the processes on as few nodes as hold them, whatever was planned.
{needs}
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

RUN = {run!r}
ARGUMENTS = {arguments!r}
PROCESSES = {processes}
THREADS = {threads}  # of one process, as planned
GPU = {gpu}  # one for each process
RESTARTS = {restarts}  # yours to change: after a failure all go on from the newest checkpoint


def work(begun_before):
    """Run one process of the plan as a child of this Ray worker."""
    # Ray's own group keeps MASTER_PORT: rank 0 finds another, and tells all whether to resume.
    told = [None, None]
    if dist.get_rank() == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            restarted = not begun_before and (Path(RUN) / "plan.toml").exists()
            told = [probe.getsockname()[1], restarted]
    dist.broadcast_object_list(told)
    port, restarted = told
    given = {{"MASTER_PORT": str(port), "OMP_NUM_THREADS": str(THREADS)}}
    # It must not go on where Ray ends this worker.
    given["NARROWS_LAUNCHER"] = str(os.getpid())
    resume = ["--resume"] if restarted and "--resume" not in ARGUMENTS else []
    subprocess.run(
        [sys.executable, "-m", "narrows.cli.main", *ARGUMENTS, *resume],
        env={{**os.environ, **given}},
        check=True,
    )


if __name__ == "__main__":
    TorchTrainer(
        work,
        # A run that was there before is not this script's to go on with.
        train_loop_config=(Path(RUN) / "plan.toml").exists(),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=PROCESSES, use_gpu=GPU, resources_per_worker={resources}
        ),
        run_config=RunConfig(
            name={label!r}, failure_config=FailureConfig(max_failures=RESTARTS)
        ),
    ).fit()
'''


class Ray(Record):
    """One worker a process, packed by Ray on as few nodes as hold them."""

    device: Device

    suffix: ClassVar[str] = ".py"
    runs: ClassVar[str | None] = None

    def text(self, work: Work) -> str:
        """A Python script."""
        gpu = self.device == "gpu"
        return _SCRIPT.format(
            title=_plain(work.title), needs=_plain("\n".join(work.needs)),
            run=work.run, arguments=work.arguments, processes=work.plan.layout.processes,
            threads=work.threads, gpu=gpu, label=work.label, restarts=RESTARTS,
            resources='{"CPU": THREADS, "GPU": 1}' if gpu else '{"CPU": THREADS}',
        )  # fmt: skip

    def submission(self, work: Work, file: str) -> list[str]:
        """What starts it: on the cluster of RAY_ADDRESS, else here."""
        return ["python", file]


def _plain(text: str) -> str:
    """Text that does not end a docstring."""
    return text.replace("\\", "/").replace('"', "'")
