"""Each example, for a few steps, on rows that its script writes from a package of the same kind."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from narrows.cli.main import VERBS, main
from narrows.data.rows import rows
from narrows.spec import record
from narrows.spec.job import Job, ModelIntent
from narrows.spec.objective import Masked

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBERS = range(60)
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for name, content in files.items():
            told = tarfile.TarInfo(f"package-1.0/{name}")
            told.size = len(content)
            opened.addfile(told, io.BytesIO(content))
    return path


def catalogue(strings: dict[str, str]) -> bytes:
    """A compiled catalogue, as gettext's manual draws it."""
    texts = [("", "Content-Type: text/plain; charset=UTF-8\n"), *sorted(strings.items())]
    pairs = [tuple(each.encode() for each in pair) for pair in texts]
    place = 28 + 16 * len(pairs)
    tables, body = [b"", b""], b""
    for column in (0, 1):
        for pair in pairs:
            tables[column] += struct.pack("<II", len(pair[column]), place + len(body))
            body += pair[column] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + b"".join(tables) + body


def reviews(place: Path) -> list[str]:
    said = {name: "\n".join(f"{name} {n}" for n in [*NUMBERS, 3, 5]) for name in ("pos", "neg")}
    files = {f"sentiment/{name}.txt": text.encode() for name, text in said.items()}
    return [str(tar(place / "reviews.tar.gz", files)), "rows"]


def films(place: Path) -> list[str]:
    lines = "".join(f"{n}\t{(n % 9 - 4) / 2}\tfilm {n}, it's\n" for n in NUMBERS)
    inner = tar(place / "inner", {"movieReviewSnippets_GroundTruth.txt": lines.encode()})
    outer = {"more/hutto_ICWSM_2014.tar.gz": inner.read_bytes()}
    return [str(tar(place / "films.tar.gz", outer)), "rows"]


def catalogues(place: Path) -> list[str]:
    with zipfile.ZipFile(place / "catalogues.whl", "w") as opened:
        strings = {f"line {n}": f"第 {n} 行" for n in NUMBERS} | {"same": "same"}
        opened.writestr("a/zh_Hans/LC_MESSAGES/a.mo", catalogue(strings))
        opened.writestr("a/de/LC_MESSAGES/a.mo", catalogue({"line": "Zeile"}))
    return [str(place / "catalogues.whl"), "rows"]


SCRIPTS: dict[str, tuple[Callable[[Path], list[str]], dict[str, int]]] = {
    "reviews": (reviews, {"reviews": 120, "reviews-by-row": 124}),
    "films": (films, {"films": 53, "films-value": 60}),
    "catalogues": (catalogues, {"translation": 60, "translation-asked": 60}),
    "conversations": (lambda place: ["rows"], {"conversations": 7 * len(VERBS)}),
}


@pytest.fixture(scope="module")
def written(place: Path) -> Path:
    """The folder `place` with every script's rows, and a published model to start from."""
    for name, (arguments, _) in SCRIPTS.items():
        command = [sys.executable, str(EXAMPLES / "data" / f"{name}.py"), *arguments(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert main(["train", "job.toml", "--run", "base", "--set", "model.context=512"]) == 0
    assert main(["export", "base", "--to", "small"]) == 0
    Path("small/chat_template.jinja").write_text(CHATML)
    return place


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_write_rows(name: str, written: Path) -> None:
    for folder, count in SCRIPTS[name][1].items():
        splits = [row.split for row in rows(written / "rows" / folder)]
        assert len(splits) == count and {*splits} == {"train", "validation"}
        assert splits.count("validation") < count / 4


def test_no_review_that_is_held_back_was_learned(written: Path) -> None:
    train, held = (
        {str(row.fields["text"]) for row in rows(written / "rows/reviews") if row.split == split}
        for split in ("train", "validation")
    )
    assert train and held and not train & held


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_trains(path: Path, written: Path) -> None:
    job = record.load(Job, path)
    assert job.data is not None
    if isinstance(job.train.objective, Masked):
        # None of the tokenizers here but one from nothing has a mask.
        job = msgspec.structs.replace(job, model=ModelIntent(causal=False))
        path = written / path.name
        record.save(job, path)
    changes = {"train.steps": "2", "layout.threads": "1", "layout.compile": "false"}
    if job.model.start is not None:
        changes |= {"model.start": "small", "model.context": "512"}
    else:
        changes |= {"model.layers": "1", "model.width": "64", "data.vocabulary": "300"}
        changes |= {"model.context": "16" if isinstance(job.train.objective, Masked) else "64"}
    if not job.data.corpus.startswith("rows/"):
        changes["data.corpus"] = "text"
    said = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", str(path), "--run", f"runs/{path.stem}", *said]) == 0
    assert (written / "runs" / path.stem / "ledger.json").is_file()
