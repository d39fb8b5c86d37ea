from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import narrows
from narrows.cli.main import main
from narrows.infer.export import export
from narrows.spec import record
from narrows.spec.forecast import Forecast
from narrows.spec.machine import Machine
from narrows.spec.trace import Comparisons
from tests.infer.conftest import MakeRun, spec

Said = pytest.CaptureFixture[str]
EIGHT = ["plan", "--machine", "8xh100-sxm", "--model", "llama-3.1-8b"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, in which no file has the name of a machine or a model."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine, as one that was probed."""
    machine = record.load(Machine, Path(__file__).with_name("machine.toml"))
    monkeypatch.setattr("narrows.hardware.probe.machine_known", lambda: machine)
    return machine


def refused(capsys: Said, *words: str, code: int = 2) -> tuple[str, str]:
    """The message and the hint of a command that cannot be done."""
    assert main(list(words)) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ")
    message, _, hint = said.err.removeprefix("error: ").rstrip().partition("\nhint: ")
    return message, hint


def answered(capsys: Said, *words: str) -> Forecast:
    assert main([*words, "--json"]) == 0
    return record.loads(Forecast, capsys.readouterr().out, source="forecast.json")


def test_the_answer_is_a_table(capsys: Said) -> None:
    assert main(EIGHT) == 0
    said = capsys.readouterr()
    assert said.out.startswith("llama-3.1-8b on 8 x NVIDIA H100 SXM5 80 GB\n")
    for part in ("512 sequences of 8,192", "tokens/s", "of the peak", "bottleneck: ", "datasheet"):
        assert part in said.out, part
    assert max(len(line) for line in said.out.splitlines()) <= 100


def test_the_answer_is_one_line_of_json(capsys: Said) -> None:
    assert main([*EIGHT, "--json"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    found = json.loads(said)
    assert (found["fleet"]["devices"], found["batch_sequences"]) == (8, 512)
    assert found["model"]["layers"] == 32 and found["predicted"]["basis"] == "predicted"


def test_the_forecast_is_written(capsys: Said) -> None:
    assert main([*EIGHT, "-o", "forecast.toml"]) == 0
    assert "wrote forecast.toml" in capsys.readouterr().err
    written = record.load(Forecast, "forecast.toml")
    assert written == answered(capsys, *EIGHT)


def test_a_budget_of_tokens_gives_totals(capsys: Said) -> None:
    assert main([*EIGHT, "--budget", "15T tokens"]) == 0
    said = capsys.readouterr().out
    assert "  total    15 T tokens in 3,576,279 steps: " in said
    assert re.search(r"\d MWh", said) and "$" in said and "t of CO2" in said
    assert main(EIGHT) == 0
    assert "  total " not in capsys.readouterr().out


def test_any_budget_buys_tokens_and_the_tightest_binds(capsys: Said) -> None:
    bounds = ("--budget", "3 days", "--budget", "$1000", "--budget", "10T tokens")
    found = answered(capsys, *EIGHT, *bounds)
    assert found.dial is not None and found.run is not None and found.dial.sizing is None
    assert [each.bound for each in found.dial.limits] == ["$1,000", "3 d", "10 T tokens"]
    assert found.run.dollars is not None and 990 < found.run.dollars <= 1000
    longer = answered(capsys, *EIGHT, "--budget", "3 days")
    assert longer.run is not None and 0.99 * 259_200 < longer.run.seconds <= 259_200
    assert main([*EIGHT, *bounds]) == 0
    said = capsys.readouterr().out
    assert "the budget: $1,000\n" in said and "3 d would buy" in said
    assert "is over before the end" in refused(capsys, *EIGHT, "--budget", "2 s")[0]


def test_without_a_model_the_budget_chooses_its_size(capsys: Said) -> None:
    machine = ["plan", "--machine", "8xh100-sxm"]
    found = answered(capsys, *machine, "--budget", "$1000")
    assert found.dial is not None and found.dial.sizing is not None and found.dial.loss is not None
    assert 1e9 < found.model.parameters < 4e9
    assert 5 < found.dial.tokens / found.model.parameters < 50
    assert main([*machine, "--budget", "$1000"]) == 0
    assert "the lowest loss by the law of 51" in capsys.readouterr().out
    message, hint = refused(capsys, *machine, "--budget", "$1000", "--tune", "lora")
    assert "none is named" in message and "narrows plan llama-3.1-8b" in hint
    assert "price" in refused(capsys, "plan", "--machine", "rtx-3060", "--budget", "$5")[0]


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("layout.tensor=2", "tensor", 2), ("tensor=4", "tensor", 4),
        ("layout.recompute=full", "recompute", "full"), ('sharding="none"', "sharding", "none"),
        ("layout.precision=fp8", "precision", "fp8"), ("layout.pipeline=4", "pipeline", 4),
        ("layout.micro_batch=2", "micro_batch", 2), ("layout.context=2", "context", 2),
    ],
)  # fmt: skip
def test_a_choice_that_is_set_is_kept(
    capsys: Said, assignment: str, name: str, value: object
) -> None:
    words = ["plan", "--machine", "8xh200", "--model", "smollm2-1.7b", "--set", assignment]
    assert getattr(answered(capsys, *words, "--context", "4096").spread, name) == value


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        ("layout.tensor=3", "32 heads cannot be divided among 3", "with N one of 1, 2, 4, 8"),
        ("layout.tensor=0", "layout.tensor is 0", "at least 1"),
        ("layout.tensor=-2", "layout.tensor is -2", "at least 1"),
        ("layout.tensor=two", "tensor should be a whole number", ""),
        ("layout.pipeline=64", "32 layers do not fill 64", "at most 32"),
        ("layout.expert=2", "a model without experts", "leave layout.expert out"),
        ("layout.recompute=most", "recompute cannot be 'most'", "none, selective, full"),
        ("layout.sharding=zero3", "sharding cannot be 'zero3'", "parameters"),
        ("layout.precision=fp4", "has no fp4 figures", "fp8"),
        ("layout.precision=int8", "precision cannot be 'int8'", "bf16"),
        ("layout.tensr=2", "no choice of a fleet's layout", "--set layout.tensor="),
        ("train.steps=5", "no choice of a fleet's layout", "known: precision, tensor"),
        ("layout.tensor", "no choice of a fleet's layout", "--set layout.tensor="),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_a_hint(
    capsys: Said, assignment: str, message: str, hint: str
) -> None:
    found = refused(capsys, *EIGHT, "--set", assignment)
    assert message in found[0] and hint in found[1]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("first_fewer=3", "pipeline=1", "layout.first_fewer says nothing where layout.pipeline"),
        ("exchange=all_to_all", "context=1", "layout.exchange says nothing where layout.context"),
        ("reshard=false", "sharding=none", "layout.reshard says nothing where layout.sharding"),
    ],
)
def test_choices_of_what_is_not_there_are_refused(
    capsys: Said, one: str, other: str, message: str
) -> None:
    found = refused(capsys, *EIGHT, "--set", f"layout.{one}", "--set", f"layout.{other}")
    assert found[0].startswith(message)


def test_a_choice_that_came_to_nothing_is_not_told(capsys: Said) -> None:
    words = [*EIGHT, "--set", "layout.exchange=all_to_all"]
    found = answered(capsys, *words)
    assert found.spread.context == 1 and "exchange" not in found.spread.unusual


@pytest.mark.parametrize(
    ("machine", "model", "near"),
    [
        ("8xh100-smx", "llama-3.1-8b", "h100-sxm"), ("rtx-4900", "llama-3.1-8b", "rtx-4090"),
        ("8xh100-sxm", "lama-3.1-8b", "llama-3.1-8b"), ("8xh100-sxm", "gpt-2-xll", "gpt2-xl"),
    ],
)  # fmt: skip
def test_an_unknown_name_suggests_the_near_one(
    capsys: Said, machine: str, model: str, near: str
) -> None:
    message, hint = refused(capsys, "plan", "--machine", machine, "--model", model)
    assert message.startswith("no ") and near in hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch is 0"), (["--batch", "-1"], "--batch is -1"),
        (["--batch", "99999999999999999999"], "--batch is 99999999999999999999"),
        (["--context", "0"], "model.context is 0"),
        (["job.toml"], "job.toml and --model llama-3.1-8b both say what to plan"),
        (["--corpus", "shakespeare"], "--corpus says nothing"),
        (["--allow", "recompute"], "--allow says nothing"),
        (["--model", "gpt2", "--context", "2048"],
         "context is 2048, and the model has embeddings of 1024 positions"),
        (["--against", "8xh100-smx"], 'no accelerator "h100-smx"'),
    ],
)  # fmt: skip
def test_what_contradicts_a_fleet_is_refused(capsys: Said, words: list[str], message: str) -> None:
    assert refused(capsys, *EIGHT, *words)[0].startswith(message)


@pytest.mark.parametrize(
    "words",
    [["--tune", "lora"], ["--batch", "8"], ["--context", "64"], ["--against", "h100"]],
)
def test_what_only_a_fleet_is_asked_is_refused_here(capsys: Said, words: list[str]) -> None:
    message, hint = refused(capsys, "plan", "--machine", "here", *words)
    assert message.startswith(words[0]) and "--machine 8xh100-sxm" in hint


def test_a_fleet_needs_a_model_and_a_file_to_be_there(capsys: Said) -> None:
    message, hint = refused(capsys, "plan", "--machine", "3090 24GB")
    assert "which model" in message
    assert hint == "narrows plan llama-3.1-8b --machine '3090 24GB'"
    message, hint = refused(capsys, "plan", "job.toml", "--machine", "8xh100-sxm")
    assert message == "job.toml is a job for this machine or a probed one"
    assert hint == "name a model: narrows plan llama-3.1-8b --machine 8xh100-sxm"
    message, hint = refused(capsys, "plan", "--machine", "other.toml", "--model", "gpt2")
    assert message == "other.toml does not exist" and hint == "narrows probe -o machine.toml"


def test_a_model_may_stand_where_a_job_does(capsys: Said, tmp_path: Path) -> None:
    there = answered(capsys, "plan", "llama-3.1-8b", "--machine", "8xh100-sxm")
    assert there == answered(capsys, "plan", "--machine", "8xh100-sxm", "--model", "llama-3.1-8b")
    message, hint = refused(capsys, "plan", "lama-3.1-8b", "--machine", "8xh100-sxm")
    assert message == "lama-3.1-8b is neither a file nor a published model"
    assert "did you mean llama-3.1-8b" in hint


def test_a_model_is_planned_on_this_machine_or_a_probed_one(capsys: Said, known: Machine) -> None:
    here = answered(capsys, "plan", "smollm2-135m", "--batch", "8")
    assert here == answered(capsys, "plan", "--machine", "here", "--model", "smollm2-135m",
                            "--batch", "8")  # fmt: skip
    assert main(["plan", "smollm2-135m", "--serve", "2"]) == 0
    assert f"served by 1 x {known.name}" in capsys.readouterr().out
    record.save(msgspec.structs.replace(known, devices=4), "probed.toml")
    other = answered(capsys, "plan", "smollm2-135m", "--batch", "8", "--machine", "probed.toml")
    assert other.predicted.step_seconds < here.predicted.step_seconds


def test_a_run_and_a_gguf_file_have_a_shape(
    capsys: Said, known: Machine, make_run: MakeRun, tmp_path: Path
) -> None:
    shape = spec()
    export(make_run(shape=shape), tmp_path / "run.gguf", talk=lambda _: None)
    for name in ("run", "run.gguf"):
        found = answered(capsys, "plan", name, "--machine", "rtx-4090", "--batch", "8")
        assert (found.model_name, found.model.width, found.positions) == (
            name, shape.width, shape.context
        )  # fmt: skip
        short = answered(capsys, "plan", name, "--context", "8", "--batch", "8")
        assert short.positions == 8


def test_the_shape_may_be_a_folder_with_a_config(capsys: Said, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
        "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 2,
        "vocab_size": 1000, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    found = answered(capsys, "plan", "--machine", "rtx-4090", "--model", "mine", "--batch", "16")
    assert (found.model_name, found.model.width, found.positions) == ("mine", 512, 1024)
    assert found.batch_sequences == 16


def test_other_fleets_stand_beside_it(capsys: Said) -> None:
    found = answered(capsys, *EIGHT, "--against", "8xb200", "--against", "rtx-4090")
    assert [each.fleet for each in found.elsewhere] == ["8xb200", "8xh100-sxm", "rtx-4090"]
    quicker, own, none = found.elsewhere
    assert own.step_seconds == found.predicted.step_seconds
    assert quicker.step_seconds and quicker.step_seconds < found.predicted.step_seconds
    assert none.spread is None


def test_the_best_machine_is_by_the_goal(capsys: Said) -> None:
    asked = ["plan", "--machine", "8xh100-sxm", "--model", "smollm2-135m", "--batch", "64",
             "--context", "1024", "--against", "h100-sxm", "--against", "rtx-3060"]  # fmt: skip
    assert answered(capsys, *asked).elsewhere[0].fleet == "8xh100-sxm"
    found = answered(capsys, *asked, "--goal", "money")
    assert [each.fleet for each in found.elsewhere] == ["h100-sxm", "8xh100-sxm", "rtx-3060"]
    assert found.elsewhere[-1].dollars_per_billion_tokens is None
    assert main([*asked, "--goal", "money"]) == 0
    assert "best for money: 1 x h100-sxm, $" in capsys.readouterr().out
    gaming = ["plan", "--machine", "rtx-3060", "--model", "gpt2", "--goal", "money"]
    message, hint = refused(capsys, *gaming)
    assert "the price of NVIDIA GeForce RTX 3060" in message and "--goal time" in hint


def test_the_goal_decides(capsys: Said) -> None:
    goals = ("time", "energy", "memory")
    found = {goal: answered(capsys, *EIGHT, "--goal", goal) for goal in goals}
    assert [found[goal].goal for goal in goals] == list(goals)
    values = {
        "time": {goal: each.predicted.step_seconds for goal, each in found.items()},
        "energy": {goal: each.predicted.total.joules for goal, each in found.items()},
        "memory": {goal: each.predicted.memory.peak for goal, each in found.items()},
    }
    for goal in goals:
        assert values[goal][goal] == min(values[goal].values()), goal
    assert values["memory"]["memory"] < values["memory"]["time"]


def test_carbon_is_of_the_region_and_its_buildings(capsys: Said) -> None:
    asked = [*EIGHT, "--budget", "1T tokens", "--against", "8xb200"]
    usual = answered(capsys, *asked)
    found = answered(capsys, *asked, "--region", "sweden", "--pue", "1.1")
    assert usual.run is not None and found.run is not None
    assert usual.run.carbon_grams is not None and found.run.carbon_grams is not None
    assert found.run.joules == usual.run.joules
    ratio = found.run.carbon_grams / usual.run.carbon_grams
    assert ratio == pytest.approx(41 * 1.1 / (473 * 1.56))
    message, hint = refused(capsys, *asked, "--region", "swedn")
    assert message == 'no region "swedn" in the catalogue' and "sweden" in hint
    assert "0.5 cannot be" in refused(capsys, *asked, "--pue", "0.5")[0]


def test_neither_torch_nor_a_file_of_this_machine_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from narrows.cli.main import main;"
        f"code = main({EIGHT!r}); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(narrows.__file__).parents[1]),
             "NARROWS_HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not home.exists()


def test_adapters_fit_where_training_all_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--machine", "rtx-4090", "--model", "llama-3.1-8b", "--batch", "16",
             "--context", "2048"]  # fmt: skip
    assert main(asked) == 3
    capsys.readouterr()
    assert main([*asked, "--tune", "qlora"]) == 0
    told = capsys.readouterr().out
    assert "of the weights trained" in told and "bits" in told


def test_serving_refuses_what_is_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--machine", "h100", "--model", "llama-3.1-8b", "--serve", "4"]
    assert main(asked) == 0
    assert "first token" in capsys.readouterr().out
    assert main([*asked, "--tune", "lora"]) == 2
    assert "--tune says nothing of serving" in capsys.readouterr().err


@pytest.mark.usefixtures("known")
def test_this_machine_stands_beside_those_to_rent(capsys: Said) -> None:
    small = ["plan", "--model", "smollm2-135m", "--batch", "8", "--context", "1024"]
    found = answered(capsys, *small, "--machine", "h100", "--against", "here")
    assert [each.fleet for each in found.elsewhere] == ["h100", "here"]
    assert found.elsewhere[1].step_seconds > 100 * found.predicted.step_seconds
    alone = answered(capsys, *small, "--machine", "here")
    assert alone.predicted.step_seconds == found.elsewhere[1].step_seconds
    for goal in ("time", "money", "energy"):
        both = answered(capsys, *small, "--machine", "here", "--against", "h100", "--goal", goal)
        assert [each.fleet for each in both.elsewhere] == ["h100", "here"]


def test_a_layout_is_traced_beside_its_plan(capsys: Said) -> None:
    words = ["plan", "--machine", "8xh100-sxm", "--model", "gpt2", "--batch", "16",
             "--set", "layout.tensor=2", "--set", "pipeline=1", "--set", "context=1",
             "--set", "recompute=none", "--trace"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("gpt2 on 8 ranks, one step of rank 0")
    assert main([*words, "--json"]) == 0
    found = record.loads(Comparisons, capsys.readouterr().out, source="comparisons.json")
    rows = {row.quantity: row for row in found.ranks[0].rows}
    assert rows["products"].settled and rows["tensor ranks"].settled and rows["data ranks"].settled
    assert rows["tensor ranks"].traced_count > rows["tensor ranks"].planned_count > 0


def test_a_trace_is_of_a_layout_to_train_on_machines_of_the_catalogue(capsys: Said) -> None:
    message, _ = refused(capsys, *EIGHT, "--serve", "4", "--trace")
    assert message == "--trace says nothing of serving"
    message, hint = refused(capsys, *EIGHT, "--set", "recompute=selective", "--trace")
    assert message == "recompute selective cannot be traced"
    assert hint == "--set layout.recompute=none"
