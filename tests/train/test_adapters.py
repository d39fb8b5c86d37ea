"""Training a part of a model: what is kept of it, in which layouts, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from narrows.infer import adapters
from narrows.infer.loading import load as load_generator
from narrows.kernels.load import available
from narrows.kernels.load import load as load_kernels
from narrows.model.hugging_face import naming
from narrows.model.initial import first_value
from narrows.model.opening import opened
from narrows.model.transformer import Transformer
from narrows.spec.adapter import Adapter, Biases, LowRank, target_rows
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.machine import KernelSet
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan, Start
from narrows.spec.record import load, save
from narrows.train.run import train
from narrows.train.step import Trainer
from tests.parallel.processes import run

from .conftest import layout, model, tiny_machine, with_text
from .test_run import kill_at, losses, silent
from .test_twenty_steps import LLAMA, SEQUENCES, STEPS, Short, changed, plan_of

ADAPTERS: dict[str, Adapter] = {
    "lora": LowRank(rank=4, alpha=8.0),
    "dora": LowRank(rank=4, alpha=8.0, rule="dora"),
    "int8": LowRank(rank=4, alpha=8.0, base="int8"),
    "nf4": LowRank(rank=4, alpha=8.0, base="nf4", dropout=0.1),
}


def tuning(chosen: Plan, adapter: Adapter | None, frozen: tuple[str, ...] = ()) -> Plan:
    optimizer = changed(chosen.optimizer, learning_rate=2e-2)
    return changed(chosen, adapter=adapter, frozen=frozen, optimizer=optimizer)


def text_plan(dataset: Dataset, **changes: Any) -> Plan:
    return with_text(dataset, layout=layout(micro_batch=2, accumulation=2), **changes)


@pytest.mark.parametrize("base", [None, "nf4"])
@pytest.mark.parametrize("kernels", available())
def test_little_that_learns_lowers_the_loss(kernels: KernelSet, base: Any) -> None:
    chosen = plan_of(changed(LLAMA, dropout=0.0), kernels=kernels, precision="bf16")
    chosen = tuning(chosen, LowRank(rank=4, alpha=8.0, base=base))
    trainer = Trainer(chosen, torch.device("cpu"))
    told = [trainer.step(number, Short()).loss for number in range(STEPS)]
    assert told[-1] < told[0] - 0.15
    learning = sum(each.numel() for each in trainer.optimizer.parameters.values())
    assert learning < 0.3 * chosen.model.parameters
    assert trainer.optimizer.own.keys() == trainer.optimizer.parameters.keys()


def test_a_run_keeps_what_it_trained_alone_and_answers_as_it_learned(
    dataset: Dataset, tmp_path: Path
) -> None:
    chosen = tuning(text_plan(dataset), ADAPTERS["dora"])
    run_folder = tmp_path / "run"
    train(chosen, run_folder, machine=tiny_machine(), resume=False, talk=silent)
    saved = load_file(run_folder / "checkpoints/step-00000012/weights.safetensors")
    kinds = {name.split(".", 3)[-1] for name in saved}
    assert kinds == {"a.weight", "b", "length.weight"}
    assert load(Plan, run_folder / "plan.toml") == chosen
    trainer = Trainer(chosen, torch.device("cpu"))
    for name, parameter in trainer.split.parameters().items():
        parameter.data.copy_(saved[name])
    trainer.model.eval()
    tokens_BT = torch.arange(16).view(1, 16) % chosen.model.vocabulary
    found = load_generator(run_folder, checkpoint="latest").model
    with torch.no_grad():
        expected = trainer.model(tokens_BT)
        torch.testing.assert_close(
            found(tokens_BT).float(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )


def published_llama(spec: ModelSpec, folder: Path) -> Start:
    """A random model as its makers would have written it."""
    folder.mkdir()
    config = {
        "model_type": "llama", "vocab_size": spec.vocabulary, "hidden_size": spec.width,
        "num_hidden_layers": spec.layers, "intermediate_size": spec.feed_forward_width,
        "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": spec.context, "rms_norm_eps": spec.norm.epsilon,
        "tie_word_embeddings": spec.tied_embeddings, "head_dim": spec.head_width,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {
            n: p.shape for n, p in Transformer(spec, load_kernels("torch")).named_parameters()
        }
    rows = target_rows(spec)
    held: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        whole = first_value(spec, name, shape, 77)
        pieces = naming("llama", spec).pieces(name, spec)
        places = list(rows[name.split(".")[-2]].values()) if len(pieces) > 1 else [(0, shape[0])]
        for piece, (start, stop) in zip(pieces, places, strict=True):
            held[piece.name] = whole[start:stop].contiguous()
    save_file(held, folder / "model.safetensors")
    original = opened(folder)
    return Start(
        path=str(folder), family="llama", digest=original.digest(), model=original.spec, words=""
    )


def test_a_run_from_a_published_model_answers_as_that_with_what_it_learned(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = model("llama", vocabulary=dataset.vocabulary)
    start = published_llama(spec, tmp_path / "base")
    chosen = tuning(text_plan(dataset, model=start.model, start=start), ADAPTERS["int8"])
    train(chosen, tmp_path / "run", machine=tiny_machine(), resume=False, talk=silent)
    trainer = Trainer(chosen, torch.device("cpu"))
    base = dict(trainer.model.named_parameters())["tokens.weight"]
    assert torch.equal(base, first_value(spec, "tokens.weight", base.shape, 77))
    saved = load_file(tmp_path / "run/checkpoints/step-00000012/weights.safetensors")
    for name, parameter in trainer.split.parameters().items():
        parameter.data.copy_(saved[name])
    trainer.model.eval()
    tokens_BT = torch.arange(16).view(1, 16) % spec.vocabulary
    found = load_generator(tmp_path / "run", checkpoint="latest").model
    with torch.no_grad():
        expected = trainer.model(tokens_BT)
        # The base is packed by training alone: what is merged is what it stands for.
        torch.testing.assert_close(
            found(tokens_BT).float(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        )


def test_what_a_run_learned_is_an_adapter_of_peft_s_and_is_merged_from_it(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = model("llama", vocabulary=dataset.vocabulary)
    start = published_llama(spec, tmp_path / "base")
    run, folder = tmp_path / "run", tmp_path / "peft"
    chosen = tuning(text_plan(dataset, model=start.model, start=start, steps=6), ADAPTERS["lora"])
    train(chosen, run, machine=tiny_machine(), resume=False, talk=silent)
    assert "step 6" in adapters.write(run, folder, "latest")
    with pytest.raises(BadInput, match="exists already"):
        adapters.write(run, folder, "latest")
    again = adapters.merged(Path(start.path), folder)
    found = load_generator(run, checkpoint="latest").model
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(
            again.weights[name], parameter.float(), rtol=1e-2, atol=1e-5, msg=name
        )
    moved = first_value(spec, "blocks.0.out.weight", (spec.width, spec.width), 77)
    assert float((again.weights["blocks.0.out.weight"] - moved).abs().max()) > 1e-3


def test_a_run_without_an_adapter_has_none_to_write(dataset: Dataset, tmp_path: Path) -> None:
    chosen = text_plan(dataset, steps=2)
    train(chosen, tmp_path / "run", machine=tiny_machine(), resume=False, talk=silent)
    with pytest.raises(BadInput, match="has learned no low-rank adapter"):
        adapters.write(tmp_path / "run", tmp_path / "peft")


def test_beside_an_earlier_run_an_adapter_is_not_written_for_others(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = model("llama", vocabulary=dataset.vocabulary)
    start = published_llama(spec, tmp_path / "base")
    earlier = msgspec.structs.replace(start, family="narrows")
    chosen = tuning(text_plan(dataset, model=spec, start=earlier, steps=2), ADAPTERS["lora"])
    (tmp_path / "run").mkdir()
    save(chosen, tmp_path / "run" / "plan.toml")
    with pytest.raises(BadInput, match="no low-rank adapter beside a published model") as caught:
        adapters.write(tmp_path / "run", tmp_path / "peft")
    assert "narrows export" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["nf4", "dora"])
def test_killed_an_adapter_s_run_ends_the_same(name: str, dataset: Dataset, tmp_path: Path) -> None:
    chosen = tuning(text_plan(dataset, steps=40), ADAPTERS[name])
    save(chosen, tmp_path / "plan.toml")
    save(tiny_machine(), tmp_path / "machine.toml")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(chosen, straight, machine=tiny_machine(), resume=False, talk=silent)
    kill_at(14, tmp_path, broken)
    train(chosen, broken, machine=tiny_machine(), resume=True, talk=silent)
    assert losses(broken) == losses(straight)
    last = "checkpoints/step-00000040"
    for file in ("weights.safetensors", "optimizer.safetensors"):
        expected, found = load_file(straight / last / file), load_file(broken / last / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_biases_of_late_layers_learn_alone() -> None:
    spec = changed(model("gpt2"), layers=4, context=32)
    chosen = tuning(plan_of(spec), Biases(), ("layers.0-1",))
    trainer = Trainer(chosen, torch.device("cpu"))
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    trainer.step(0, Short())
    for name, value in trainer.model.state_dict().items():
        late = name.startswith(("blocks.2.", "blocks.3.", "norm."))
        assert torch.equal(value, before[name]) != (late and name.endswith("bias")), name


SPREADS: dict[str, dict[str, Any]] = {
    "replicated": {"data": 2},
    "optimizer": {"data": 2, "sharding": "optimizer"},
    "gradients": {"data": 2, "sharding": "gradients"},
    "parameters": {"data": 2, "sharding": "parameters"},
    "recompute": {"data": 2, "sharding": "parameters", "recompute": "full"},
}


def trained(chosen: Plan) -> list[float]:
    trainer = Trainer(chosen, torch.device("cpu"))
    steps = [trainer.step(number, Short()) for number in range(6)]
    return [each.loss for each in steps] + [each.gradient_norm for each in steps]


@pytest.mark.dist
@pytest.mark.parametrize("name", ["nf4", pytest.param("dora", marks=pytest.mark.slow), "frozen"])
@pytest.mark.parametrize("spread", SPREADS)
def test_data_parallel_ranks_learn_as_one(name: str, spread: str) -> None:
    spec = msgspec.structs.replace(LLAMA, dropout=0.0)
    frozen = ("embeddings", "layers.0-1") if name == "frozen" else ()
    adapter = ADAPTERS.get(name)
    told = run(2, trained, tuning(plan_of(spec, **SPREADS[spread]), adapter, frozen))
    assert told[0] == pytest.approx(told[1], rel=1e-6)
    (expected,) = run(1, trained, tuning(plan_of(spec), adapter, frozen))
    assert told[0] == pytest.approx(expected, rel=2e-6)


@pytest.mark.dist
def test_layouts_that_cut_a_model_are_refused() -> None:
    chosen = tuning(plan_of(LLAMA, tensor=2), ADAPTERS["lora"])
    with pytest.raises(AssertionError, match="cannot be divided by layout.tensor = 2"):
        run(2, trained, chosen)
    assert chosen.batch_sequences == SEQUENCES
