"""A published model in groups of 4 or 8 bits writes what its file says; others say why not."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from narrows.infer.export import export
from narrows.infer.generate import ServingPrecision, generate
from narrows.infer.loading import Generator, computes_bf16, load
from narrows.infer.packed import PackedWriter, unpackable
from narrows.infer.packing import packs
from narrows.infer.sampling import Sampling
from narrows.infer.torch_decoding import decoding_of
from narrows.infer.writer import load_writer
from narrows.kernels.arrays import Floats
from narrows.kernels.build import obstacle
from narrows.model import gguf
from narrows.model.blocks import BLOCKS
from narrows.model.opening import opened
from narrows.model.writing import Outgoing
from narrows.spec.errors import BadInput
from narrows.spec.model import Alibi, GeGLU, LayerNorm, Rotary, Window, gpt2, llama
from narrows.spec.plan import Plan
from narrows.spec.record import load as load_record
from narrows.spec.record import save

from .conftest import CONTEXT, VOCABULARY, MakeRun, spec

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
GEMMA = msgspec.structs.replace(
    SHAPE, feed_forward=GeGLU(), block_norms="both", query_norm="head", embedding_scale=8.0,
    positions=Rotary(base=1e6, window_base=1e4), window=Window(size=5, full_every=2),
    query_scale=32**-0.5,
)  # fmt: skip
OTHERS = {
    "gpt2": gpt2(layers=2, width=64, heads=2, vocabulary=VOCABULARY, context=CONTEXT),
    "olmo": msgspec.structs.replace(SHAPE, norm=LayerNorm(scale=False)),
    "phi3": msgspec.structs.replace(SHAPE, window=Window(size=5), tied_embeddings=False),
}
"""Beside Llama's and Gemma's."""
SCALES = {
    "Q5_0": {0: 6e-3}, "Q8_0": {0: 1e-3}, "Q4_K": {0: 3e-4, 2: 2e-3}, "Q6_K": {208: 1e-4},
    "Q5_K": {0: 15e-5, 2: 2e-3}, "Q5_1": {0: 6e-3, 2: -0.1}, "Q4_1": {0: 12e-3, 2: -0.1},
}  # fmt: skip
"""Of blocks that GGUF has, where scales and least values stand, and some that matrices may have."""
TOKENS = [5, 80, 3, 120, 44, 9, 71, 250, 6, 31, 14, 200]


def off(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


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
    expected_V = decoding_of(whole.model, 20).read(TOKENS)
    # The same matrices; activations have 8 bits.
    assert off(found_V, expected_V) < 0.05
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


def test_gemma_s_norms_windows_and_gates_are_computed(make_run: MakeRun, tmp_path: Path) -> None:
    export(make_run(shape=GEMMA), tmp_path / "out", talk=print)
    found_V = load_writer(tmp_path / "out", precision="int8").decoding(20).read(TOKENS)
    expected_V = decoding_of(load(tmp_path / "out", precision="fp32").model, 20).read(TOKENS)
    assert off(found_V, expected_V) < 0.05


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_families_are_computed(
    name: str, precision: ServingPrecision, make_run: MakeRun, tmp_path: Path
) -> None:
    export(make_run(shape=OTHERS[name]), tmp_path / "out", talk=print)
    writer = load_writer(tmp_path / "out", precision=precision)
    assert isinstance(writer, PackedWriter) and writer.precision == precision
    found_V = writer.decoding(20).read(TOKENS)
    expected_V = decoding_of(load(tmp_path / "out", precision="fp32").model, 20).read(TOKENS)
    bound = 0.02 if precision == "bf16" else 0.05
    assert off(found_V, expected_V) < bound


@pytest.mark.skipif(not computes_bf16(), reason="the processor has no bf16 unit")
def test_what_lies_in_no_groups_is_computed_in_bf16(make_run: MakeRun, tmp_path: Path) -> None:
    path = published(make_run, tmp_path / "out")
    said: list[str] = []
    writer = load_writer(path, talk=said.append)
    assert isinstance(writer, PackedWriter) and writer.precision == "bf16"
    assert "bf16" in said[0]
    decoding, expected = writer.decoding(20), decoding_of(load(path, precision="bf16").model, 20)
    found_V, exact_V = decoding.read(TOKENS), expected.read(TOKENS)
    assert off(found_V, exact_V) < 0.02


def test_k_types_are_taken_as_they_lie(make_run: MakeRun, tmp_path: Path) -> None:
    """As a file of mixed types has them: what a block holds is random, so values are compared."""
    wide = {"width": 256, "heads": 8, "kv_heads": 4, "feed_forward_width": 256}
    shape = msgspec.structs.replace(SHAPE, **wide)
    export(make_run(shape=shape), tmp_path / "whole.gguf", type="f32", talk=print)
    mixed(tmp_path / "whole.gguf", tmp_path / "out.gguf")
    said: list[str] = []
    writer = load_writer(tmp_path / "out.gguf", talk=said.append)
    assert not any("rounded" in each for each in said)
    expected_V = decoding_of(load(tmp_path / "out.gguf", precision="fp32").model, 20).read(TOKENS)
    found_V = writer.decoding(20).read(TOKENS)
    assert off(found_V, expected_V) < 0.05


def mixed(path: Path, to: Path) -> None:
    """The file with its matrices in random blocks of all types, one beside the other."""
    file, kinds = gguf.opened(path), {block.name: block for block in BLOCKS.values()}
    generator, types = torch.Generator().manual_seed(3), cycle(SCALES)
    tensors = []
    for name, lying in file.tensors.items():
        values, block = torch.empty(lying.shape), lying.block
        file.read(name, values)
        if values.ndim == 2:
            kind = next(types)
            size = (values.numel() // kinds[kind].values, kinds[kind].size)
            packed = torch.randint(256, size, dtype=torch.uint8, generator=generator)
            for at, scale in SCALES[kind].items():
                packed[:, at : at + 2] = torch.tensor([scale]).half().view(torch.uint8)
            block = kinds[kind]._replace(pack=partial(first, packed))
        tensors.append((Outgoing(name, lying.shape, partial(first, values)), block))
    gguf.write(to, file.facts, tensors)


def first(given: Tensor, *_: Tensor) -> Tensor:
    return given


def test_reading_in_pieces_and_beyond_the_context_goes_on(
    make_run: MakeRun, tmp_path: Path
) -> None:
    writer = load_writer(published(make_run, tmp_path / "out.gguf", "q8_0"))
    whole, pieces = writer.decoding(30), writer.decoding(30)
    expected_V = whole.read(TOKENS)
    pieces.read(TOKENS[:5])
    assert np.array_equal(pieces.read(TOKENS[5:]), expected_V)
    long = "".join(generate(writer, "ROMEO:", tokens=3 * CONTEXT))
    assert len(long) > 0


def test_a_run_in_bf16_is_packed_and_one_in_fp32_where_it_is_asked_for(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, said = make_run(shape=SHAPE, precision="bf16", steps=(10, 20)), list[str]()
    writer = load_writer(run, talk=said.append)
    assert isinstance(writer, PackedWriter) and writer.precision == "bf16"
    assert said[0].startswith(f"{run}, step 10, 118k parameters, bf16 (")
    latest = load_writer(run, checkpoint="latest", talk=said.append)
    assert said[1].startswith(f"{run}, step 20, ")
    for found, step in ((writer, "best"), (latest, "latest")):
        exact = load(run, checkpoint=step, precision="fp32").model
        found_V, exact_V = found.decoding(20).read(TOKENS), decoding_of(exact, 20).read(TOKENS)
        assert off(found_V, exact_V) < 0.02
    (tmp_path / "run").rename(tmp_path / "before")
    plain = make_run(shape=SHAPE)
    assert isinstance(load_writer(plain), Generator)
    rounded = load_writer(plain, precision="int4", talk=said.append)
    assert isinstance(rounded, PackedWriter) and rounded.precision == "int4"
    assert said[2] == "9 of 9 matrices were rounded to 4 bits"
    save(msgspec.structs.replace(load_record(Plan, plain / "plan.toml"), model=GEMMA),
         plain / "plan.toml")  # fmt: skip
    with pytest.raises(BadInput, match="does not hold the weights of the model in plan.toml: "):
        load_writer(plain, precision="int8")


def test_torch_keeps_in_bf16_only_what_it_computes_so(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(BadInput, match="computes .* in fp32, and keeps keys and values so") as told:
        load_writer(run, precision="fp32", cache="bf16")
    assert told.value.hint == "--precision bf16, --cache int8, or leave --cache out"
    assert load_writer(run, precision="bf16", cache="bf16").cache == "bf16"
    whole, coded = (load_writer(run, precision="fp32", cache=each) for each in (None, "int8"))
    sizes = [each.decoding(20).cache_bytes for each in (whole, coded)]
    assert sizes[1] == sizes[0] * (16 + 4) // 64  # heads of 16


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_cannot_be_packed_says_why(precision: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape=spec("gpt2"))
    with pytest.raises(BadInput, match="run, step 10 cannot be packed: its widths 64, 256, 16"):
        load_writer(run, precision=precision)  # type: ignore[arg-type]
    export(run, tmp_path / "out", talk=print)
    alibi = msgspec.structs.replace(SHAPE, positions=Alibi())
    assert unpackable(alibi) == "its positions are not rotary or learned"
    assert unpackable(msgspec.structs.replace(SHAPE, head_bias=True)) == "its head has a bias"
    with pytest.raises(BadInput, match="its widths 64, 256, 16 are no multiples of 32"):
        load_writer(tmp_path / "out", precision=precision)  # type: ignore[arg-type]
