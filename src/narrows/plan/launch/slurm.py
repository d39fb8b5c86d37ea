"""Slurm: a batch script whose tasks are the processes (https://slurm.schedmd.com/sbatch.html)."""

from __future__ import annotations

import shlex
from typing import ClassVar

from narrows.plan.launch.work import Device, Work, word
from narrows.spec.record import Record

_SCRIPT = r"""
set -eo pipefail
{setup}
# Only from here on: the files that set up an environment often read what is not set.
set -u
export OMP_NUM_THREADS={threads}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${{hosts%%$'\n'*}}
# Nodes may be shared: each job has a port of its own.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

set -- {arguments}
# Requeued, the run goes on from its newest checkpoint.
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && [ -e {kept} ]; then
  set -- {resumed}
fi
# One task a process. Slurm numbers them; torch.distributed reads torchrun's names of the numbers.
# With block distribution neighbours in the layout share a node.
exec srun --kill-on-bad-exit=1 --cpus-per-task={threads} --distribution=block bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$@"' bash narrows "$@"
"""


class Slurm(Record):
    """`setup` is what the shell runs first, such as activating an environment."""

    device: Device
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    setup: str | None = None

    suffix: ClassVar[str] = ".sbatch"
    runs: ClassVar[str | None] = None

    def text(self, work: Work) -> str:
        """A script for sbatch; raises BadInput for options that sbatch could not read."""
        options = [
            f"--job-name={work.label}",
            f"--nodes={work.nodes}",
            f"--ntasks-per-node={work.per_node}",
            f"--cpus-per-task={work.threads}",
            # Per node, not per task: LOCAL_RANK picks the device among all that a task sees.
            *([f"--gpus-per-node={work.per_node}"] if self.device == "gpu" else []),
            *(
                f"--{name}={word(f'--{name}', value)}"
                for name in ("partition", "account", "time")
                if (value := getattr(self, name)) is not None
            ),
            "--requeue",
            # The tasks save their state when told to stop, two minutes before the time is over.
            "--signal=TERM@120",
        ]
        head = [
            "#!/bin/bash",
            f"# {work.title}",
            "# Submit: sbatch FILE. Yours to change: partition, account, time, --mem, --output.",
            *(f"# {line}" for line in work.needs),
            *(f"#SBATCH {option}" for option in options),
        ]
        resumed = work.arguments if work.resume else [*work.arguments, "--resume"]
        return "\n".join(head) + _SCRIPT.format(
            setup=f"\n{self.setup}\n" if self.setup else "",
            threads=work.threads,
            arguments=shlex.join(work.arguments),
            resumed=shlex.join(resumed),
            kept=shlex.join([f"{work.run}/plan.toml"]),
        )

    def submission(self, work: Work, file: str) -> list[str]:
        """What hands it to Slurm."""
        return ["sbatch", file]
