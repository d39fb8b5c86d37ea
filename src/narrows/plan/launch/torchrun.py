"""torchrun: one script, given the number of its node where there are several."""

from __future__ import annotations

import shlex
from typing import ClassVar

from narrows.plan.launch.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.record import Record


class Torchrun(Record):
    """`head` is the first node, as the others reach it, `port` a free one there."""

    head: str | None = None
    port: int = 29500

    suffix: ClassVar[str] = ".sh"
    runs: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise BadInput(f"--port is {self.port}", hint="a free port from 1 to 65535")

    def text(self, work: Work) -> str:
        """A script for sh; raises BadInput where several nodes have no head."""
        several = work.nodes > 1
        usage = (
            f"sh FILE NODE on each node, NODE from 0 to {work.nodes - 1}" if several else "sh FILE"
        )
        lines = [
            "#!/bin/sh",
            f"# {work.title}",
            f"# Start: {usage}.",
            "# After a failure torchrun starts all processes of a node again, so many times; they",
            "# go on from the newest checkpoint.",
            *(f"# {line}" for line in work.needs),
            "set -eu",
            "",
            "# Threads of one process; torchrun would set 1.",
            f"export OMP_NUM_THREADS={work.threads}",
            "",
            f"exec torchrun {self._rendezvous(work)} \\",
            f"  --nproc-per-node {work.per_node} \\",
            f"  {shlex.join(work.under_torchrun)}",
        ]
        return "\n".join(lines) + "\n"

    def submission(self, work: Work, file: str) -> list[str]:
        """What starts it here, as the first node where there are several."""
        return ["sh", file, *(["0"] if work.nodes > 1 else [])]

    def _rendezvous(self, work: Work) -> str:
        if work.nodes == 1:
            if self.head is not None:
                raise BadInput(
                    "one node meets nobody: --head says nothing",
                    hint="leave it out, or --nodes N with several",
                )
            return "--standalone"
        if self.head is None:
            raise BadInput(
                "torchrun on several nodes meets at the first one, whose address is not known",
                hint="--head NAME, as the other nodes reach it",
            )
        # Static: a node's number decides its ranks, so neighbours in the layout share a node.
        head = shlex.join(["--master-addr", self.head, "--master-port", str(self.port)])
        return f'--nnodes {work.nodes} --node-rank "${{1:?which node is this?}}" \\\n  {head}'
