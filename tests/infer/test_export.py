from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.cli.main import main
from narrows.data.published import Words, of_folder
from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.infer import export as module
from narrows.infer import loading, parity
from narrows.infer.export import Exported, export, export_source
from narrows.infer.generate import generate
from narrows.infer.loading import load
from narrows.infer.sampling import Sampling
from narrows.infer.source import Source, source
from narrows.model import ggml, gguf, safetensors
from narrows.model.folder import files
from narrows.model.naming import Lay
from narrows.model.opening import Original, opened
from narrows.model.writing import Outgoing
from narrows.spec import record
from narrows.spec.errors import BadInput, DoesNotFit, NarrowsError, RunFailed
from narrows.spec.model import GELU
from narrows.spec.plan import Plan, Start

from . import conftest
from .conftest import VOCABULARY, MakeRun, built, spec

TARGETS = ["out", "out.gguf"]


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run computes in its own precision, a published model in bf16 where the processor can."""
    monkeypatch.setattr(loading, "computes_bf16", lambda: False)


def left(place: Path) -> list[str]:
    """What is there beside the run and what it needs."""
    return sorted(each.name for each in place.iterdir() if each.name != "run")


def written(path: Path, checkpoint: str | None = None) -> str:
    generator, greedy = load(path, checkpoint=checkpoint), Sampling(temperature=0.0)
    return "".join(generate(generator, "ROMEO: what", tokens=24, sampling=greedy))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_run_is_exported_and_writes_the_same(
    target: str, kind: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(shape=spec(kind))
    said: list[str] = []
    done = export(run, tmp_path / target, talk=said.append)
    assert (done.path, done.type) == (tmp_path / target, "f32")
    assert done.parity.readers[0] == "narrows" and done.parity.tokens > 100
    assert done.parity.difference == 0.0 and done.parity.perplexity
    assert left(tmp_path) == [target]
    assert opened(tmp_path / target).kind == kind
    assert written(tmp_path / target) == written(run)


def test_a_run_in_bf16_stays_what_it_is(make_run: MakeRun, tmp_path: Path) -> None:
    done = export(make_run(precision="bf16"), tmp_path / "out")
    assert done.type == "bf16" and done.parity.difference == 0.0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] == of_folder(tmp_path / "out").tokenizer.end_of_document


def test_a_checkpoint_is_chosen(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(steps=(10, 20), best=10)
    assert export(run, tmp_path / "a").what.endswith("step 10")
    assert export(run, tmp_path / "b", checkpoint="latest").what.endswith("step 20")
    assert written(tmp_path / "b") == written(run, checkpoint="latest") != written(tmp_path / "a")


def test_a_model_that_diverged_is_infinitely_perplexed(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(conftest, "built", partial(built, deviation=1e5))
    run = make_run()
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    assert "perplexity  inf before, inf after\n" in capsys.readouterr().out
    with pytest.raises(RunFailed, match="perplexity is inf after inf"):
        export(run, tmp_path / "out.gguf", type="q8_0")


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_1", "q4_0"])
def test_what_a_type_costs_is_told(type: str, make_run: MakeRun, tmp_path: Path) -> None:
    done = export(make_run(), tmp_path / "out.gguf", type=type)
    assert done.parity.difference > 0.0 and done.parity.perplexity
    file = gguf.opened(tmp_path / "out.gguf")
    assert file.tensors["blk.0.attn_q.weight"].block.name == type.upper()
    assert file.tensors["blk.0.attn_norm.weight"].block.name == "F32"
    coarse = type.startswith("q4")
    assert file.tensors["token_embd.weight"].block.name == ("Q8_0" if coarse else type.upper())


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_is_exported_with_what_lies_beside_it(
    target: str, make_run: MakeRun, tmp_path: Path
) -> None:
    export(make_run(), tmp_path / "first")
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    (tmp_path / "first" / "config.json").write_text(json.dumps({**config, "my_key": 7}))
    (tmp_path / "first" / "1_Pooling").mkdir()
    for name in ("LICENSE", "modeling.py", "old.bin", "1_Pooling/config.json"):
        (tmp_path / "first" / name).write_text("{}")
    done = export(tmp_path / "first", tmp_path / target)
    assert done.parity.difference == 0.0 and written(done.path) == written(tmp_path / "first")
    if target == "out":
        names = {str(each.relative_to(done.path)) for each in done.path.rglob("*")}
        assert {"LICENSE", "1_Pooling/config.json", "tokenizer.json"} <= names
        assert not {"modeling.py", "old.bin"} & names
        assert json.loads((done.path / "config.json").read_text())["my_key"] == 7


def test_a_file_keeps_its_own_facts(make_run: MakeRun, tmp_path: Path) -> None:
    export(make_run(), tmp_path / "a.gguf")
    given = source(tmp_path / "a.gguf")
    assert given.facts is not None and given.dtype is None
    given = given._replace(facts={**given.facts, "general.author": "Ada"})
    export_source(given, tmp_path / "b.gguf", type="q8_0")
    facts = gguf.opened(tmp_path / "b.gguf").facts
    assert facts["general.author"] == "Ada" and facts["general.file_type"] == 7
    assert facts["general.name"] == "run"
    done = export(tmp_path / "b.gguf", tmp_path / "c")
    assert done.type == "f32" and done.parity.difference == 0.0


def test_weights_of_any_mapping_are_exported(bpe: Tokenizer, tmp_path: Path) -> None:
    shape = spec()
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    export_source(Source("merged", shape, weights, torch.float32, Words(bpe)), tmp_path / "out")
    assert opened(tmp_path / "out").spec == shape


Spoil = Callable[[pytest.MonkeyPatch], None]


def turned(patch: pytest.MonkeyPatch) -> None:
    """Queries that lie as llama.cpp does not expect them."""
    naming = ggml.NAMINGS["llama"]
    lays = {"qkv": (Lay(naming.lays["qkv"][0].ours, lambda ours, spec: ours),
                    *naming.lays["qkv"][1:])}  # fmt: skip
    patch.setitem(ggml.NAMINGS, "llama", naming.but(lays=lays))


def endless(patch: pytest.MonkeyPatch) -> None:
    """Facts with another end of texts."""
    from narrows.data import tables

    before = tables.facts
    patch.setattr(tables, "facts", lambda words, rows: {
        **before(words, rows), "tokenizer.ggml.eos_token_id": 5})  # fmt: skip


def slower(patch: pytest.MonkeyPatch) -> None:
    """Facts with another base of the rotations."""
    before = ggml.facts
    patch.setattr(ggml, "kind_of", lambda spec, first=None: "llama")
    patch.setattr(ggml, "facts", lambda kind, spec: {
        **before(kind, spec), "llama.rope.freq_base": 500.0})  # fmt: skip


def speechless(patch: pytest.MonkeyPatch) -> None:
    """Facts without the template that the run has."""
    from narrows.data import published, tables

    before, found = tables.facts, published.of_folder
    chat = Template("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    patch.setattr(published, "of_folder", lambda path: found(path)._replace(template=chat))
    patch.setattr(tables, "facts", lambda given, rows: {
        key: value for key, value in before(given, rows).items() if "template" not in key
    })  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (turned, "logits differ by"),
        (endless, "texts end at"),
        (slower, "model.positions was"),
        (speechless, "the template is gone"),
    ],
)
def test_what_is_not_the_model_is_refused_with_the_first_difference(
    spoil: Spoil, told: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    spoil(monkeypatch)
    with pytest.raises(RunFailed) as caught:
        export(run, tmp_path / "out.gguf")
    assert told in caught.value.what and "was not kept" in caught.value.what
    assert caught.value.exit_code == 1 and left(tmp_path) == []


def test_a_type_that_costs_too_much_is_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.COSTS, "q4_0", parity.Cost(1e-3, 1e-3))
    with pytest.raises(RunFailed, match="q4_0 may cost"):
        export(make_run(), tmp_path / "out.gguf", type="q4_0")
    assert left(tmp_path) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(
    target: str, error: BaseException, make_run: MakeRun, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, count = make_run(), 0

    def fail(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 9:
            raise error
        return tensor

    before = module.outgoing

    def failing(*given: Any) -> list[Outgoing]:
        return [each._replace(take=lambda each=each: fail(each.take())) for each in before(*given)]

    monkeypatch.setattr(module, "outgoing", failing)
    with pytest.raises(type(error)):
        export(run, tmp_path / target)
    assert count == 9 and left(tmp_path) == []


def test_what_a_killed_process_left_goes_with_the_next(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / ".out.99999999.partial").mkdir()
    (tmp_path / ".out.99999999.partial" / "model.safetensors").write_bytes(b"half")
    export(make_run(), tmp_path / "out")
    assert left(tmp_path) == ["out"]


def refused(run: Path, to: Path, **options: object) -> NarrowsError:
    before = left(run.parent)
    with pytest.raises(NarrowsError) as caught:
        export(run, to, **options)  # type: ignore[arg-type]
    assert caught.value.hint and left(run.parent) == before
    return caught.value


def test_what_cannot_be_is_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    (tmp_path / "there").mkdir()
    assert "exists already" in refused(run, tmp_path / "there").what
    assert "lies within" in refused(run, run / "out").what
    assert "is no folder" in refused(run, tmp_path / "none" / "out").what
    error = refused(run, tmp_path / "out.gguf", type="q8")
    assert "no type q8" in error.what and "did you mean --type q8_0?" in str(error.hint)
    error = refused(run, tmp_path / "out", type="q8_0")
    assert isinstance(error, BadInput) and "--to FILE.gguf" in str(error.hint)
    assert "no checkpoint" in refused(run, tmp_path / "out", checkpoint="step-3").what
    usage = msgspec.defstruct("Usage", [("free", int)])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(1000))
    assert isinstance(refused(run, tmp_path / "out"), DoesNotFit)
    assert isinstance(refused(run, tmp_path / "out.gguf"), DoesNotFit)


def test_what_reads_both_ways_has_a_class_as_a_bert_alone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(shape=msgspec.structs.replace(spec(), causal=False))
    assert "start from a BERT" in str(refused(run, tmp_path / "out").hint)


def test_what_no_other_program_computes_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape=msgspec.structs.replace(spec(), feed_forward=GELU()))
    assert "no class of transformers" in refused(run, tmp_path / "out").what
    assert "no architecture of GGUF" in refused(run, tmp_path / "out.gguf").what


def test_a_tokenizer_that_gguf_lacks_is_refused(
    make_run: MakeRun, character: Tokenizer, tmp_path: Path
) -> None:
    run = make_run(tokenizer=character)
    assert "no form for this tokenizer" in refused(run, tmp_path / "out.gguf").what
    assert export(run, tmp_path / "out").parity.texts > 5


@pytest.mark.parametrize("target", TARGETS)
def test_without_the_reference_it_is_said_or_refused(
    target: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run, said = make_run(), list[str]()
    assert "narrows[export]" in str(refused(run, tmp_path / target, reference=True).hint)
    done: Exported = export(run, tmp_path / target, talk=said.append)
    assert done.parity.readers == ("narrows",)
    assert any("only narrows' own reader" in line for line in said)


def test_shards_are_exported_from(make_run: MakeRun, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    whole = safetensors.write
    monkeypatch.setattr(safetensors, "write", lambda *given: whole(*given, most=50_000))
    export(make_run(), tmp_path / "out")
    assert len(files(tmp_path / "out")) > 2
    assert opened(tmp_path / "out").spec.vocabulary == VOCABULARY


def tuned(run: Path, original: Original) -> None:
    """Let a run be one that started from that model, and saw shorter texts."""
    plan = record.load(Plan, run / "plan.toml")
    start = Start(
        path=str(original.path), family=original.kind, digest=original.digest(),
        model=original.spec, words="",
    )  # fmt: skip
    shape = msgspec.structs.replace(plan.model, context=16)
    record.save(msgspec.structs.replace(plan, model=shape, start=start), run / "plan.toml")


@pytest.mark.parametrize("target", TARGETS)
def test_a_tuned_model_keeps_its_own_files(target: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(steps=(10, 20), best=10)
    first = export(run, tmp_path / ("first" + Path(target).suffix)).path
    if first.is_dir():
        config = json.loads((first / "config.json").read_text())
        (first / "config.json").write_text(json.dumps({**config, "my_key": 7}))
    tuned(run, opened(first))
    done = export(run, tmp_path / target, checkpoint="latest")
    assert opened(done.path).spec == opened(first).spec
    assert written(done.path) != written(first)
    if first.is_dir():
        assert json.loads((done.path / "config.json").read_text())["my_key"] == 7
        shutil.rmtree(first)
    else:
        assert gguf.opened(done.path).facts["general.name"] == "run"
        first.unlink()
    done = export(run, tmp_path / f"again-{target}", checkpoint="latest")
    assert opened(done.path).spec == opened(tmp_path / target).spec


def test_a_head_that_no_class_of_the_family_has_is_refused(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    plan = record.load(Plan, run / "plan.toml")
    classes = msgspec.structs.replace(plan.model, classes=3, pooling="mean")
    record.save(msgspec.structs.replace(plan, model=classes), run / "plan.toml")
    assert "the mean of a text's states" in refused(run, tmp_path / "out").what
