"""Scaling on this machine: two processes of one thread against one of two, and what a save costs.

    python benchmarks/scaling.py [--work W1] [--turns 3] [--steps 4] [--profile]

The same global batch in one process, in two with whole copies (DDP) and in two that share the
parameters (FSDP), in turn: A B C A B C. Efficiency is the one process's step over the two's. Each
turn also writes checkpoints beside steps: what such a step takes longer is, at one a minute, the
stall. `work` sets the processors' seconds side by side, which other programs disturb less. Prints
medians, and as the last line JSON; --profile says where a step's time went.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from peers.commit import commit
from peers.environment import CACHE
from peers.plans import job_of, plan_of
from peers.works import WORKS, write_tokens

from narrows.hardware.probe import probe
from narrows.spec.plan import Plan
from narrows.spec.record import save

WORKER = Path(__file__).with_name("scaling_worker.py")
MINUTE = 60.0
SPREADS: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": {"data": 2},
    "fsdp": {"data": 2, "sharding": "parameters"},
}


def main() -> None:
    """Take the turns and print the table and the JSON."""
    asked = arguments()
    work = WORKS[asked.work]
    work = dataclasses.replace(work, batch=asked.batch or work.batch)
    machine = probe(talk=lambda text: print(text, file=sys.stderr))
    choices = [f"threads={2 * asked.threads}", *asked.layout]
    plan = plan_of(job_of(work, choices), machine)
    tokens = write_tokens(work, CACHE)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SPREADS}
    print(f"{work.name} on {machine.name}, {plan.layout.precision}, {plan.layout.kernels} kernels, "
          f"micro-batches of {plan.layout.micro_batch}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(asked.turns):
            for name, spread in SPREADS.items():
                path = Path(folder) / f"{name}.toml"
                save(spread_over(plan, spread), path)
                told = taken(path, tokens, asked)
                found[name].append(told)
                print(f"turn {turn + 1}  {name:5}{median(told['plain']):9.3f} s a step"
                      f"{stall(told):8.2f} s for a checkpoint of {told['bytes'] / 1e6:.0f} MB",
                      flush=True)  # fmt: skip
                for line in told["profile"]:
                    print(f"    {line}")
    print(json.dumps(summary(found) | {"work": work.name, "commit": commit()}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=sorted(WORKS), default="W1")
    parser.add_argument("--batch", type=int, help="sequences of a step, if not the work's own")
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--steps", type=int, default=4, help="steps measured in a turn")
    parser.add_argument("--saves", type=int, default=2, help="checkpoints written in a turn")
    parser.add_argument("--threads", type=int, default=1, help="of each of the two processes")
    parser.add_argument("--profile", action="store_true", help="say where the time went")
    parser.add_argument("--layout", action="append", default=[], metavar="KEY=VALUE",
                        help="insist on a layout choice instead of the plan's own")  # fmt: skip
    return parser.parse_args()


def spread_over(plan: Plan, spread: dict[str, Any]) -> Plan:
    """The plan with its batch and its threads divided among the processes."""
    layout = msgspec.structs.replace(plan.layout, **spread)
    if layout.processes > 1:
        each = plan.batch_sequences // layout.batches
        micro = min(layout.micro_batch, each)
        layout = msgspec.structs.replace(
            layout, threads=layout.threads // layout.processes, micro_batch=micro,
            accumulation=each // micro,
        )  # fmt: skip
    return msgspec.structs.replace(plan, layout=layout)


def taken(plan: Path, tokens: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """What the first process of a plan measured."""
    layout = msgspec.toml.decode(plan.read_bytes(), type=dict)["layout"]
    processes, threads = layout.get("data", 1), layout["threads"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, str(WORKER), str(plan), str(tokens), str(asked.steps),
             str(asked.saves), str(int(asked.profile))]  # fmt: skip
    started = []
    for rank in range(processes):
        given = {
            "RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        started.append(subprocess.Popen(words, env=os.environ | given, stdout=out, text=True))
    said = started[0].communicate()[0]
    if any(process.wait() for process in started):
        raise SystemExit(f"error: a process of {plan.name} failed")
    told: dict[str, Any] = json.loads(said.splitlines()[-1])
    return told


def stall(told: dict[str, Any]) -> float:
    """Seconds that a step with a checkpoint beside it takes longer."""
    return max(0.0, median(told["saving"]) - median(told["plain"]))


def worked(turns: list[dict[str, Any]]) -> float:
    """Seconds that processors worked for one process's step."""
    return median(each for told in turns for each in told["worked"])


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Efficiencies turn by turn, their medians, and the stalls as shares of a minute."""
    seconds = {name: [median(told["plain"]) for told in turns] for name, turns in found.items()}
    answer: dict[str, Any] = {}
    for name in ("ddp", "fsdp"):
        pairs = zip(seconds["one"], seconds[name], strict=True)
        each = [one / two for one, two in pairs]
        answer[f"{name}_efficiency"] = round(median(each), 3)
        answer[f"{name}_work"] = round(worked(found["one"]) / worked(found[name]) / 2, 3)
        answer[f"{name}_efficiency_turns"] = [round(one, 3) for one in each]
    for name, turns in found.items():
        answer[f"{name}_step_s"] = round(median(seconds[name]), 4)
        answer[f"{name}_stall_share"] = round(median(map(stall, turns)) / MINUTE, 4)
        waited = [median(told["waited"]) for told in turns]
        answer[f"{name}_waited_share"] = round(median(waited) / MINUTE, 4)
    return answer


if __name__ == "__main__":
    main()
