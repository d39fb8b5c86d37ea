"""What processes did when: noted, put on one clock, and written as Perfetto reads it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from narrows.spec.record import load
from narrows.spec.timeline import Timeline, length
from narrows.train import timeline
from narrows.train.step import Trainer
from narrows.train.timeline import (
    STEPS,
    SUMMARY,
    TRACE,
    Event,
    Notes,
    Recorder,
    summary,
    trace_events,
)
from tests.parallel.processes import run

from .conftest import RandomBatches, layout, plan

NOTES = [
    Notes(
        [Event("compute", "aten::mm", 10.0, 11.0), Event("link", "gloo:all_reduce", 10.5, 12.0),
         Event("link", "gloo:all_gather", 10.6, 12.2), Event("data", "data", 12.5, 12.6),
         Event("compute", "aten::add", 12.0, 12.000001)],
        [(10.0, 13.0)], 0.0,
    ),
    Notes([Event("compute", "aten::mm", 10.1, 11.1)], [(10.0, 13.1)], 0.001),
]  # fmt: skip


def test_what_is_waited_for_is_exchange_with_nothing_else_to_do() -> None:
    found = summary(3, NOTES)
    first = found.lanes[0]
    assert first.waiting == (pytest.approx((1.0, 2.2)),)
    assert first.exchanging_s == pytest.approx(1.7)
    assert first.hidden_s == pytest.approx(0.5, abs=1e-5)
    assert (found.seconds, found.clock_error_s) == (pytest.approx(3.1), 0.001)


def test_events_are_of_the_trace_event_format() -> None:
    """Complete events (X) with ts and dur in microseconds, and names (M) of all pids and tids."""
    found = trace_events(NOTES)["traceEvents"]
    checked(found)
    ours = {event["name"]: event for event in found if event["ph"] == "X" and event["pid"] == 0}
    assert (ours["aten::mm"]["ts"], ours["aten::mm"]["dur"]) == (0.0, 1e6)
    # Too short to be seen; two exchanges at once have a thread each.
    assert "aten::add" not in ours
    assert ours["gloo:all_reduce"]["tid"] != ours["gloo:all_gather"]["tid"]


def checked(found: list[dict[str, Any]]) -> None:
    named: dict[str, set[tuple[int, int]]] = {"process_name": set(), "thread_name": set()}
    ends: dict[tuple[int, int], float] = {}
    for event in found:
        if event["ph"] == "M":
            named.setdefault(event["name"], set()).add((event["pid"], event["tid"]))
            assert event["args"]
    slices = [event for event in found if event["ph"] != "M"]
    for event in sorted(slices, key=lambda each: (each["ts"], -each["dur"])):
        assert event["ph"] == "X"
        assert event["dur"] > 0.0 and isinstance(event["name"], str)
        place = event["pid"], event["tid"]
        assert place in named["thread_name"] and (event["pid"], 0) in named["process_name"]
        # Events of a thread follow each other, up to the microsecond's digits.
        assert event["ts"] >= ends.get(place, -1e12) - 0.002, event
        ends[place] = event["ts"] + event["dur"]


def noted(folder: Path) -> None:
    # No exchange is left out, however short.
    timeline._SHORT_S = 1e-9
    trainer = Trainer(
        plan(layout=layout(data=2, sharding="parameters", micro_batch=2), steps=6),
        torch.device("cpu"),
    )
    recorder = Recorder(trainer, folder, 1)
    for number in range(1 + STEPS):
        with recorder.step(number):
            trainer.step(number, RandomBatches())


@pytest.mark.dist
def test_two_processes_leave_one_file_and_a_record(tmp_path: Path) -> None:
    run(2, noted, tmp_path)
    found = load(Timeline, tmp_path / SUMMARY)
    assert (found.first_step, found.steps, found.clock_error_s) == (1, STEPS, 0.0)
    assert [lane.rank for lane in found.lanes] == [0, 1]
    for lane in found.lanes:
        assert 0.0 < length(lane.compute) < found.seconds
        assert 0.0 <= lane.hidden_s < lane.exchanging_s < found.seconds
        assert lane.waiting
    with gzip.open(tmp_path / TRACE, "rt") as file:
        events = json.load(file)["traceEvents"]
    checked(events)
    # On one clock no process is done with a sum before the other has begun it, but for what a busy
    # core keeps one from noting.
    sums = [
        [(each["ts"], each["ts"] + each["dur"]) for each in events
         if each["name"] == "gloo:all_reduce" and each["pid"] == rank]
        for rank in (0, 1)
    ]  # fmt: skip
    assert len(sums[0]) == len(sums[1]) > 0
    for one, other in zip(*map(sorted, sums), strict=True):
        assert max(one[0], other[0]) < min(one[1], other[1]) + 2e4
    assert {event["pid"] for event in events} == {0, 1}
    names = {event["name"] for event in events}
    assert "aten::mm" in names or "aten::linear" in names
    assert any(name.startswith("gloo:") for name in names)
