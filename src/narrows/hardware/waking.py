"""How threads that serve others wake beside the ones that they serve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waking_gently() -> Iterator[None]:
    """Threads started within it, such as those of a gloo group, wait for the one that runs when
    something wakes them; does nothing where the system or the process has another way.

    Where a packet wakes gloo's loop, it may push away a thread that holds the lock it wants, and
    asks for that again and again until the scheduler's next tick gives the core back. As batch work
    (sched(7)) it lets the other finish: LOG.md has what it saved.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    as_usual = os.sched_param(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, as_usual)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, as_usual)
