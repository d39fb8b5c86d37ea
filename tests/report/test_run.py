import json
import math

import pytest

from narrows.report.run import read
from narrows.spec.errors import BadInput


def test_reads_everything_a_finished_run_has(run_folder):
    run = read(run_folder)
    assert run.finished and run.steps_done == 300
    assert len(run.steps) == 300 and len(run.evaluations) == 6
    assert [event.event for event in run.events] == [
        "checkpoint", "resume", "checkpoint", "slow", "checkpoint"
    ]  # fmt: skip
    assert run.best.step == 300
    assert run.diverged_at is None and run.notes == ()


def test_a_last_line_cut_by_a_kill_is_skipped_in_silence(make_run):
    folder = make_run(steps=60, ledger=False)
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole + b'{"step": 61, "loss": 4.')
    run = read(folder)
    assert run.steps[-1].step == 60
    assert [note.en for note in run.notes] == ["ledger.json is not there (yet)."]


def test_a_broken_line_in_the_middle_is_skipped_and_told(make_run):
    folder = make_run(steps=20)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[4] = "\x00\x00garbage"
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read(folder)
    assert [step.step for step in run.steps] == [1, 2, 3, 4, *range(6, 21)]
    assert "1 unreadable" in run.notes[0].en


def test_without_a_ledger_the_measured_part_comes_from_metrics(make_run):
    run = read(make_run(steps=40, ledger=False))
    assert not run.finished
    assert run.measured.rows == ()
    assert run.measured.total.steps == 40
    assert run.measured.total.tokens == 40 * 32 * 256
    assert run.measured.memory.peak == 612e6
    assert run.measured.step_seconds == pytest.approx(1.095, rel=0.02)
    assert run.measured.total.joules == pytest.approx(41 * 1.095 * 40, rel=0.02)


def test_a_run_that_has_not_begun_is_told_the_text_that_was_prepared(make_run, tmp_path):
    folder = make_run(steps=0, ledger=False)
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (folder / "dataset.json").rename(prepared / "dataset.json")
    plan = (folder / "plan.toml").read_text()
    there = plan.replace("/home/ada/.cache/narrows/data/9f31c2aa", str(prepared))
    (folder / "plan.toml").write_text(there)
    assert read(folder).dataset.name == "shakespeare"


def test_a_damaged_ledger_is_told_and_replaced_by_metrics(make_run):
    folder = make_run(steps=40)
    content = (folder / "ledger.json").read_text()
    (folder / "ledger.json").write_text(content[: len(content) // 2])
    run = read(folder)
    assert run.measured.rows == ()
    assert run.notes[0].en.startswith("ledger.json could not be used")


def test_a_step_taken_again_after_a_resume_counts_once_and_the_later_one_counts(make_run):
    folder = make_run(steps=20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 15, "loss": 1.5, "tokens": 1}) + "\n")
    run = read(folder)
    assert len(run.steps) == 20
    assert run.steps[14].loss == 1.5


def test_the_first_loss_that_is_not_finite_is_found(make_run):
    folder = make_run(steps=20, ledger=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": NaN}\n{"step": 22, "loss": null}\n')
    run = read(folder)
    assert run.diverged_at == 21
    assert math.isnan(run.steps[-1].loss)


def test_metrics_of_another_shape_do_no_harm(make_run):
    folder = make_run(steps=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1, 2]\n{"step": "four", "loss": 1}\n{"loss": 2}\n{"step": 4, "new": true}\n')
        file.write('{"step": 4, "loss": "high", "extra": {}}\n')
    run = read(folder)
    assert [step.step for step in run.steps] == [1, 2, 3, 4]
    assert math.isnan(run.steps[-1].loss)


@pytest.mark.parametrize("place", ["nowhere", "runs", "runs/tempest/plan.toml"])
def test_what_is_not_a_run_is_refused_with_one_that_is_near(make_run, tmp_path, place):
    folder = make_run(name="runs/tempest", steps=1)
    with pytest.raises(BadInput) as refusal:
        read(tmp_path / place)
    assert refusal.value.exit_code == 2
    if place != "runs/tempest/plan.toml":
        assert refusal.value.hint == f"narrows report {folder}"


def test_an_empty_folder_is_refused_with_how_to_make_a_run(tmp_path):
    empty = tmp_path / "runs" / "empty"
    empty.mkdir(parents=True)
    with pytest.raises(BadInput, match="no plan.toml") as refusal:
        read(empty)
    assert "narrows train" in refusal.value.hint


def test_a_damaged_plan_is_refused_by_name(make_run):
    folder = make_run(steps=1)
    (folder / "plan.toml").write_text("name = [")
    with pytest.raises(BadInput, match=r"plan\.toml"):
        read(folder)
