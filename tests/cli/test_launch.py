from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import narrows
from narrows.cli.main import main
from narrows.spec import record
from narrows.spec.plan import Plan

pytestmark = pytest.mark.usefixtures("folder")
Said = pytest.CaptureFixture[str]
SOURCE = str(Path(narrows.__file__).parents[1])


@pytest.fixture
def folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with a plan for two processes."""
    assert main(["plan", "job.toml", "-o", str(tmp_path / "plan.toml")]) == 0
    plan = record.load(Plan, tmp_path / "plan.toml")
    layout = msgspec.structs.replace(plan.layout, data=2)
    record.save(msgspec.structs.replace(plan, layout=layout), tmp_path / "plan.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a command of that name and script before all others."""
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def test_it_prints_and_names_what_starts_it(capsys: Said, folder: Path) -> None:
    capsys.readouterr()
    assert main(["launch", "plan.toml", "--on", "torchrun"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("#!/bin/sh\n# tiny: data 2, as 1 x 2 processes")
    assert f"narrows train {folder}/plan.toml --run {folder}/runs/tiny" in said.out
    last = "next: the same with -o narrows-tiny.sh; sh narrows-tiny.sh"
    assert said.err.splitlines()[-1] == last


def test_it_writes_a_file_and_says_so_in_json(capsys: Said) -> None:
    words = ["launch", "plan.toml", "--on", "slurm", "--device", "cpu", "-o", "go.sbatch"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == Path("go.sbatch").read_text()
    assert told["submission"] == ["sbatch", "go.sbatch"]


def test_it_submits(command: Callable[[str, str], None], capsys: Said) -> None:
    command("sbatch", 'cp "$1" submitted')
    words = ["launch", "plan.toml", "--on", "slurm", "--device", "cpu", "-o", "go.sbatch"]
    assert main([*words, "--submit"]) == 0
    assert Path("submitted").read_text() == Path("go.sbatch").read_text()
    command("sbatch", "exit 3")
    capsys.readouterr()
    assert main([*words, "--submit"]) == 1
    assert "sbatch go.sbatch ended with 3" in capsys.readouterr().err


def test_what_cannot_be_submitted_says_why(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    words = ["launch", "plan.toml", "--on", "slurm", "--device", "cpu", "--submit"]
    capsys.readouterr()
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("hint: -o FILE\n")
    assert main([*words, "-o", "go.sbatch"]) == 2
    assert "sbatch is not on this machine" in capsys.readouterr().err


def test_a_run_that_is_there_is_resumed_or_left_alone(capsys: Said, folder: Path) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("plan.toml").rename("runs/tiny/plan.toml")
    capsys.readouterr()
    words = ["launch", "runs/tiny/plan.toml", "--on", "torchrun"]
    assert main(words) == 0
    assert f"--run {folder}/runs/tiny-2\n" in capsys.readouterr().out
    assert main([*words, "--resume"]) == 0
    assert f"--run {folder}/runs/tiny --resume\n" in capsys.readouterr().out
    assert main([*words, "--run", "runs/tiny"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_run_is_launched_as_it_is_laid_out(capsys: Said) -> None:
    Path("runs/tiny").mkdir(parents=True)
    plan = record.load(Plan, "plan.toml")
    alone = msgspec.structs.replace(plan.layout, data=1)
    record.save(msgspec.structs.replace(plan, layout=alone), Path("runs/tiny/plan.toml"))
    capsys.readouterr()
    words = ["launch", "plan.toml", "--on", "torchrun", "--resume"]
    assert main(words) == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert "runs/tiny is laid out in another way than plan.toml" in message
    assert main(shlex.split(hint.removeprefix("hint: narrows "))) == 0


@pytest.mark.parametrize(("hosts", "told"), [
    (1, "as 1 x 2 processes"), (2, "as 2 x 1 processes"), (3, "as 1 x 2 processes"),
])  # fmt: skip
def test_a_process_that_is_laid_out_in_another_way_names_what_launches_the_run(
    hosts: int, told: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/tiny").mkdir(parents=True)
    plan = record.load(Plan, "plan.toml")
    record.save(plan, Path("runs/tiny/plan.toml"))
    alone = msgspec.structs.replace(plan.layout, data=1)
    record.save(msgspec.structs.replace(plan, layout=alone), Path("plan.toml"))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        whole = {"RANK": 0, "WORLD_SIZE": 2 * hosts, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "first"}
        for name, value in whole.items():
            patch.setenv(name, str(value))
        assert main(["train", "plan.toml", "--run", "runs/tiny", "--resume"]) == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert "runs/tiny is laid out in another way than plan.toml" in message
    assert main(shlex.split(hint.removeprefix("hint: narrows "))) == 0
    assert told in capsys.readouterr().out


def test_elsewhere_the_run_is_kept_where_that_place_keeps_them(capsys: Said) -> None:
    words = ["launch", "plan.toml", "--device", "cpu", "--on"]
    capsys.readouterr()
    assert main([*words, "kubernetes", "--image", "i", "--claim", "c"]) == 0
    assert '"--run", "/runs/tiny"]' in capsys.readouterr().out
    assert main([*words, "skypilot", "--setup", "true"]) == 0
    assert "--run runs/tiny\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["--on", "slurm"], "slurm needs --device", "--device cpu or --device gpu"),
        (["--on", "slum"], '"slum" is none of: torchrun', "did you mean slurm?"),
        (["--on", "torchrun", "--image", "i"], "torchrun has no use for --image", "--head"),
        (["--on", "torchrun", "--nodes", "3"], "does not divide the plan's 2", "one of: 1, 2"),
        (["--on", "torchrun", "--nodes", "2"], "whose address is not known", "--head NAME"),
        (["--on", "torchrun", "--head", "x"], "--head says nothing", "leave it out"),
        (["--on", "torchrun", "--port", "99999"], "--port is 99999", "1 to 65535"),
    ],
)
def test_a_mistake_is_answered(words: list[str], what: str, hint: str, capsys: Said) -> None:
    capsys.readouterr()
    assert main(["launch", "plan.toml", *words]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert what in first and hint in last


def test_it_never_loads_torch_or_numpy() -> None:
    program = (
        "import sys; from narrows.cli.main import main;"
        "code = main(['launch', 'plan.toml', '--on', 'ray', '--device', 'cpu']);"
        "assert not {'torch', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_job_is_to_be_planned_first(capsys: Said) -> None:
    Path("job.toml").write_text('name = "tiny"\n[data]\ncorpus = "text"\n')
    capsys.readouterr()
    assert main(["launch", "job.toml", "--on", "torchrun"]) == 2
    said = capsys.readouterr().err
    assert "job.toml is no plan" in said
    assert "narrows plan job.toml --processes N -o plan.toml" in said
