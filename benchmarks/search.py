"""How fast layouts are evaluated: Llama-3.1-405B on 16,384 H100s, every layout in full.

    python benchmarks/search.py [--runs 5]

Time, memory and energy of each layout are computed anew; nothing is kept from one layout for
another and none is dropped before it is evaluated. On one core; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from statistics import median

import msgspec

from narrows.hardware.fleet import fleet
from narrows.model.presets import preset
from narrows.plan.fleet.search import evaluate
from narrows.plan.fleet.structures import candidates
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work

MODEL, MACHINE, BATCH, POSITIONS = "llama-3.1-405b", "2048x8xh100-sxm", 2048, 8192


def main() -> None:
    """Search several times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    machine = fleet(MACHINE)
    spec = msgspec.structs.replace(preset(MODEL).spec, context=POSITIONS)
    searching, evaluating = [], []
    for _ in range(runs):
        begin = time.perf_counter()
        work = Work.of(spec, POSITIONS)
        spreads = candidates(work, machine, BATCH, Wanted())
        enumerated = time.perf_counter()
        found = evaluate(work, spreads, machine)
        best = found.best()
        end = time.perf_counter()
        searching.append(end - begin)
        evaluating.append(end - enumerated)
    assert best is not None
    spread = found.spreads.spread(best)
    print(f"{spreads.size:,} layouts of {MODEL} on {MACHINE}, {int(found.fits.sum()):,} fit")
    print(f"best: {found.seconds[best]:.2f} s a step, {found.bytes[best] / 1e9:.1f} GB, {spread}")
    print(json.dumps({
        "layouts": spreads.size,
        "layouts_per_s": round(spreads.size / median(evaluating)),
        "search_s": round(median(searching), 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
