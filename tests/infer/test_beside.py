"""Adapters beside one model: each text is that of the model which its adapter is merged into."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from narrows.adapt.merge import merge
from narrows.adapt.peft import write_adapter
from narrows.adapt.peft_reading import load_adapter
from narrows.infer import adapters
from narrows.infer.engine import Room, scheduler_of
from narrows.infer.export import export, export_source
from narrows.infer.generate import ServingPrecision, generate
from narrows.infer.packed import PackedWriter
from narrows.infer.requests import Piece, Request
from narrows.infer.sampling import Sampling
from narrows.infer.scheduler import Scheduler
from narrows.infer.torch_decoding import decoding_of
from narrows.infer.writer import load_writer
from narrows.kernels.arrays import Floats
from narrows.kernels.build import obstacle
from narrows.model.hugging_face import naming
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.spec.adapter import Learning, LowRank
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec, gpt2, llama
from tests.adapt.conftest import tuned

from .conftest import CONTEXT, VOCABULARY, MakeRun

SIZES = {"layers": 2, "width": 64, "heads": 2, "vocabulary": VOCABULARY, "context": CONTEXT}
SHAPE = llama(**SIZES, kv_heads=1)
SHAPES = {"llama": SHAPE, "gpt2": gpt2(**SIZES)}
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8)
FULL, SOME = LowRank(rank=4), LowRank(rank=6, rule="rslora", targets=("query", "value", "down"))
NATIVE = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
WAYS = [pytest.param("bf16", marks=NATIVE), "fp32"]
EXACT = {"bf16": 2e-2, "fp32": 1e-5}
"""How far logits may be off: those of two layers of products of bf16, and of sums in fp32."""


def published(make_run: MakeRun, to: Path, shape: ModelSpec = SHAPE, kind: str = "f32") -> Path:
    export(make_run(shape=shape), to, type=kind, talk=print)
    return to


def adapter(base: Path, to: Path, adapter: LowRank, **learning: object) -> Path:
    """As if learned, in PEFT's format."""
    original = opened(base)
    model = build(original, torch.float32, torch.device("cpu"))
    model = tuned(model, Learning(adapter=adapter, **learning))  # type: ignore[arg-type]
    write_adapter(to, model, naming(original.kind, original.spec))
    return to


def merged(base: Path, folder: Path) -> Transformer:
    original = opened(base)
    model = build(original, torch.float32, torch.device("cpu")).eval()
    load_adapter(model, folder, naming(original.kind, original.spec))
    return merge(model).requires_grad_(False)


def off(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture
def both(make_run: MakeRun, tmp_path: Path) -> tuple[Path, dict[str | None, Path]]:
    """A model and two adapters of it."""
    base = published(make_run, tmp_path / "base")
    full = adapter(base, tmp_path / "full", FULL)
    return base, {"full": full, "some": adapter(base, tmp_path / "some", SOME)}


@pytest.mark.parametrize("precision", WAYS)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("how", [FULL, SOME], ids=["full", "some"])
def test_logits_are_those_of_the_merged_model(
    precision: ServingPrecision, kind: str, how: LowRank, make_run: MakeRun, tmp_path: Path
) -> None:
    base = published(make_run, tmp_path / "base", SHAPES[kind])
    folder = adapter(base, tmp_path / "adapter", how)
    writer = load_writer(base, precision=precision, adapters={None: folder, "other": folder})
    assert isinstance(writer, PackedWriter) == (precision == "bf16")
    expected = merged(base, folder)
    plain_V = load_writer(base, precision=precision).decoding(CONTEXT).read(PROMPT)
    core = writer.core(1, CONTEXT)
    core.adapt(0, "other")
    for found_V in (writer.decoding(CONTEXT).read(PROMPT), core.prefill(0, PROMPT, 0)):
        expected_V = decoding_of(expected, CONTEXT).read(PROMPT)
        assert off(found_V, expected_V) < EXACT[precision] < 0.1 < off(plain_V, expected_V)
    behind_V = core.decode([0], [7])[0]
    assert off(behind_V, decoding_of(expected, CONTEXT).read([*PROMPT, 7])) < EXACT[precision]


@pytest.mark.parametrize("precision", WAYS)
def test_greedy_text_is_that_of_the_merged_model(
    precision: ServingPrecision, both: tuple[Path, dict[str | None, Path]]
) -> None:
    base, folders = both
    writer = load_writer(base, precision=precision, adapters=folders)
    asked = [greedy(PROMPT, name, logprobs=0) for name in ("full", None, "some")]
    answers = pieces(scheduler_of(writer, Room(3, 9, CONTEXT), print), asked)
    said = [[one.itself.token for each in answer for one in each.chosen] for answer in answers]
    assert len(set(map(tuple, said))) == 3
    for name, tokens in zip(("full", "some"), (said[0], said[2]), strict=True):
        decoding, read = decoding_of(merged(base, folders[name]), CONTEXT), list(PROMPT)
        for token in tokens:
            logits_V = decoding.read(read)
            # Where two are as likely, sums that are rounded otherwise may choose the other.
            lacking = float(logits_V.max() - logits_V[token]) / float(
                np.square(logits_V).mean() ** 0.5
            )
            assert lacking < 6 * EXACT[precision]
            read = [token]


def greedy(prompt: Sequence[int], name: str | None, **options: object) -> Request:
    return Request(
        prompt=tuple(prompt), tokens_max=12, sampling=Sampling(temperature=0.0), adapter=name,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("precision", WAYS)
def test_what_stands_beside_a_text_changes_nothing(
    precision: ServingPrecision, both: tuple[Path, dict[str | None, Path]]
) -> None:
    base, folders = both
    writer = load_writer(base, precision=precision, adapters=folders)
    asked = [greedy(PROMPT[: 5 + 3 * index], name, logprobs=2)
             for index, name in enumerate(("some", None, "full", "some"))]  # fmt: skip
    alone = [pieces(scheduler_of(writer, Room(1, 9, CONTEXT), print), [each]) for each in asked]
    together = pieces(scheduler_of(writer, Room(4, 9, CONTEXT), print), asked)
    assert together == [each for (each,) in alone]


def pieces(scheduler: Scheduler, asked: Sequence[Request]) -> list[list[Piece]]:
    answers = [scheduler.submit(each) for each in asked]
    found = [list(each) for each in answers]
    scheduler.close()
    return found


@pytest.mark.parametrize("precision", WAYS)
def test_what_one_adapter_read_is_nothing_to_another(
    precision: ServingPrecision, both: tuple[Path, dict[str | None, Path]]
) -> None:
    base, folders = both
    writer = load_writer(base, precision=precision, adapters=folders)
    scheduler = scheduler_of(writer, Room(3, 9, CONTEXT), print)
    reused, texts = list[int](), list[str]()
    for name in ("full", None, "some", "full", None, "some"):
        answer = scheduler.submit(greedy(PROMPT, name))
        texts.append("".join(piece.text for piece in answer))
        reused.append(answer.reused)
    scheduler.close()
    # The packed core keeps what was written, and not what followed the prompt.
    again = len(PROMPT) - (precision == "bf16")
    assert reused == [0] * 3 + [again] * 3 and texts[:3] == texts[3:]


@NATIVE
@pytest.mark.parametrize("by_draft", [False, True], ids=["by what was said", "by a draft"])
def test_guesses_change_no_text(by_draft: bool, both: tuple[Path, dict[str | None, Path]]) -> None:
    base, folders = both
    writer = load_writer(base, precision="bf16", adapters=folders)
    draft = load_writer(base, precision="bf16") if by_draft else None
    asked = [greedy((*PROMPT[:8], *PROMPT[:count]), name, logprobs=1)
             for count, name in ((3, "full"), (5, None), (4, "some"))]  # fmt: skip
    plain = pieces(scheduler_of(writer, Room(3, 9, CONTEXT), print), asked)
    scheduler = scheduler_of(writer, Room(3, 9, CONTEXT, 4, draft), print)
    guessed = pieces(scheduler, asked)
    assert [whole(each) for each in guessed] == [whole(each) for each in plain]
    assert scheduler.tally.tokens_guessed > 0


def whole(found: list[Piece]) -> tuple[str, list[object]]:
    return "".join(each.text for each in found), [one for each in found for one in each.chosen]


@NATIVE
@pytest.mark.parametrize(("kind", "most"), [("q8_0", 0.05), ("q4_0", 0.05)])
def test_a_gguf_file_takes_adapters_by_transformers_names(
    kind: str, most: float, make_run: MakeRun, tmp_path: Path
) -> None:
    base = published(make_run, tmp_path / "out.gguf", kind=kind)
    folder = adapter(base, tmp_path / "adapter", FULL)
    writer = load_writer(base, adapters={None: folder})
    assert isinstance(writer, PackedWriter)
    expected_V = decoding_of(merged(base, folder), CONTEXT).read(PROMPT)
    plain_V = load_writer(base).decoding(CONTEXT).read(PROMPT)
    # Activations have 8 bits.
    assert off(writer.decoding(CONTEXT).read(PROMPT), expected_V) < most < off(plain_V, expected_V)
    text = "".join(generate(writer, "ROMEO:", tokens=5, sampling=Sampling(temperature=0.0)))
    assert text and writer.weight_bytes > load_writer(base).weight_bytes
    source = adapters.merged(base, folder)
    expected = dict(merged(base, folder).named_parameters())
    assert source.weights.keys() == expected.keys()
    assert all(torch.equal(each, expected[name]) for name, each in source.weights.items())


def test_merged_into_weights_of_bf16_it_may_be_exported_in_their_type(
    make_run: MakeRun, tmp_path: Path
) -> None:
    base = published(make_run, tmp_path / "base", kind="bf16")
    given = adapters.merged(base, adapter(base, tmp_path / "adapter", FULL))
    done = export_source(given, tmp_path / "out", beside=base)
    assert done.type == "bf16" and 0.0 < done.parity.difference < 0.05 * done.parity.largest


def test_what_cannot_stand_beside_a_model_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run, base = make_run(shape=SHAPE), tmp_path / "base"
    export(run, base, type="f32", talk=print)
    with pytest.raises(BadInput, match="is a run, and adapters") as told:
        load_writer(run, adapters={"a": tmp_path})
    assert "narrows export" in str(told.value.hint)
    folder = adapter(base, tmp_path / "dora", LowRank(rank=4, rule="dora"))
    with pytest.raises(BadInput, match="is a DoRA") as told:
        load_writer(base, adapters={"a": folder})
    assert f"narrows export {base} --adapter {folder}" in str(told.value.hint)
    other = adapter(base, tmp_path / "other", FULL)
    shutil.rmtree(run)
    wider = llama(**{**SIZES, "width": 128}, kv_heads=1)
    with pytest.raises(BadInput, match=r"as \[4, 192\], and this model"):
        load_writer(published(make_run, tmp_path / "wider", wider), adapters={"a": other})


def test_a_name_that_is_no_adapters_is_refused(both: tuple[Path, dict[str | None, Path]]) -> None:
    base, folders = both
    scheduler = scheduler_of(
        load_writer(base, precision="fp32", adapters=folders), Room(1, 1, CONTEXT), print
    )
    with pytest.raises(BadInput, match="no adapter 'fill'") as told:
        scheduler.submit(greedy(PROMPT, "fill"))
    assert told.value.hint == "there are: full, some"
    scheduler.close()


@NATIVE
def test_a_matrix_may_be_adapted_in_part_and_a_layer_left_alone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    base = published(make_run, tmp_path / "base")
    how = LowRank(rank=3, targets=("up",))
    folder = adapter(base, tmp_path / "up", how, frozen=("layers.0",))
    writer = load_writer(base, precision="bf16", adapters={None: folder})
    assert isinstance(writer, PackedWriter) and writer.adapters[None].inner == 4
    # One matrix of one layer: A [4,64] and B [F,4] in bf16.
    assert writer.adapters[None].nbytes == 2 * 4 * (64 + SHAPE.feed_forward_width)
    expected_V = decoding_of(merged(base, folder), CONTEXT).read(PROMPT)
    assert off(writer.decoding(CONTEXT).read(PROMPT), expected_V) < EXACT["bf16"]
