"""Every objective in the one loop: what it computes, that it learns, and that it resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from narrows.data import examples
from narrows.data.batch import Batch
from narrows.kernels.load import load as kernels
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.parallel.running import Loss
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec
from narrows.spec.model import Learned, ModelSpec, Window, llama
from narrows.spec.objective import Chat, Classify, Masked, Objective, Prefer, Regress
from narrows.spec.plan import Checkpointing, Data, Evaluation, Plan
from narrows.train.objectives import Classes, Numbers, Preferred, Taught, log_probabilities
from narrows.train.run import train
from narrows.train.selftest import TOLERANCE, differences
from narrows.train.step import Trainer, rows_of

from .conftest import layout, plan, tiny_machine

CPU = torch.device("cpu")
SPEC = llama(layers=2, width=32, heads=4, kv_heads=2, vocabulary=40, context=24)


def made(spec: ModelSpec = SPEC, seed: int = 3) -> Transformer:
    model = Transformer(spec, kernels("torch"))
    initialise(model, seed)
    return model


def batch(values: tuple[tuple[float, ...], ...] = ((0.0, 1.0), (1.0,))) -> Batch:
    """Documents of 7 and 12 tokens in one row, of 24 in the other."""
    inputs_BT = np.random.default_rng(0).integers(0, 40, (2, 24))
    targets_BT = np.full_like(inputs_BT, -1)
    documents = ((7, 12, 5), (24,))
    for row, sizes in enumerate(documents):
        at = 0
        for size in sizes[: len(values[row])]:
            targets_BT[row, at : at + size - 1] = inputs_BT[row, at + 1 : at + size]
            at += size
    return Batch(inputs_BT, targets_BT, documents, values)


def alone(model: Transformer) -> list[torch.Tensor]:
    """Last hidden states of each document, computed by itself."""
    given = torch.from_numpy(batch().inputs_BT)
    pieces = (given[0, :7], given[0, 7:19], given[1])
    return [model.hidden(tokens_T[None])[0] for tokens_T in pieces]


@pytest.mark.parametrize(
    "changes",
    [{}, {"causal": False}, {"positions": "learned"}, {"window": 5}, {"query_norm": "head"}],
)
def test_documents_side_by_side_are_as_if_alone(changes: dict[str, Any]) -> None:
    if "positions" in changes:
        changes = {"positions": Learned()}
    if "window" in changes:
        changes = {"window": Window(size=5)}
    model = made(msgspec.structs.replace(SPEC, **changes))
    rows = rows_of(batch(), CPU)
    hidden_BTD = model.hidden(rows.inputs_BT, documents=rows.documents)
    packed = (hidden_BTD[0, :7], hidden_BTD[0, 7:19], hidden_BTD[1])
    for mine, theirs in zip(packed, alone(model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_padding_packing_and_accumulation_change_nothing() -> None:
    assert max(each.relative for each in differences()) <= TOLERANCE


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_a_class_is_read_from_where_the_pooling_says(pooling: Any) -> None:
    model = made(msgspec.structs.replace(SPEC, classes=3, pooling=pooling))
    rows = rows_of(batch(), CPU)
    found = float(Classes().loss(model, rows, Loss(64, 1.0)).detach())
    take = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0)}[pooling]
    assert model.score is not None
    summaries_ND = torch.stack([take(x_TD) for x_TD in alone(model)])
    logits_NC = F.linear(summaries_ND, model.score.weight, model.score.bias)
    expected = F.cross_entropy(logits_NC, torch.tensor([0, 1, 1]), reduction="sum")
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)
    smoothed = Classes(0.2).loss(model, rows, Loss(64, 1.0)).detach()
    spread_N = -logits_NC.log_softmax(-1).mean(-1)
    expected = 0.8 * expected + 0.2 * spread_N.sum()
    assert float(smoothed) == pytest.approx(float(expected.detach()), rel=1e-5)
    with torch.no_grad():
        assert float(Classes(0.2).loss(model, rows, Loss(64, 1.0))) == pytest.approx(found), (
            "what is held back is judged as it is"
        )


def test_a_number_has_the_squared_error() -> None:
    model = made(msgspec.structs.replace(SPEC, classes=1))
    found = float(Numbers().loss(model, rows_of(batch(((0.5, -1.0), (2.0,))), CPU), Loss(8, 0.5)))
    assert model.score is not None
    said_N = (torch.stack([x[-1] for x in alone(model)]) @ model.score.weight.t())[:, 0]
    assert model.score.bias is None, "as transformers' heads of causal models"
    expected = (said_N - torch.tensor([0.5, -1.0, 2.0])).square().sum() / 2
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def log_probability(model: Transformer, tokens_T: torch.Tensor) -> torch.Tensor:
    logits_TV = model(tokens_T[None, :-1])[0]
    return logits_TV.log_softmax(-1).gather(1, tokens_T[1:, None]).sum()


def test_preference_is_dpo_and_so_is_its_gradient() -> None:
    model, first = made(), made(seed=4)
    given = torch.from_numpy(batch().inputs_BT)
    pair = (given[0, :7], given[0, 7:19])
    with torch.no_grad():
        before = tuple(float(log_probability(first, each)) for each in pair)
    one = batch((before, ()))
    rows = rows_of(Batch(one.inputs_BT[:1], one.targets_BT[:1], one.documents[:1], (before,)), CPU)
    objective = Preferred(0.3)
    loss = objective.loss(model, rows, Loss(5, 1.0))
    loss.backward()
    mine = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    now = [log_probability(model, each) for each in pair]
    expected = -F.logsigmoid(0.3 * (now[0] - before[0] - now[1] + before[1]))
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, each in model.named_parameters():
        torch.testing.assert_close(mine[name], each.grad, rtol=2e-4, atol=1e-6)
    said = log_probabilities(model, rows, 5)
    assert said.tolist() == pytest.approx([float(each) for each in now], rel=1e-5)


def test_distillation_is_the_divergence_and_the_cross_entropy() -> None:
    model, teacher = made(), made(seed=9)
    rows = rows_of(batch(), CPU)
    loss = Taught(teacher, 2.0, 0.25).loss(model, rows, Loss(7, 1.0))
    loss.backward()
    mine = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    hidden = model.hidden(rows.inputs_BT, documents=rows.documents)
    with torch.no_grad():
        taught = teacher.hidden(rows.inputs_BT, documents=rows.documents)
    there = rows.targets_BT.flatten() >= 0
    logits, theirs = (
        each.logits(x).flatten(0, 1)[there] for each, x in ((model, hidden), (teacher, taught))
    )
    plain = F.cross_entropy(logits, rows.targets_BT.flatten()[there], reduction="sum")
    soft = F.kl_div((logits / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="sum")
    expected = 0.75 * plain + 0.25 * 4 * soft
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, each in model.named_parameters():
        torch.testing.assert_close(mine[name], each.grad, rtol=2e-4, atol=1e-5)


ROWS: dict[str, tuple[Objective, Callable[[int], dict[str, Any]]]] = {
    "classify": (Classify(), lambda n: {"text": "good day " * (n % 3 + 1) if n % 2 else "bad " * 4,
                                        "label": n % 2}),
    "regress": (Regress(), lambda n: {"text": "more " * (n % 5 + 1), "value": float(n % 5)}),
    "chat": (Chat(), lambda n: {"prompt": f"count {n % 7} ", "answer": "one two " * (n % 3 + 1)}),
    "prefer": (Prefer(), lambda n: {"prompt": f"say {n % 7} ", "chosen": "yes please",
                                    "rejected": "no never"}),
}  # fmt: skip


def prepared(name: str, folder: Path) -> Dataset:
    objective, row = ROWS[name]
    path = folder / "rows.jsonl"
    unlike = ({**row(n), "number": n} for n in range(120))
    path.write_text("".join(json.dumps(each) + "\n" for each in unlike))
    spec = DataSpec(corpus=str(path), tokenizer="character", vocabulary=64, validation=0.2)
    return examples.prepare(spec, objective, None, talk=lambda text: None)


def planned(name: str, dataset: Dataset, **changes: Any) -> Plan:
    known = dataset.examples
    assert known is not None
    said: dict[str, Any] = {}
    if name in ("classify", "regress"):
        said = {"classes": 2 if name == "classify" else 1, "pooling": "last"}
    spec = llama(layers=2, width=32, heads=4, vocabulary=dataset.vocabulary, context=96)
    data = Data(
        folder=dataset.folder, digest=dataset.digest, tokens_train=dataset.tokens_train,
        tokens_validation=dataset.tokens_validation, bytes_per_token=1.0,
    )  # fmt: skip
    return plan(
        objective=ROWS[name][0], model=msgspec.structs.replace(spec, **said), data=data, context=96,
        layout=layout(micro_batch=2, accumulation=2), steps=12,
        evaluation=Evaluation(every=6, sequences=3),
        checkpoints=Checkpointing(every=6, keep=3), **changes,
    )  # fmt: skip


def run_of(plan: Plan, run: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    train(plan, run, machine=tiny_machine(), resume=resume, talk=lambda text: None)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ROWS)
def test_each_learns_and_goes_on_where_it_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    chosen = planned(name, prepared(name, tmp_path))
    whole = run_of(chosen, tmp_path / "whole")
    held = [line["validation_loss"] for line in whole if "validation_loss" in line]
    assert held[-1] < held[0]
    run_of(msgspec.structs.replace(chosen, steps=12), tmp_path / "again")
    # What a run that was ended behind step 6 would have left.
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000012")
    (tmp_path / "again" / "ledger.json").unlink()
    resumed = run_of(chosen, tmp_path / "again", resume=True)
    ours = {line["step"]: line["loss"] for line in resumed if "loss" in line}
    assert ours == {line["step"]: line["loss"] for line in whole if "loss" in line}
    checkpoint = "checkpoints/step-00000012/weights.safetensors"
    assert (tmp_path / "again" / checkpoint).read_bytes() == (
        tmp_path / "whole" / checkpoint
    ).read_bytes()


def test_classes_are_counted_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    lines = run_of(planned("classify", prepared("classify", tmp_path)), tmp_path / "run")
    shares = [line["accuracy"] for line in lines if "accuracy" in line]
    assert shares and all(0.0 <= share <= 1.0 for share in shares)
    assert "bits_per_byte" not in lines[-1]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"objective": Masked()}, "cannot tell a masked token"),
        ({"objective": Classify(), "layout": layout(micro_batch=2, compile=True)}, "compiled"),
        ({"objective": Chat(), "model": msgspec.structs.replace(SPEC, causal=False)}, "follows"),
    ],
)
def test_what_no_objective_can_be_taught_in_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        Trainer(plan(**{"model": SPEC, **changes}), CPU)
    assert caught.value.hint
