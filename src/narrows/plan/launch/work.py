"""What every launcher starts: so many processes on so many nodes, each running `narrows train`.

The contract of a process: torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are
set, and OMP_NUM_THREADS is the layout's.
"""

from __future__ import annotations

import re
from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.plan import Plan
from narrows.spec.record import Record
from narrows.spec.units import Seconds

Device = Literal["cpu", "gpu"]
_AXES = ("replicas", "data", "tensor", "pipeline", "context", "expert")
_NAME_LONGEST = 40
RESTARTS = 3
"""How often processes that fail may be started again, by launchers that do so."""
_UNSAFE = re.compile(r"""[\s'"\\#;`$]""")


class Work(Record):
    """A plan and the processes that run it.

    `file` is the plan's, `run` the folder that the run is kept in: where the processes are.
    """

    plan: Plan
    file: str
    run: str
    nodes: int
    per_node: int
    resume: bool = False

    @property
    def threads(self) -> int:
        """Of one process."""
        return self.plan.layout.threads

    @property
    def data(self) -> str:
        """The folder that the processes read their text from; the dataset in it names it too."""
        if self.plan.data is None:
            raise BadInput("the plan has no data to train on", hint="add [data] to the job")
        return self.plan.data.folder

    @property
    def arguments(self) -> list[str]:
        """What follows the word narrows in the command of every process."""
        resume = ["--resume"] if self.resume else []
        return ["train", self.file, "--run", self.run, *resume]

    @property
    def under_torchrun(self) -> list[str]:
        """What follows torchrun's other options. Started again, processes go on from the newest
        checkpoint.
        """
        # Without -- torchrun takes --run for an abbreviation of its --run-path.
        restarts = ["--max-restarts", str(RESTARTS)]
        return [*restarts, "--no-python", "--", "narrows", *self.arguments]

    @property
    def title(self) -> str:
        """The plan in one line, for the top of a file; as NODES x PROCESSES of a node."""
        shape = ", ".join(
            f"{axis} {size}" for axis in _AXES if (size := getattr(self.plan.layout, axis)) > 1
        )
        seconds = Seconds(self.plan.predicted.total.seconds).text()
        machine = self.plan.made_from.machine_name
        return (
            f"{self.plan.name}: {shape or 'one process'}, as {self.nodes} x {self.per_node} "
            f"processes; predicted: {seconds} on {machine}"
        )

    @property
    def needs(self) -> tuple[str, str]:
        """What every node must see, for the top of a file that runs where the plan lies."""
        return (
            "Every node needs, at the same paths, the plan, the run folder and the text that is in",
            self.data,
        )

    @property
    def label(self) -> str:
        """The plan's name as clusters accept names: lower-case letters, digits and hyphens, at the
        front a letter (RFC 1035).
        """
        plain = re.sub(r"[^a-z0-9]+", "-", self.plan.name.lower()).strip("-")
        return f"narrows-{plain}"[:_NAME_LONGEST].rstrip("-")


def placed(layout: Layout, nodes: int | None, per_node: int | None) -> tuple[int, int]:
    """Nodes and processes of each, one following from the other; all on one node where neither is
    said. Raises BadInput where they are not the layout's processes.
    """
    count = layout.processes
    for option, value in (("--nodes", nodes), ("--per-node", per_node)):
        if value is not None and (value < 1 or count % value):
            dividing = ", ".join(str(each) for each in range(1, count + 1) if count % each == 0)
            what = f"{option} {value} does not divide the plan's {count} processes"
            raise BadInput(what, hint=f"use one of: {dividing}")
    nodes = nodes or (count // per_node if per_node else 1)
    per_node = per_node or count // nodes
    if nodes * per_node != count:
        raise BadInput(
            f"{nodes} nodes of {per_node} processes are not the plan's {count}",
            hint=f"--nodes {nodes} --per-node {count // nodes}",
        )
    return nodes, per_node


def word(option: str, value: str) -> str:
    """`value`, or BadInput where it holds what would break a line that no shell reads."""
    if not value or _UNSAFE.search(value):
        raise BadInput(f"{option} is {value!r}", hint="use letters, digits and , . / : _ = -")
    return value
