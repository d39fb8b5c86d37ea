"""A model of ours as lm-evaluation-harness wants one.

It cuts texts into tokens, windows and answers as the harness' own `hf` backend does, so that both
give the same numbers (tests hold them to each other on one task file). Only what is longer than the
context loses its beginning, as there; `cut` counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from narrows.evaluate.assessment import Manner
from narrows.evaluate.likelihood import Reader, Reading
from narrows.evaluate.passes import Passes
from narrows.evaluate.progress import Progress, Talk
from narrows.evaluate.writing import Manuscript, Prompt, write
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling
from narrows.spec.errors import BadInput

_ANSWER = 256
"""Tokens of an answer where a task does not say, as the hf backend has it."""
_KNOWN = {"do_sample", "temperature", "top_k", "top_p", "min_p", "until", "max_gen_toks"}
Encoded = tuple[Any, list[int], list[int]]


class HarnessModel(TemplateLM):
    """Likelihoods and answers for the harness; `tokens` counts what was read for them."""

    def __init__(
        self, generator: Generator, manner: Manner, passes: Passes, talk: Talk
    ) -> None:  # fmt: skip
        super().__init__()
        self.cut = self.tokens = 0
        self._generator, self._manner, self._talk = generator, manner, talk
        self._reader = Reader(generator.model, manner.batch, manner.context, passes)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._generator.tokenizer.end_of_document

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: the one that texts begin with, where the model
        names one, else the one that ends them.
        """
        generator = self._generator
        named = generator.template.special.get("bos_token") if generator.template else None
        if named is not None:
            (token,) = generator.tokenizer.encode(named, special=True)
            return token
        return (*generator.tokenizer.begin, self.eot_token_id)[0]

    @property
    def tokenizer_name(self) -> str:
        """Tells requests that are kept of this model from those of others."""
        return "narrows"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """The tokens of a text, with those around it unless it has them or they are not wanted."""
        tokenizer = self._generator.tokenizer
        tokens = tokenizer.encode(string, special=True)
        begins = tokens[:1] == [self.prefix_token_id]
        if add_special_tokens is False or (add_special_tokens is None and begins):
            return tokens
        return [*tokenizer.begin, *tokens, *tokenizer.close]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The logarithm of each whole text's likelihood, in windows that share one token."""
        found = []
        for (text,) in [each.args for each in requests]:
            pairs = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self._reader.context, context_len=1
            )
            parts = [(None, *make_disjoint_window(pair)) for pair in pairs]
            scored = self._loglikelihood_tokens(parts)
            found.append(sum(each for each, _ in scored))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each, up to the first of its stop strings."""
        found: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for place, each in enumerate(requests):
            alike.setdefault(repr(each.args[1]), []).append(place)
        for places in alike.values():
            wanted = normalize_gen_kwargs(requests[places[0]].args[1], _ANSWER)
            how = self._how(wanted)
            room = self._reader.context - how.tokens
            if room < 1:
                self._refuse_long(f"an answer of {how.tokens} tokens")
            asked = [self.tok_encode(requests[place].args[0]) for place in places]
            self.cut += sum(len(tokens) > room for tokens in asked)
            prompts = [Prompt(tokens[-room:], n) for tokens, n in zip(asked, places, strict=True)]
            written = write(self._generator, prompts, how, self._reader.passes, self._talk)
            for place, prompt, answer in zip(places, prompts, written, strict=True):
                self.tokens += len(prompt.tokens) + answer.tokens
                found[place] = _before(answer.text, how.stop)
        return [found[place] for place in range(len(requests))]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's own template writes it."""
        if self._generator.template is None:
            what = "the model has no chat template to render questions with"
            raise BadInput(what, hint="leave out --chat")
        if not add_generation_prompt:
            what = "the task begins the model's turn itself, which its chat template cannot render"
            raise BadInput(what, hint="leave out --chat")
        return self._generator.template.render(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, which tells results apart."""
        return self._generator.template.source if self._generator.template else ""

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], **options: Any
    ) -> list[tuple[float, bool]]:
        context, readings = self._reader.context, []
        for _, before, asked in requests:
            if len(asked) > context or not asked:
                self._refuse_long(f"a text of {len(asked)} tokens to score")
            self.cut += len(before) + len(asked) > context + 1
            tokens = [*before, *asked][-(context + 1) :]
            readings.append(Reading(tokens, len(tokens) - len(asked)))
        self.tokens += sum(len(each.tokens) for each in readings)
        self._reader.announce(readings, f"{len(readings):,} texts", self._talk)
        progress = Progress(self._talk, "texts", len(readings))
        found = self._reader.read(readings, lambda done: progress.add(len(done)))
        return [(-each.nats, each.greedy) for each in found]

    def _how(self, wanted: dict[str, Any]) -> Manuscript:
        unknown = sorted(set(wanted) - _KNOWN)
        if unknown:
            what = f"the task asks for answers by {', '.join(unknown)}, which narrows does not know"
            raise BadInput(what, hint=f"known: {', '.join(sorted(_KNOWN))}")
        sampling = Sampling(
            temperature=wanted["temperature"] if wanted["do_sample"] else 0.0,
            top_k=wanted.get("top_k"), top_p=wanted.get("top_p"), min_p=wanted.get("min_p"),
            seed=self._manner.seed,
        )  # fmt: skip
        stops = tuple(dict.fromkeys(each for each in wanted["until"] if each))
        return Manuscript(wanted["max_gen_toks"], sampling, stops, self._manner.batch)

    def _refuse_long(self, what: str) -> NoReturn:
        context = self._reader.context
        raise BadInput(
            f"the task has {what}, and the model reads {context}",
            hint="take a model of a longer context",
        )


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of each stop string, one after the other."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text
