from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from narrows.cli.main import VERBS, main

NARROWS = [sys.executable, "-m", "narrows.cli.main"]
SOURCE = str(Path(__file__).parents[2] / "src")


def run(
    *words: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NARROWS, *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
    )  # fmt: skip


def names() -> list[str]:
    return list(VERBS)


def test_help_opens_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("examples:\n  narrows probe ")
    assert all(f"    {name} " in shown for name in names())


@pytest.mark.parametrize("name", names())
def test_each_verb_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert shown.startswith(f"examples:\n  narrows {name}")
    assert "--json" in shown


def test_help_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, narrows.cli.main as m; m.main([]);"
        "assert not {'torch', 'numpy', 'msgspec', 'asyncio'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": SOURCE})
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["trian"], '"trian" is none of: probe', "did you mean train?"),
        (["plan", "--budgt", "5min"], "does not know --budgt", "did you mean --budget?"),
        (["plan", "a.toml", "b.toml"], "has no use for: b.toml", "narrows plan --help"),
        (["plan"], "nothing says what to train", "--corpus shakespeare --budget 5min"),
        (["plan", "--corpus", "python", "--budget", "5"], '"5" is no budget', 'a time "5min"'),
        (["plan", __file__], "test_main.py is neither a job nor a plan: not valid TOML",
         f"a text to train on: --corpus {__file__}"),
        (["plan", "no.toml"], "no.toml does not exist", "check the path"),
        (["plan", "--corpus", "python", "--allow", "speed"], '"speed" is none of: recompute',
         "narrows plan --help"),
        (["train", "no.toml"], "no.toml does not exist", "check the path"),
        (["train", "--corpus", "python", "--resume"], "there is no run of python to resume",
         "train one: "),
        (["generate", "runs/none"], "runs/none does not exist", "train one: "),
        (["generate"], "the following arguments are required: MODEL", "narrows generate --help"),
        (["serve", "x", "--cache", "fp8"], '"fp8" is none of: bf16, int8', "narrows serve --help"),
        (["generate", "x", "--tokens", "many"], "invalid int value: 'many'",
         "narrows generate --help"),
        (["report", "."], ". is not a run folder", "train one: "),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)  # fmt: skip
def test_a_mistake_is_answered_with_what_and_a_hint(
    words: list[str], what: str, hint: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    first, *_, last = said.err.splitlines()
    assert first.startswith("error: ") and what in first
    assert last.startswith("hint: ") and hint in last


def test_a_misspelt_key_in_a_job_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('name = "x"\n[train]\nstpes = 3\n')
    assert main(["plan", str(job)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {job}: unknown key stpes in [train]",
        "hint: did you mean steps?",
    ]


def test_json_errors_are_json_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "nothing says what to train"
    assert told["exit_code"] == 2


def test_a_file_without_rights_is_no_traceback(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "job.toml").write_text('name = "x"')
    (tmp_path / "job.toml").chmod(0)
    done = run("plan", "job.toml", folder=tmp_path)
    assert done.returncode == 2 and "may not be read" in done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            NARROWS, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_a_failed_run() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            NARROWS, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on device\nhint: free some space")
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_terminal_that_cannot_show_a_letter_gets_a_question_mark() -> None:
    done = run("generate", "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "none below P ? the likeliest" in done.stdout


def test_a_closed_standard_output_is_no_crash() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(NARROWS)} >&-"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
