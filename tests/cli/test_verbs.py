"""The way of a run through the command line, in order: each test goes on where the last ended."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import narrows
from narrows.cli.main import main
from narrows.spec import record
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan

pytestmark = pytest.mark.usefixtures("place")
Said = pytest.CaptureFixture[str]


def following(said: str) -> str:
    """The command that the last line on standard error names."""
    last = said.splitlines()[-1]
    assert last.startswith("next: ")
    return last.removeprefix("next: ")


def test_probe_shows_the_machine_that_is_known(capsys: Said, place: Path) -> None:
    assert main(["probe", "-o", "copy.toml"]) == 0
    said = capsys.readouterr()
    machine = record.load(Machine, "copy.toml")
    assert machine.processor.name in said.out
    assert following(said.err).startswith("narrows plan ")
    assert main(["probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == machine.fingerprint


def test_doctor_reports_and_its_exit_code_says_whether_something_is_bad(capsys: Said) -> None:
    code = main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {finding["level"] for finding in findings} <= {"ok", "warn", "bad"}
    assert code == int(any(finding["level"] == "bad" for finding in findings))


def test_plan_answers_and_keeps_the_plan(capsys: Said) -> None:
    assert main(["plan", "job.toml", "-o", "plan.toml"]) == 0
    said = capsys.readouterr()
    assert "plan for tiny" in said.out and "bottleneck" in said.out
    assert following(said.err) == "narrows train plan.toml"
    plan = record.load(Plan, "plan.toml")
    assert (plan.steps, plan.model.width) == (12, 32)
    assert main(["plan", "job.toml", "--json", "--set", "train.steps=13"]) == 0
    said = capsys.readouterr()
    assert record.loads(Plan, said.out, source="plan.json").steps == 13
    assert following(said.err) == "narrows train job.toml --set train.steps=13"


def test_plan_refuses_a_plan(capsys: Said) -> None:
    assert main(["plan", "plan.toml"]) == 2
    assert capsys.readouterr().err.endswith("hint: narrows train plan.toml\n")


def test_plan_of_what_does_not_fit_is_exit_3_with_a_hint_of_this_job(capsys: Said) -> None:
    wide = ["--set", "model.width=65536", "--set", "model.layers=64"]
    assert main(["plan", "job.toml", *wide]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: the job does not fit: ") and "GB needed" in said
    assert "hint: " in said


def test_plan_never_loads_torch(place: Path) -> None:
    program = (
        "import sys; from narrows.cli.main import main; code = main(['plan', 'job.toml']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=place, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(narrows.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_train_runs_the_plan_and_shows_both_ledgers(capsys: Said) -> None:
    assert main(["train", "plan.toml"]) == 0
    said = capsys.readouterr()
    assert "predicted" in said.out and "measured" in said.out
    assert following(said.err) == 'narrows generate runs/tiny --prompt "..."'
    assert record.load(Ledger, "runs/tiny/ledger.json").total.steps == 12
    assert len(Path("runs/tiny/samples.jsonl").read_text().splitlines()) >= 1


def test_what_was_measured_corrects_the_machine(machine: Machine, place: Path) -> None:
    corrected = record.load(Machine, place / "home" / "machine.toml")
    assert corrected.calibration != machine.calibration
    assert corrected.fingerprint == machine.fingerprint


def test_train_never_writes_over_a_run(capsys: Said) -> None:
    assert main(["train", "plan.toml", "--run", "runs/tiny"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["train", "runs/tiny"]) == 2
    assert "narrows train runs/tiny --resume" in capsys.readouterr().err
    assert main(["train", "job.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/tiny-2"


def test_resuming_what_is_finished_keeps_it(capsys: Said) -> None:
    before = Path("runs/tiny/metrics.jsonl").read_text()
    assert main(["train", "runs/tiny", "--resume"]) == 0
    capsys.readouterr()
    assert Path("runs/tiny/metrics.jsonl").read_text().startswith(before)


def test_resuming_by_a_file_says_where_it_differs(capsys: Said) -> None:
    plan = record.load(Plan, "runs/tiny/plan.toml")
    record.save(msgspec.structs.replace(plan, steps=plan.steps + 9), Path("longer.toml"))
    assert main(["train", "longer.toml", "--run", "runs/tiny", "--resume"]) == 2
    assert "began with another steps" in capsys.readouterr().err
    assert main(["train", "job.toml", "--run", "runs/tiny", "--resume"]) == 0
    assert "began with another job" not in capsys.readouterr().err
    words = ["train", "job.toml", "--run", "runs/tiny", "--resume"]
    job = Path("job.toml").read_text()
    Path("job.toml").write_text(job.replace("steps = 12", "steps = 13"))
    try:
        assert main(words) == 0
        assert "the run began with another job than job.toml" in capsys.readouterr().err
    finally:
        Path("job.toml").write_text(job)


def test_generate_streams_the_prompt_and_what_follows(capsys: Said) -> None:
    words = ["generate", "runs/tiny", "--prompt", "def ", "--tokens", "20", "--seed", "3"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith("def ") and said.out.endswith("\n")
    assert following(said.err) == "narrows report runs/tiny"
    account = [line.split() for line in said.err.splitlines()[-5:-1]]
    assert account[0] == ["predicted", "measured"]
    assert [" ".join(words[:-5]) for words in account[1:]] == ["first token", "per token", "memory"]
    assert all(words[-1].endswith("%") for words in account[1:])
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] + told["text"] + "\n" == said.out
    for name in ("predicted", "measured"):
        ledger = record.from_builtins(Ledger, told[name])
        assert ledger.basis == name and ledger.total.steps == told["tokens"] - 1
        assert ledger.first_token_s > 0 and ledger.per_token_s > 0 and ledger.memory.peak > 0


@pytest.mark.parametrize("to", ["tiny-hf", "tiny.gguf"])
def test_export_writes_what_generate_reads(to: str, capsys: Said) -> None:
    assert main(["export", "runs/tiny", "--to", to]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("runs/tiny, step 12 → ") and "perplexity" in said.out
    assert shlex.split(following(said.err))[:3] == ["narrows", "generate", to]
    for cache in ((), ("--cache", "int8")):
        assert main(["generate", to, "--prompt", "def ", "--tokens", "5", *cache]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("def ") and following(said.err) == f"narrows serve {to}"
    assert main(["export", "runs/tiny", "--to", to]) == 2
    assert f"--to {Path(to).with_stem(Path(to).stem + '-2')}" in capsys.readouterr().err
    assert main(["export", to, "--to", f"again-{to}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] == 0.0 and told["readers"][0] == "narrows"
    assert told["path"] == f"again-{to}"


def test_export_of_what_is_not_there_says_what_is(capsys: Said) -> None:
    assert main(["export", "runs/tyni", "--to", "x"]) == 2
    assert "did you mean runs/tiny?" in capsys.readouterr().err
    assert main(["export", "runs/tiny", "--to", "x.gguf", "--type", "q9"]) == 2
    assert "known: f32, f16, " in capsys.readouterr().err and not Path("x.gguf").exists()


def test_report_writes_the_page_and_the_facts(capsys: Said) -> None:
    assert main(["report", "runs/tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "finished"
    assert Path(facts["page"]).read_text().lower().startswith("<!doctype html>")
