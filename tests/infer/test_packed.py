"""A published model in groups of 4 or 8 bits writes what its file says; others say why not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from narrows.infer.decoding import Decoding
from narrows.infer.export import export
from narrows.infer.generate import generate
from narrows.infer.loading import load
from narrows.infer.packed import packs, unpackable
from narrows.infer.sampling import Sampling
from narrows.infer.writer import load_writer
from narrows.kernels.build import obstacle
from narrows.model.opening import opened
from narrows.spec.errors import BadInput
from narrows.spec.model import llama

from .conftest import CONTEXT, VOCABULARY, MakeRun, spec

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
TOKENS = [5, 80, 3, 120, 44, 9, 71, 250, 6, 31, 14, 200]


def published(make_run: MakeRun, to: Path, kind: str | None = None) -> Path:
    export(make_run(shape=SHAPE), to, type=kind, talk=print)
    return to


@pytest.mark.parametrize(("kind", "precision"), [("q8_0", "int8"), ("q4_0", "int4")])
def test_a_file_in_groups_is_computed_as_it_lies(
    kind: str, precision: str, make_run: MakeRun, tmp_path: Path
) -> None:
    path = published(make_run, tmp_path / "out.gguf", kind)
    assert packs(opened(path))
    said: list[str] = []
    writer = load_writer(path, talk=said.append)
    assert writer.precision == precision and precision in said[0]
    assert not any("rounded" in each for each in said)
    whole = load(path, precision="fp32")
    found_V = writer.decoding(20).read(TOKENS)
    expected_V = Decoding.of(whole.model, 20).read(TOKENS)
    # The same matrices; activations have 8 bits.
    assert float((found_V - expected_V).norm() / expected_V.norm()) < 0.05
    text = "".join(generate(writer, "ROMEO: what", tokens=9, sampling=Sampling(temperature=0.0)))
    again = "".join(generate(writer, "ROMEO: what", tokens=9, sampling=Sampling(temperature=0.0)))
    assert text == again


def test_a_folder_is_rounded_where_it_is_asked_for(make_run: MakeRun, tmp_path: Path) -> None:
    path = published(make_run, tmp_path / "out")
    assert not packs(opened(path))
    assert load_writer(path).precision in ("fp32", "bf16")
    said: list[str] = []
    writer = load_writer(path, precision="int8", talk=said.append)
    assert said[0] == "9 of 9 matrices were rounded to 8 bits"
    assert writer.weight_bytes < load(path, precision="fp32").weight_bytes / 3


def test_reading_in_pieces_and_beyond_the_context_goes_on(
    make_run: MakeRun, tmp_path: Path
) -> None:
    writer = load_writer(published(make_run, tmp_path / "out.gguf", "q8_0"))
    whole, pieces = writer.decoding(30), writer.decoding(30)
    expected_V = whole.read(TOKENS)
    pieces.read(TOKENS[:5])
    assert torch.equal(pieces.read(TOKENS[5:]), expected_V)
    long = "".join(generate(writer, "ROMEO:", tokens=3 * CONTEXT))
    assert len(long) > 0


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_cannot_be_packed_says_why(precision: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape=spec("gpt2"))
    with pytest.raises(BadInput, match="is a run, whose weights are not packed"):
        load_writer(run, precision=precision)  # type: ignore[arg-type]
    export(run, tmp_path / "out", talk=print)
    assert unpackable(spec("gpt2")) == "its norm is no RMSNorm"
    assert unpackable(msgspec.structs.replace(SHAPE, head_bias=True)) == "its head has a bias"
    with pytest.raises(BadInput, match="its norm is no RMSNorm"):
        load_writer(tmp_path / "out", precision=precision)  # type: ignore[arg-type]
