"""A tokenizer out of what a GGUF file says of one: its tokens, merges or scores, and its rules.

What the file calls "gpt2" is byte-level BPE, cut before into words by the rule it names; "llama" is
SentencePiece's BPE, whose merges are not told and follow from the scores. Both become Hugging
Face's own object, so that there is one tokenizer in the house.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    import tokenizers

_KEY = "tokenizer.ggml."
_CONTROL, _UNKNOWN = 3, 2
_GIVEN = 4
"""Added by whoever made the model, and never cut."""
_SPACE = "▁"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def of_gguf(facts: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """The tokenizer that a GGUF file's header describes; raises BadInput where it is of a kind that
    narrows does not know, or contradicts itself.
    """
    kind = facts.get(f"{_KEY}model")
    makers: dict[object, Callable[[_Told], tokenizers.Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentence_piece,
    }
    if not isinstance(kind, str) or kind not in makers:
        what = f"{source} has a tokenizer of the kind {kind!r}, which narrows does not know"
        raise BadInput(what, hint=f"known: {', '.join(str(each) for each in makers)}")
    told = _Told(facts, source)
    tokenizer = makers[kind](told)
    _add_special(tokenizer, told)
    begin = told.begin()
    if begin is not None:
        from tokenizers import processors

        name = told.tokens[begin]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, begin)]
        )
    return tokenizer


class _Told:
    """What the header says, each with its kind."""

    def __init__(self, facts: Mapping[str, Any], source: str) -> None:
        self._facts, self._source = facts, source
        self.tokens: list[str] = self._list("tokens", str)
        self.kinds: list[int] = self._list("token_type", int) or [1] * len(self.tokens)
        if not self.tokens or len(self.kinds) != len(self.tokens):
            what = f"{len(self.tokens)} tokens and {len(self.kinds)} kinds of tokens"
            raise self.refused(f"it has {what}")
        self.ids = {token: number for number, token in enumerate(self.tokens)}

    def refused(self, why: str) -> BadInput:
        return BadInput(f"{self._source}: its tokenizer cannot be: {why}", hint="fetch it again")

    def merges(self) -> list[tuple[str, str]]:
        found = []
        for line in self._list("merges", str):
            left, space, right = line.partition(" ")
            if not space:
                raise self.refused(f"the merge {line!r} names no pair")
            found.append((left, right))
        return found

    def scores(self) -> list[float]:
        scores = self._list("scores", float)
        if len(scores) != len(self.tokens):
            raise self.refused(f"it has {len(self.tokens)} tokens and {len(scores)} scores")
        return scores

    def begin(self) -> int | None:
        """The token that every text begins with, if any does."""
        if not self.flag("add_bos_token", default=self.text("model") == "llama"):
            return None
        found = self._facts.get(f"{_KEY}bos_token_id")
        return found if isinstance(found, int) and 0 <= found < len(self.tokens) else None

    def flag(self, name: str, *, default: bool) -> bool:
        found = self._facts.get(_KEY + name, default)
        if not isinstance(found, bool):
            raise self.refused(f"{name} is {found!r}")
        return found

    def text(self, name: str) -> str:
        return str(self._facts.get(_KEY + name, ""))

    def known(self, name: str, rules: Mapping[str, Any]) -> Any:
        """What stands for a rule that is named."""
        wanted = self.text(name)
        if wanted not in rules:
            raise BadInput(
                f"{self._source} cuts words by the rule {wanted!r}, which narrows does not know",
                hint=f"take the model's Hugging Face folder; known: {', '.join(rules)}",
            )
        return rules[wanted]

    def made(self, merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
        """The tokens joined by those merges; raises BadInput where the library cannot."""
        import tokenizers
        from tokenizers import models

        try:
            return tokenizers.Tokenizer(models.BPE(self.ids, merges, **options))
        except Exception as error:  # it raises its own kinds, and plain ones for what is no text
            raise self.refused(str(error).splitlines()[0]) from None

    def _list(self, name: str, kind: type) -> list[Any]:
        found = self._facts.get(_KEY + name, [])
        if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
            raise self.refused(f"{name} is no list of {kind.__name__}")
        return found


def _byte_level(told: _Told) -> tokenizers.Tokenizer:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def cut(*before: Any) -> Any:
        return pre_tokenizers.Sequence(list(before))

    def split(pattern: str) -> Any:
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    rules: dict[str, Any] = {
        **dict.fromkeys(("gpt-2", "gpt2", "default", "olmo"), whole),
        "smollm": cut(pre_tokenizers.Digits(individual_digits=True), whole),
        **dict.fromkeys(("llama-bpe", "llama3", "dbrx"), cut(split(_LLAMA3), inner)),
        "qwen2": cut(split(_QWEN), inner),
    }
    rule = told.known("pre", rules)
    whole_words = told.text("pre") in ("llama-bpe", "llama3")
    tokenizer = told.made(told.merges(), ignore_merges=whole_words)
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, decoders.ByteLevel()
    if told.text("pre") == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentence_piece(told: _Told) -> tokenizers.Tokenizer:
    from tokenizers import decoders, normalizers

    unknown = next((told.tokens[i] for i, kind in enumerate(told.kinds) if kind == _UNKNOWN), None)
    tokenizer = told.made(_merges(told), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    before = told.flag("add_space_prefix", default=True)
    spaces = [normalizers.Replace(" ", _SPACE)]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), *spaces] if before else spaces
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if before else steps)
    return tokenizer


def _merges(told: _Told) -> list[tuple[str, str]]:
    """Every way to make a token of two others; those of likelier tokens first."""
    ids, found = told.ids, []
    for token, kind, score in zip(told.tokens, told.kinds, told.scores(), strict=True):
        if kind != 1 or len(token) < 2:
            continue
        parts = [
            (token[:at], token[at:])
            for at in range(1, len(token))
            if token[:at] in ids and token[at:] in ids
        ]
        parts.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, pair) for pair in parts]
    found.sort(key=lambda each: each[0], reverse=True)
    return [pair for _, pair in found]


def _add_special(tokenizer: tokenizers.Tokenizer, told: _Told) -> None:
    from tokenizers import AddedToken

    kinds = list(zip(told.tokens, told.kinds, strict=True))
    control = [AddedToken(token, special=True, normalized=False)
               for token, kind in kinds if kind == _CONTROL]  # fmt: skip
    given = [AddedToken(token, special=False, normalized=False)
             for token, kind in kinds if kind == _GIVEN]  # fmt: skip
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(given)
