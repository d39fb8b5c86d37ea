"""What was laid out is what its file says, and is laid out again when that changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from narrows.data import published
from narrows.infer import laying, ready
from narrows.infer.export import export
from narrows.infer.generate import ServingPrecision
from narrows.infer.laid import About, Laid, Shelf
from narrows.infer.laying import lay, lay_beside
from narrows.infer.loading import Generator
from narrows.infer.packed import PackedWriter
from narrows.infer.packing import chosen, packed
from narrows.infer.ready import named
from narrows.infer.writer import load_writer
from narrows.kernels.build import library, obstacle
from narrows.spec.errors import BadInput
from narrows.spec.model import GeGLU, ModelSpec, Rotary, Window, Yarn, gpt2, llama

from .conftest import CONTEXT, VOCABULARY, MakeRun, spec
from .test_beside import FULL, adapter

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
SHAPES = {
    "llama": SHAPE,
    "gpt2": gpt2(layers=2, width=64, heads=2, vocabulary=VOCABULARY, context=CONTEXT),
    "gemma": msgspec.structs.replace(
        SHAPE, feed_forward=GeGLU(), block_norms="both", query_norm="head", embedding_scale=8.0,
        positions=Rotary(base=1e6, window_base=1e4), window=Window(size=5, full_every=2),
        query_scale=32**-0.5, tied_embeddings=True,
    ),
    "stretched": msgspec.structs.replace(
        SHAPE, tied_embeddings=False, positions=Rotary(
            base=1e4, scaling=Yarn(factor=4.0, low=1.0, high=32.0, positions=12, growth=1.1)),
    ),
}  # fmt: skip
TOKENS = [5, 80, 3, 120, 44, 9, 71, 250, 6, 31, 14, 200]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of its own, with the kernels that were compiled before."""
    found = tmp_path / "home"
    found.mkdir()
    (found / "native").symlink_to(library().parent)
    monkeypatch.setenv("NARROWS_HOME", str(found))
    return found


def written(make_run: MakeRun, to: Path, shape: ModelSpec = SHAPE, kind: str | None = None) -> Path:
    run = to.parent / "run"
    export(run if run.exists() else make_run(shape=shape), to, type=kind, talk=print)
    return to


def logits(writer: object) -> np.ndarray:
    assert isinstance(writer, PackedWriter)
    decoding = writer.decoding(20)
    return np.stack([decoding.read(TOKENS), decoding.read([7])])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out without a process more, which takes seconds."""
    monkeypatch.setattr(ready, "lay_out", lay)
    monkeypatch.setattr(ready, "lay_beside", laying.beside)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_laid_out_it_computes_the_same_to_the_bit(
    kind: str, precision: ServingPrecision, make_run: MakeRun, tmp_path: Path
) -> None:
    path, to = written(make_run, tmp_path / "out", SHAPES[kind]), tmp_path / "laid"
    to.mkdir()
    what, shelf = chosen(path, precision), Shelf(to)
    assert what
    model = packed(what, keep=shelf.keep)
    about = About(source=str(path), called=what.called, model=what.given.spec, said=("aloud",))
    shelf.close(model, about, None)
    laid, expected = Laid.of(to), load_writer(path, precision=precision)
    assert laid and laid.about.said == ("aloud",) and laid.about.model == expected.spec
    assert laid.model.nbytes == expected.weight_bytes
    assert (laid.model.head is laid.model.table) == SHAPES[kind].tied_embeddings
    found = PackedWriter(laid.about.model, published.of_folder(path), laid.model)
    assert (logits(found) == logits(expected)).all()


def test_a_file_is_laid_out_once_and_read_as_before(make_run: MakeRun, tmp_path: Path) -> None:
    path, said = written(make_run, tmp_path / "out.gguf", kind="q8_0"), list[str]()
    before = named(path, None, said.append)
    assert said == ["laying out.gguf out for this machine, once"]
    writer = named(path, None, said.append).writer(talk=said.append)
    assert len(said) == 2 and said[1].startswith(f"{path}: llama, 118k parameters, int8 (")
    expected = load_writer(path)
    assert before.laid and (logits(writer) == logits(expected)).all()
    own, other = writer.tokenizer, expected.tokenizer
    assert own.differs(other) is None and own.ends == other.ends and own.begin == other.begin
    assert own.end_of_document == other.end_of_document
    assert writer.template is None and expected.template is None


@pytest.mark.usefixtures("here")
def test_what_changed_is_laid_out_again_in_the_place_of_the_old(
    make_run: MakeRun, tmp_path: Path, home: Path
) -> None:
    path = written(make_run, tmp_path / "out.gguf", kind="q8_0")
    old = named(path, None, print).laid
    path.unlink()
    written(make_run, path, kind="q4_0")
    new, said = named(path, None, print).laid, list[str]()
    assert old and new and new.model.nbytes < old.model.nbytes
    assert [each for each in (home / "laid").iterdir() if each.is_dir()] == [new.folder]
    # What is mapped is there as long as it is used.
    assert old.model.table.parts[0].panels.any()
    whole = (new.folder / "arrays").read_bytes()
    for damaged in (whole[:-1], b""):
        (new.folder / "arrays").write_bytes(damaged)
        again = named(path, None, said.append).laid
        assert again and (again.folder / "arrays").read_bytes() == whole
    assert len(said) == 2


@pytest.mark.usefixtures("here")
def test_what_is_not_used_or_came_from_nowhere_is_removed(
    make_run: MakeRun, tmp_path: Path, home: Path
) -> None:
    paths = [written(make_run, tmp_path / f"{n}.gguf", kind="q8_0") for n in range(3)]
    unused, gone, kept = (named(path, None, print).laid for path in paths)
    assert unused and gone and kept
    os.utime(unused.folder, (0, 0))
    paths[1].unlink()
    (home / "laid" / "tmpbroken").mkdir()
    new = named(written(make_run, tmp_path / "new.gguf", kind="q8_0"), None, print).laid
    assert new
    left = {each for each in (home / "laid").iterdir() if each.is_dir()}
    assert left == {kept.folder, new.folder}


@pytest.mark.usefixtures("here")
def test_of_several_that_start_at_once_one_lays_it_out(make_run: MakeRun, tmp_path: Path) -> None:
    path, said = written(make_run, tmp_path / "out.gguf", kind="q8_0"), list[str]()
    with ThreadPoolExecutor(4) as several:
        found = list(several.map(lambda _: named(path, None, said.append), range(4)))
    assert len(said) == 1 and len({each.laid and each.laid.folder for each in found}) == 1


@pytest.mark.usefixtures("here")
def test_a_run_is_laid_out_by_its_checkpoints(make_run: MakeRun, home: Path) -> None:
    run, said = make_run(shape=SHAPE, precision="bf16", steps=(10, 20)), list[str]()
    for checkpoint, step in (("latest", 20), (None, 10)):
        model = named(run, None, said.append, checkpoint)
        writer, expected = model.writer(talk=said.append), load_writer(run, checkpoint=checkpoint)
        assert said[-2] == "laying run out for this machine, once"
        assert said[-1].startswith(f"{run}, step {step}, 118k parameters, bf16 (")
        assert model.laid and (logits(writer) == logits(expected)).all()
    # What the newest is changes as a run goes on.
    (run / "checkpoints" / "latest").write_text("step-00000010")
    again = named(run, None, said.append, "latest")
    assert len(said) == 5 and again.laid
    assert len([each for each in (home / "laid").iterdir() if each.is_dir()]) == 2
    with pytest.raises(BadInput, match="has no checkpoint step-7"):
        named(run, None, print, "step-7")


@pytest.mark.usefixtures("here")
def test_adapters_stand_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    base = written(make_run, tmp_path / "base")
    folders = {None: adapter(base, tmp_path / "adapter", FULL)}
    model = named(base, "bf16", print)
    assert model.laid
    expected = load_writer(base, precision="bf16", adapters=folders)
    for _ in range(2):
        found = model.writer(adapters=folders)
        assert (logits(found) == logits(expected)).all()
        assert found.weight_bytes == expected.weight_bytes > model.laid.model.nbytes


@pytest.mark.usefixtures("here")
def test_an_adapter_is_read_by_torch_once_and_again_when_it_is_another(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = written(make_run, tmp_path / "base"), tmp_path / "adapter"
    adapter(base, folder, FULL)
    model, asked = named(base, "bf16", print), list[Path]()
    assert model.laid

    def counted(each: Path, base: Path, to: Path) -> None:
        asked.append(to)
        laying.beside(each, base, to)

    monkeypatch.setattr(ready, "lay_beside", counted)
    first = logits(model.writer(adapters={None: folder}))
    assert (logits(model.writer(adapters={"other": folder, None: folder})) == first).all()
    assert len(asked) == 1 and asked[0].parent.parent == model.laid.folder
    for content in (b"", asked[0].read_bytes()[:-9]):
        asked[0].write_bytes(content)
        assert (logits(model.writer(adapters={None: folder})) == first).all()
    assert len(asked) == 3
    adapter(base, folder, msgspec.structs.replace(FULL, rank=8))
    assert model.writer(adapters={None: folder}).weight_bytes > model.laid.model.nbytes
    assert len(asked) == 4 and len(list(asked[0].parent.iterdir())) == 1


@pytest.mark.usefixtures("here")
def test_an_adapter_that_cannot_be_laid_out_is_read_here(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = written(make_run, tmp_path / "base")
    folders = {None: adapter(base, tmp_path / "adapter", FULL)}
    model = named(base, "bf16", print)
    assert model.laid
    expected = logits(model.writer(adapters=folders))
    shutil.rmtree(model.laid.folder / "beside")
    (model.laid.folder / "beside").write_text("no folder")
    assert (logits(model.writer(adapters=folders)) == expected).all()


def test_what_is_wrong_with_an_adapter_is_said_by_the_process_that_reads_it(
    make_run: MakeRun, tmp_path: Path
) -> None:
    base, folder = written(make_run, tmp_path / "base"), tmp_path / "adapter"
    adapter(base, folder, msgspec.structs.replace(FULL, rule="dora"))
    with pytest.raises(BadInput, match="adapter is a DoRA") as told:
        lay_beside(folder, base, tmp_path / "to.npz")
    assert told.value.hint and "merge it" in told.value.hint
    assert not list(tmp_path.glob("to*"))


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_torch_reads_what_it_computes(
    precision: ServingPrecision | None, make_run: MakeRun, tmp_path: Path, home: Path
) -> None:
    path = written(make_run, tmp_path / "out")
    said = list[str]()
    assert named(tmp_path / "run", precision, said.append).laid is None
    # Who asked for it need not be told.
    assert len(said) == (precision is None) and all("--precision bf16 or" in each for each in said)
    assert (named(path, precision, print).laid is None) == (precision == "fp32")
    assert (home / "laid").exists() == (precision is None)


@pytest.mark.usefixtures("here")
def test_what_torch_computes_is_asked_for_once(make_run: MakeRun, tmp_path: Path) -> None:
    path, said = written(make_run, tmp_path / "out.gguf", spec(), "f32"), list[str]()
    for _ in range(2):
        assert named(path, None, said.append).laid is None
    assert said == ["laying out.gguf out for this machine, once"]
    assert isinstance(named(path, None, print).writer(), Generator)


def test_what_is_wrong_with_a_file_is_said_as_its_reader_says_it(
    make_run: MakeRun, tmp_path: Path, home: Path
) -> None:
    path = written(make_run, tmp_path / "out.gguf", kind="q8_0")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput) as expected:
        load_writer(path)
    with pytest.raises(BadInput) as found:
        named(path, None, print)
    assert str(found.value) == str(expected.value)
    assert [each.name for each in (home / "laid").iterdir()] == ["lock"]
    with pytest.raises(BadInput, match="is no run, and has no checkpoints"):
        whole = written(make_run, tmp_path / "whole.gguf", kind="q8_0")
        named(whole, None, print, "best").writer()


def test_a_full_disk_is_no_hindrance(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = written(make_run, tmp_path / "out.gguf", kind="q8_0"), list[str]()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(ready.shutil, "disk_usage", lambda path: usage(1000))
    model = named(path, None, said.append)
    assert model.laid is None and said[0].startswith("not laid out: ") and "1 kB left" in said[0]
    assert (logits(model.writer()) == logits(load_writer(path))).all()


def test_torch_is_never_loaded_where_it_is_laid_out(make_run: MakeRun, tmp_path: Path) -> None:
    path = written(make_run, tmp_path / "out.gguf", kind="q8_0")
    program = (
        "import sys\n"
        "from narrows.cli.main import main\n"
        f"assert main(['generate', {str(path)!r}, '--prompt', 'ROMEO', '--tokens', '3']) == 0\n"
        "import narrows.infer.server.run, narrows.infer.server.need, narrows.infer.guessed\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ROMEO")
