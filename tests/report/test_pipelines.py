from __future__ import annotations

import pytest

from narrows.report.pipelines import Slot, Task, timeline
from narrows.spec.fleet import Spread

SCHEDULES = {
    "gpipe": Spread(schedule="gpipe"), "1f1b": Spread(), "interleaved": Spread(interleave=2),
    "in four": Spread(interleave=4), "zero bubble": Spread(schedule="zero_bubble", interleave=2),
}  # fmt: skip
every = pytest.mark.parametrize("spread", SCHEDULES.values(), ids=SCHEDULES.keys())
sizes = pytest.mark.parametrize(("ranks", "micros"), [(2, 2), (2, 8), (4, 8), (4, 16), (8, 32)])


def end(slot: Slot) -> float:
    return slot.start + slot.length


def of(slots: list[Slot], rank: int) -> list[Slot]:
    return sorted((slot for slot in slots if slot.rank == rank), key=lambda slot: slot.start)


@every
@sizes
def test_every_pass_runs_once_and_after_what_it_needs(
    spread: Spread, ranks: int, micros: int
) -> None:
    slots = timeline(spread, ranks, micros)
    ends = {slot.task: end(slot) for slot in slots}
    pieces = ranks * spread.interleave
    passes = 3 if spread.schedule == "zero_bubble" else 2
    assert len(ends) == len(slots) == micros * pieces * passes
    for slot in slots:
        micro, piece, passing = slot.task
        if passing == "weights":
            needs = Task(micro, piece, "backward")
        elif passing == "backward":
            after = Task(micro, piece + 1, "backward")
            needs = after if piece < pieces - 1 else Task(micro, piece, "forward")
        elif piece:
            needs = Task(micro, piece - 1, "forward")
        else:
            continue
        assert ends[needs] <= slot.start + 1e-9


@every
@sizes
def test_a_rank_does_one_thing_at_a_time(spread: Spread, ranks: int, micros: int) -> None:
    slots = timeline(spread, ranks, micros)
    for rank in range(ranks):
        own = of(slots, rank)
        assert sum(slot.length for slot in own) == pytest.approx(3.0 * micros)
        for before, after in zip(own, own[1:], strict=False):
            assert end(before) <= after.start + 1e-9


@pytest.mark.parametrize(("name", "bubble"), [("gpipe", 3.0), ("1f1b", 3.0), ("interleaved", 1.5),
                                              ("in four", 0.75)])  # fmt: skip
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_bubble_is_the_published_one(name: str, bubble: float, ranks: int) -> None:
    """(p - 1) / v of a forward and a backward pass (arXiv:2104.04473)."""
    slots = timeline(SCHEDULES[name], ranks, 4 * ranks)
    lost = max(end(slot) for slot in slots) - 3.0 * 4 * ranks
    assert lost == pytest.approx((ranks - 1) * bubble)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_backward_passes_cut_in_two_leave_little_of_the_bubble(ranks: int) -> None:
    slots = timeline(SCHEDULES["zero bubble"], ranks, 4 * ranks)
    lost = max(end(slot) for slot in slots) - 3.0 * 4 * ranks
    assert 0.0 <= lost <= 0.7 * (ranks - 1)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("gpipe", lambda p: 4.0 * p), ("1f1b", lambda p: p),
        ("interleaved", lambda p: p + (p - 1) / 2), ("zero bubble", lambda p: p),
    ],
)  # fmt: skip
def test_the_first_rank_keeps_what_the_plan_counts(name: str, most: object, ranks: int) -> None:
    """Micro-batches whose activations a stage holds at once; plan/fleet/stages.py has the same."""
    spread = SCHEDULES[name]
    last = "weights" if spread.schedule == "zero_bubble" else "backward"
    held = peak = 0
    for slot in of(timeline(spread, ranks, 4 * ranks), 0):
        held += (slot.task.passing == "forward") - (slot.task.passing == last)
        peak = max(peak, held)
    assert callable(most)
    assert peak / spread.interleave == pytest.approx(most(ranks))
