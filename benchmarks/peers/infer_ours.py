"""Worker: narrows' packed core, greedy."""

from __future__ import annotations

import os
import time

from infer_worker import Task, rate, report

from narrows.infer.packed import PackedWriter
from narrows.infer.packed_core import PackedCore
from narrows.infer.ready import named


def main() -> None:
    """Read the prompt, then write with each number of streams."""
    task = Task()
    os.environ["OMP_NUM_THREADS"] = str(task.threads)
    writer = named(task.model, None, lambda text: None).writer()
    assert isinstance(writer, PackedWriter)
    core = PackedCore(writer.model, max(task.streams), 1024)
    core.prefill(0, task.prompt[:4], 0)
    start_seconds = time.perf_counter() - task.began
    figures = {"prefill": rate(len(task.prompt), lambda: core.prefill(0, task.prompt, 0))}
    for count in task.streams:
        figures[f"streams_{count}"] = streams(core, task, count)
    report(task, start_seconds=start_seconds, version=writer.precision, **figures)


def streams(core: PackedCore, task: Task, count: int) -> float:
    """Tokens a second of so many texts together."""
    slots = list(range(count))
    last = []
    for slot, beginning in zip(slots, task.beginnings(count), strict=True):
        core.clear(slot)
        last.append(int(core.prefill(slot, beginning, 0).argmax()))

    def write() -> None:
        nonlocal last
        for slot in slots:
            core.cut(slot, 16)
        for _ in range(task.tokens):
            last = core.decode(slots, last).argmax(1).tolist()

    return rate(count * task.tokens, write)


if __name__ == "__main__":
    main()
