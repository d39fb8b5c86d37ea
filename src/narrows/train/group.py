"""The processes of a training: whether this is one of several, and how they find each other.

Each of several has torchrun's environment, whoever started it: RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from narrows.hardware.waking import waking_gently
from narrows.spec.errors import LostOthers

if TYPE_CHECKING:
    from torch.distributed import Store

_PATIENCE = timedelta(minutes=10)


def started() -> int | None:
    """How many processes were started, this one among them; None where nobody did."""
    known = os.environ.get("WORLD_SIZE"), os.environ.get("RANK")
    return int(known[0]) if known[0] and known[1] else None


def speaks() -> bool:
    """Whether this process speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(kind: str) -> Iterator[Store | None]:
    """Within it this process talks to the others, by gloo on processors and NCCL on CUDA; yields
    where they leave each other notes, None for one that is alone.
    """
    count = started()
    if count is None or count == 1:
        yield None
        return
    import torch
    import torch.distributed as dist

    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if kind == "cuda" else "gloo"
    rank = int(os.environ["RANK"])
    store = _store(rank, count)
    with waking_gently():
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE
        )
    try:
        yield store
    except RuntimeError as error:
        if not _of_the_network(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        what = f"process {os.environ['RANK']} lost the others"
        raise LostOthers(what, causes=[reason]) from error
    finally:
        dist.destroy_process_group()


def _store(rank: int, count: int) -> Store:
    """Where the processes leave each other notes. torchrun's agent keeps one store for all of its
    restarts, in which those started again would find the addresses of those before: gloo then waits
    for the dead. So each restart writes under a name of its own.
    """
    from torch.distributed import PrefixStore, TCPStore

    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), count,
        is_master=rank == 0 and not agent, timeout=_PATIENCE, wait_for_workers=False,
        multi_tenant=True,
    )  # fmt: skip
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _of_the_network(error: RuntimeError) -> bool:
    """Whether a collective failed: gloo says so by its file's name alone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)
