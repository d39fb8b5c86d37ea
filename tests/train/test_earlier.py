"""An earlier run as what another starts from: its newest whole checkpoint, whatever it trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from narrows.infer.loading import load as load_generator
from narrows.infer.source import source
from narrows.model.beginning import values_of
from narrows.model.opening import opened
from narrows.plan import finetuning
from narrows.plan.text import Text
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, ModelIntent, TrainIntent
from narrows.spec.model import ModelSpec
from narrows.spec.objective import Chat, Classify
from narrows.spec.plan import Plan
from narrows.train.run import train
from narrows.train.start import started

from .conftest import tiny_machine
from .test_adapters import ADAPTERS, text_plan, tuning
from .test_objectives import planned, prepared
from .test_run import losses, silent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))


def trained(plan: Plan, run: Path) -> Path:
    train(plan, run, machine=tiny_machine(), resume=False, talk=silent)
    return run


@pytest.mark.parametrize("adapter", [None, "dora"])
def test_it_is_what_the_run_learned(adapter: str | None, dataset: Dataset, tmp_path: Path) -> None:
    chosen = text_plan(dataset)
    chosen = chosen if adapter is None else tuning(chosen, ADAPTERS[adapter])
    run = trained(chosen, tmp_path / "run")
    start = started(run)
    expected = load_generator(run, checkpoint="latest", precision="fp32").model
    read = values_of(start)
    for name, parameter in expected.named_parameters():
        found = read(name, parameter.shape)
        assert found is not None
        torch.testing.assert_close(found, parameter.float(), rtol=1e-6, atol=1e-7)
    assert read("score.weight", (2, 4)) is None and read("pooler.weight", (4, 4)) is None
    assert start.model == chosen.model
    assert (Path(start.words) / "tokenizer.json").is_file()
    # What another run began with stays, whatever becomes of this one.
    shutil.rmtree(run)
    assert opened(start.path).digest() == start.digest


def test_another_run_goes_on_from_it_and_is_exported(dataset: Dataset, tmp_path: Path) -> None:
    first = text_plan(dataset, steps=30)
    run = trained(first, tmp_path / "run")
    second = text_plan(dataset, start=started(run), steps=6)
    again = trained(second, tmp_path / "again")
    before, after = losses(run), losses(again)
    assert after[1] < before[1] - 0.1
    given = source(again)
    assert given.spec == second.model and set(given.weights)


def test_an_adapter_s_run_is_exported_merged(dataset: Dataset, tmp_path: Path) -> None:
    run = trained(tuning(text_plan(dataset), ADAPTERS["lora"]), tmp_path / "run")
    given, model = source(run), load_generator(run, precision="fp32").model
    for name, parameter in model.named_parameters():
        assert torch.equal(given.weights[name].float(), parameter)


def test_a_damaged_checkpoint_is_passed_over(dataset: Dataset, tmp_path: Path) -> None:
    run = trained(text_plan(dataset), tmp_path / "run")
    path = run / "checkpoints/step-00000012/weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said: list[str] = []
    started(run, said.append)
    assert "damaged" in said[0] and said[1].endswith("step 9")


def test_without_a_checkpoint_or_words_it_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    run = trained(text_plan(dataset), tmp_path / "run")
    (run / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(BadInput, match="has no tokenizer.json") as caught:
        started(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(BadInput, match="no whole checkpoint yet") as caught:
        started(run)
    assert "--resume" in (caught.value.hint or "")


def test_a_run_is_no_published_model(dataset: Dataset, tmp_path: Path) -> None:
    run = trained(text_plan(dataset), tmp_path / "run")
    with pytest.raises(BadInput, match="is a run") as caught:
        opened(run)
    assert f"narrows export {run}" in (caught.value.hint or "")


def test_what_tells_classes_can_no_longer_write(tmp_path: Path) -> None:
    data = prepared("classify", tmp_path)
    run = trained(planned("classify", data), tmp_path / "run")
    start = started(run)
    assert data.examples is not None
    again = Classify(labels=data.examples.labels)
    assert _shaped(start.model, TrainIntent(objective=again)).classes == 2
    with pytest.raises(BadInput, match="can no longer write"):
        _shaped(start.model, TrainIntent(objective=Chat()))


def _shaped(model: ModelSpec, train: TrainIntent) -> ModelSpec:
    job = Job(name="more", model=ModelIntent(start="runs/x"), train=train)
    return finetuning.shaped(
        model, job, Text(vocabulary=model.vocabulary, tokens_train=None, tokens_validation=None)
    )


def test_another_model_s_tokenizer_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(started(trained(text_plan(dataset), tmp_path / "run")).path)
    words = json.loads((folder / "tokenizer.json").read_text())
    last = len(words["model"]["vocab"])
    words["model"]["vocab"] |= {f"<{number}>": last + number for number in range(40)}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(BadInput, match="do not belong together"):
        started(folder)


def test_words_that_changed_are_taken_again(dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(started(trained(text_plan(dataset), tmp_path / "run")).path)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    again = Path(started(folder).words) / "chat_template.jinja"
    assert again.read_text() == "{{ messages[0].content }}"
