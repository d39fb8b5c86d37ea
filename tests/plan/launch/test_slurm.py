from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from narrows.plan.launch.slurm import Slurm
from narrows.plan.launch.work import Work
from narrows.spec.errors import BadInput

MakeWork = Callable[..., Work]
Kept = Callable[[Path], list[dict[str, Any]]]

# The parts of Slurm that the script calls, enough to start its tasks one by one.
_SCONTROL = "#!/bin/sh\nprintf 'node7\\nnode8\\n'\n"
_SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" || exit
done
"""
_NARROWS = '#!/bin/sh\necho "$RANK/$WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT does $*"\n'


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"]


def test_what_slurm_is_asked_for(make_work: MakeWork) -> None:
    asked = Slurm(device="gpu", partition="long", account="me", time="2:00:00").text(make_work())
    assert directives(asked) == [
        "--job-name=narrows-plays-of-1600", "--nodes=2", "--ntasks-per-node=4",
        "--cpus-per-task=3", "--gpus-per-node=4", "--partition=long", "--account=me",
        "--time=2:00:00", "--requeue", "--signal=TERM@120",
    ]  # fmt: skip
    assert "gpus" not in Slurm(device="cpu").text(make_work())


@pytest.mark.parametrize("value", ["long; rm x", "two words", "", "$HOME"])
def test_options_that_would_break_a_line_are_refused(value: str, make_work: MakeWork) -> None:
    with pytest.raises(BadInput, match="--partition is"):
        Slurm(device="cpu", partition=value).text(make_work())


@pytest.mark.parametrize(("restarts", "resume"), [("0", []), ("1", ["--resume"])])
def test_tasks_get_torchruns_names_and_a_requeued_job_resumes(
    restarts: str, resume: list[str], make_work: MakeWork, tmp_path: Path
) -> None:
    run = tmp_path / "Bob's runs" / "plays"
    run.mkdir(parents=True)
    (run / "plan.toml").touch()
    for name, text in (("scontrol", _SCONTROL), ("srun", _SRUN), ("narrows", _NARROWS)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = Slurm(device="cpu", setup="export READY=1").text(make_work(run=str(run)))
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[7-8]",
             "SLURM_JOB_ID": "123456", "SLURM_RESTART_COUNT": restarts},
    )  # fmt: skip
    does = " ".join(["train", "/here/plan.toml", "--run", str(run), *resume])
    assert done.stdout.splitlines() == [f"{rank}/2 at node7:23456 does {does}" for rank in (0, 1)]


@pytest.mark.dist
@pytest.mark.slow
def test_slurm_runs_it(
    make_work: MakeWork, stub: dict[str, str], kept: Kept, tmp_path: Path
) -> None:
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm here")
    run = tmp_path / "run of Bob's"
    two = {"data": 2, "tensor": 1, "threads": 1}
    file = tmp_path / "launch.sbatch"
    file.write_text(Slurm(device="cpu").text(make_work(nodes=1, layout=two, run=str(run))))
    words = ["sbatch", "--wait", f"--output={tmp_path}/log", str(file)]
    done = subprocess.run(words, env=stub, check=False, timeout=120)
    assert done.returncode == 0, (tmp_path / "log").read_text()
    said = kept(run)
    assert [(each["RANK"], each["LOCAL_RANK"]) for each in said] == [("0", "0"), ("1", "1")]
    assert {each["total"] for each in said} == {3.0}
