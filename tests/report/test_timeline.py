from __future__ import annotations

from pathlib import Path

import msgspec

from narrows.report import timeline
from narrows.report.run import read
from narrows.spec.record import save
from narrows.spec.timeline import Lane, Timeline

LANE = Lane(rank=0, compute=((0.0, 0.05),), link=((0.03, 0.09),), data=(), waiting=((0.05, 0.09),),
            exchanging_s=0.06, hidden_s=0.02)  # fmt: skip
FOUND = Timeline(
    first_step=3, begins=(0.0, 0.06), seconds=0.12, clock_error_s=0.0,
    lanes=tuple(msgspec.structs.replace(LANE, rank=rank) for rank in range(20)),
)  # fmt: skip


def test_the_share_that_is_hidden_is_said_in_both_languages() -> None:
    said = timeline.sentence(FOUND)
    assert said.en.replace("\u00a0", " ") == (
        "Of 30.0 ms of exchange in a step 10.0 ms are hidden behind computation (33 %)."
    )
    assert "30" in said.zh and "掩盖" in said.zh
    alone = msgspec.structs.replace(LANE, link=(), exchanging_s=0.0, hidden_s=0.0)
    silent = msgspec.structs.replace(FOUND, lanes=(alone,))
    assert timeline.sentence(silent).en == "Nothing is exchanged."


def test_each_of_the_first_ranks_has_computation_above_exchange() -> None:
    drawn = timeline.lanes(FOUND, 656.0)
    assert "rank 15" in drawn and "rank 16" not in drawn
    assert drawn.count('class="computing"') == drawn.count('class="waiting"') == 16
    assert "reading" not in drawn
    assert "milliseconds" in drawn
    slow = msgspec.structs.replace(FOUND, seconds=60.0)
    assert "milliseconds" not in timeline.lanes(slow, 656.0)


def test_a_run_without_one_has_no_section(run_folder: Path) -> None:
    run = read(run_folder)
    assert timeline.section(run) is None
    save(FOUND, run_folder / "timeline.json")
    shown = timeline.section(read(run_folder))
    assert shown is not None and "What is hidden behind what" in shown
