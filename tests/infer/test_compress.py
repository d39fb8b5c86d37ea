"""A compressed file holds just what was chosen; what is packed is not rounded in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from narrows.adapt.method import AWQ, GPTQ, Method, Round, Type
from narrows.adapt.quantize import Rounding
from narrows.infer.compress import Compressed, compress
from narrows.infer.export import export, export_source
from narrows.infer.source import source
from narrows.model import gguf
from narrows.model.reading import Reader
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.model import llama

from .conftest import CONTEXT, VOCABULARY, MakeRun, spec

SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
TOKENS_BT = torch.randint(VOCABULARY, (6, CONTEXT), generator=torch.Generator().manual_seed(1))
METHODS: list[Method] = [Round(), GPTQ(), AWQ()]


def done(
    given: Path, to: Path, type: Type, method: Method = METHODS[0], *, again: bool = False
) -> Compressed:
    return compress(source(given), to, Rounding(type, method, TOKENS_BT), again=again)


@pytest.mark.parametrize("method", METHODS, ids=["round", "gptq", "awq"])
@pytest.mark.parametrize("type", ["q8_0", "q4_1", "q4_0"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_file_holds_just_what_was_chosen(
    kind: str, type: Type, method: Method, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(shape=SHAPE if kind == "llama" else spec("gpt2"))
    found = done(run, tmp_path / "out.gguf", type, method)
    assert found.exported.parity.difference == 0.0 and found.kept == found.again == 0
    assert "gguf" in " ".join(found.exported.parity.readers)
    file = gguf.opened(tmp_path / "out.gguf")
    name = "blk.1.attn_qkv.weight" if kind == "gpt2" else "blk.1.attn_q.weight"
    assert file.tensors[name].block.name == type.upper()
    assert file.tensors["token_embd.weight"].block.name == "Q8_0"
    assert file.tensors["blk.0.attn_norm.weight"].block.name == "F32"


def test_rounding_is_as_an_export_rounds(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape=SHAPE)
    done(run, tmp_path / "one.gguf", "q4_1")
    export(run, tmp_path / "other.gguf", type="q4_1")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_what_is_packed_is_refused_and_rounded_again_aloud(
    make_run: MakeRun, tmp_path: Path
) -> None:
    done(make_run(shape=SHAPE), tmp_path / "first.gguf", "q8_0")
    first = tmp_path / "first.gguf"
    with pytest.raises(BadInput, match="packed already: 8 matrices in Q8_0") as caught:
        done(first, tmp_path / "second.gguf", "q4_0")
    assert "--again" in str(caught.value.hint) and not (tmp_path / "second.gguf").exists()
    with pytest.raises(BadInput, match="is in q8_0 already"):
        done(first, tmp_path / "second.gguf", "q8_0")
    said: list[str] = []
    found = compress(
        source(first), tmp_path / "second.gguf", Rounding("q4_0"), again=True, talk=said.append
    )
    # The table, and the head where there is one, lie in 8 bits as they would be rounded to.
    assert found.again == found.rounded == 8 and found.kept == 1
    assert any("rounding again what was packed before: 8 matrices" in line for line in said)


def test_groups_that_stay_are_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    """Which by ggml's rule they would not be: its grid goes to the largest value."""
    done(make_run(shape=SHAPE), tmp_path / "first.gguf", "q8_0")
    given = source(tmp_path / "first.gguf")
    assert isinstance(given.reader, Reader)
    table = given.reader.whole_groups("tokens.weight", tuple(given.weights["tokens.weight"].shape))
    assert table is not None
    halved = table._replace(codes_ND=((table.codes_ND.int() - 128) // 3 + 128).to(torch.uint8))
    kept = given._replace(groups={"tokens.weight": halved},
                          weights={**given.weights, "tokens.weight": halved.whole()})  # fmt: skip
    export_source(kept, tmp_path / "second.gguf", type="q8_0")
    done(tmp_path / "second.gguf", tmp_path / "third.gguf", "q4_1", again=True)
    packed = [gguf.opened(tmp_path / f"{name}.gguf").packed("token_embd.weight")
              for name in ("second", "third")]  # fmt: skip
    assert packed[0] == packed[1]
    export(tmp_path / "second.gguf", tmp_path / "rounded.gguf", type="q8_0")
    assert gguf.opened(tmp_path / "rounded.gguf").packed("token_embd.weight") != packed[0]


@pytest.mark.parametrize(
    ("name", "type", "told"),
    [
        ("out", "q4_0", "does not end in .gguf"),
        ("out.gguf", "q4", "nothing is packed in q4"),
        ("there.gguf", "q4_0", "exists already"),
        ("none/out.gguf", "q4_0", "is no folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    name: str, type: Type, told: str, make_run: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / "there.gguf").write_bytes(b"")
    with pytest.raises(BadInput, match=told) as caught:
        done(make_run(shape=SHAPE), tmp_path / name, type)
    assert caught.value.hint
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run", "there.gguf"]


def test_a_file_that_reads_otherwise_is_not_kept(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gguf.to_blocks
    monkeypatch.setattr(gguf, "to_blocks", lambda groups, block: before(groups, block) ^ 1)
    with pytest.raises(RunFailed, match="was not kept"):
        done(make_run(shape=SHAPE), tmp_path / "out.gguf", "q4_0")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run"]
