"""The words of a published model: its tokenizer, its chat template, and where its texts end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from narrows.data.template import Template
from narrows.data.tokenizers import FILE, Tokenizer, opened
from narrows.data.vocabulary import of_gguf
from narrows.spec.errors import BadInput
from narrows.spec.record import read, write_atomically

if TYPE_CHECKING:
    import tokenizers

_SETTINGS, _GENERATION = "tokenizer_config.json", "generation_config.json"
_TEMPLATE = "chat_template.jinja"
_TOKENS_MOST = 1 << 32
"""More than any tokenizer can have: what is no less is no token."""
FILES = (FILE, _SETTINGS, _GENERATION, _TEMPLATE)
"""What is written of a model's words."""
_ENDINGS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")
"""Tokens that end a turn or a text wherever they are special, whatever the files forget to say."""


class Words(NamedTuple):
    """How a model reads and writes text; without a template it knows no conversation. `special`:
    what its files call some tokens, such as bos_token.
    """

    tokenizer: Tokenizer
    template: Template | None = None
    special: Mapping[str, str] = {}


def words(path: Path, facts: Mapping[str, Any] | None) -> Words:
    """Of a model's folder, or of a GGUF file by what its header says."""
    return of_folder(path) if facts is None else of_facts(facts, str(path))


def of_folder(folder: Path) -> Words:
    """From tokenizer.json and what stands beside it, as transformers wrote them.

    Raises BadInput where there is no tokenizer.json, or it is none.
    """
    if not (folder / FILE).is_file():
        raise BadInput(
            f"{folder} has no {FILE}",
            hint="fetch it, or save the tokenizer again with transformers, which writes it",
        )
    tokenizer = opened(folder / FILE)
    said = _table(folder / _SETTINGS)
    special = {name: text for name in _special(said) if (text := _text(said[name])) is not None}
    ends = _ids(tokenizer, [special.get("eos_token")])
    ends += _listed(_table(folder / _GENERATION).get("eos_token_id"))
    ends += _listed(_table(folder / "config.json").get("eos_token_id"))
    source = _template(folder, said)
    template = None if source is None else Template(source, special)
    return Words(Tokenizer(tokenizer, _every(tokenizer, ends)), template, special)


def save(words: Words, folder: Path, context: int | None = None) -> None:
    """Write what `of_folder` and transformers read: tokenizer.json, and beside it what its tokens
    are called, the template, where texts end and, where told, how long they may be.
    """
    end = words.tokenizer.text_of(words.tokenizer.end_of_document)
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **({} if context is None else {"model_max_length": context}),
        "eos_token": end,
        **words.special,
    }
    contents = {
        FILE: words.tokenizer.to_json(),
        _SETTINGS: json.dumps(said, indent=2, ensure_ascii=False),
        _GENERATION: json.dumps(numbers(words), indent=2),
        **({_TEMPLATE: words.template.source} if words.template else {}),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())


def refuse_foreign(tokenizer: Tokenizer, vocabulary: int, path: Path) -> None:
    """Raises BadInput where the tokenizer of the model at `path` has tokens that the model has not:
    it is another's.
    """
    if tokenizer.vocabulary > vocabulary:
        raise BadInput(
            f"the tokenizer of {path} has {tokenizer.vocabulary} tokens, its model {vocabulary}: "
            "they do not belong together",
            hint="copy tokenizer.json from the model's own folder, or the one dataset.json names",
        )


def numbers(words: Words) -> dict[str, int | list[int]]:
    """The tokens that generation has to know, by the keys of a config.json."""
    tokenizer = words.tokenizer
    ends = [tokenizer.end_of_document, *sorted(tokenizer.ends - {tokenizer.end_of_document})]
    found = {f"{name}_token_id": tokenizer.number_of(words.special.get(f"{name}_token"))
             for name in ("bos", "pad")}  # fmt: skip
    told: dict[str, int | list[int]] = {key: n for key, n in found.items() if n is not None}
    return {**told, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def of_facts(facts: Mapping[str, Any], source: str) -> Words:
    """From the header of a GGUF file; raises BadInput where it cannot be."""
    tokenizer = of_gguf(facts, source)
    special = {}
    for name in ("bos", "eos", "pad", "unk"):
        key = {"pad": "padding", "unk": "unknown"}.get(name, name)
        number = facts.get(f"tokenizer.ggml.{key}_token_id")
        text = next((tokenizer.id_to_token(each) for each in _listed(number)), None)
        if text is not None:
            special[f"{name}_token"] = text
    ends = _listed(facts.get("tokenizer.ggml.eos_token_id"))
    ends += _listed(facts.get("tokenizer.ggml.eot_token_id"))
    text = facts.get("tokenizer.chat_template")
    template = Template(text, special) if isinstance(text, str) else None
    return Words(Tokenizer(tokenizer, _every(tokenizer, ends)), template, special)


def _every(tokenizer: tokenizers.Tokenizer, ends: list[int]) -> list[int]:
    """Those that are told, then others that end a text; each once."""
    added = tokenizer.get_added_tokens_decoder()
    others = [number for number, token in added.items() if token.content in _ENDINGS]
    return list(dict.fromkeys([*ends, *others]))


def _template(folder: Path, said: Mapping[str, Any]) -> str | None:
    """A file of its own, or a key of the tokenizer's settings: a text, or several by name."""
    if (folder / _TEMPLATE).is_file():
        try:
            return (folder / _TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            what = f"{folder / _TEMPLATE} is not UTF-8 text: byte {error.start}"
            raise BadInput(what, hint="it is damaged: fetch it again") from None
    found = said.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special(said: Mapping[str, Any]) -> list[str]:
    return [name for name in said if name.endswith("_token") and not name.startswith("add_")]


def _text(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _ids(tokenizer: tokenizers.Tokenizer, texts: list[str | None]) -> list[int]:
    found = [tokenizer.token_to_id(text) for text in texts if text is not None]
    return [number for number in found if number is not None]


def _listed(value: Any) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [number for number in found if type(number) is int and 0 <= number < _TOKENS_MOST]


def _table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read(path)
    return found if isinstance(found, dict) else {}
