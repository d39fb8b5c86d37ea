"""Run a function in several processes that talk by gloo: forked, so that torch is there already."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run(count: int, function: Callable[..., Any], *given: Any) -> list[Any]:
    """What `function` returns in each of `count` processes; raises what one of them raised."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        processes = [
            context.Process(
                target=_one, args=(rank, count, Path(folder) / "store", queue, function, given)
            )
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        found: dict[int, Any] = {}
        # Pickled here: of tensors a queue would hand on memory that ends with its process.
        try:
            while len(found) < count:
                rank, value, failure = queue.get(timeout=600)
                if failure is not None:
                    raise AssertionError(f"rank {rank}:\n{failure}")
                found[rank] = pickle.loads(value)
        finally:
            for process in processes:
                process.join(timeout=0 if len(found) < count else 30)
                process.kill()
    return [found[rank] for rank in range(count)]


def _one(
    rank: int, count: int, store: Path, queue: Any, function: Callable[..., Any], given: Any
) -> None:
    torch.set_num_threads(1)
    try:
        if count > 1:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank,
                                    world_size=count)  # fmt: skip
        queue.put((rank, pickle.dumps(function(*given)), None))
    except BaseException:
        queue.put((rank, b"", traceback.format_exc()))
    finally:
        queue.close()
        queue.join_thread()
        if dist.is_initialized():
            dist.destroy_process_group()
