"""narrows tune refuses what means nothing before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrows.cli.main import main

SIZED = "[train]\nsteps = 5\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(f'name = "x"\n{SIZED}')
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a search goes over keys, or is a range test"),
        (["--learning-rate", "--over", "train.clip=0..1"], "a search goes over keys"),
        (["--over", "train.clip=1..0"], "has no numbers from 1 to 0"),
        (["--over", "train.clip=0..1", "--trials", "0"], "--trials 0 means nothing"),
        (["--learning-rate", "--trials", "3"], "--trials 3 means nothing"),
        (["--over", "train.clip=0..1", "--steps", "3"], "--steps 3 means nothing"),
        (["--over", "train.clip=0..1", "--budget", "$3"], "no budget of money"),
        (["--over", "data.corpus=a,b"], "cannot be compared"),
        (["--over", "train.clap=0..1"], "unknown key clap in [train]"),
        (["--over", "train.optimizer=adamx,lionn"], "adamx"),
    ],
)
def test_what_means_nothing_is_refused(
    job: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(job), *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and "hint:" in told


def test_a_trial_must_be_of_a_known_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.toml"
    path.write_text('name = "x"\n')
    assert main(["tune", str(path), "--over", "train.clip=0..1", "--trials", "2"]) == 2
    assert "how long one trial is" in capsys.readouterr().err
