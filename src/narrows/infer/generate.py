"""Text from a run: load it once, then generate as often as one likes.

    load(run) → Generator;   generate(generator, prompt) → Generation, text as it is written

Nothing here knows of terminals or networks; an engine that writes many texts at once will call the
same parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, final

import torch

from narrows.data import tokenizers
from narrows.data.tokenizers import Tokenizer
from narrows.hardware.find import has_bf16_unit, processor
from narrows.infer.checkpoint import locate, step, weights
from narrows.infer.decoding import Decoding
from narrows.infer.sampling import Sampler, Sampling
from narrows.infer.stream import StopStrings, TextStream
from narrows.kernels.allocator import keep_pages
from narrows.kernels.load import load as load_kernels
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.plan import Plan
from narrows.spec.record import load as load_record

Finish = Literal["length", "stop", "end"]
"""Why a text ended: as long as asked, a stop string, or the model ended its document."""


class Generator(NamedTuple):
    """A model ready to write, and the tokenizer it was trained with."""

    model: Transformer
    tokenizer: Tokenizer


def load(
    run: Path, *, checkpoint: str | None = None, talk: Callable[[str], None] = lambda text: None
) -> Generator:
    """The model of a run folder, by default its best checkpoint, else its latest.

    It computes in the precision that it was trained in, which loses nothing; bf16 weights are
    widened, once, where the processor has no bf16 unit and would be slow with them. Raises BadInput
    for a folder that is not a run, has no checkpoint yet, or is damaged.
    """
    if not (run / "plan.toml").is_file():
        hint = "give the folder of a run, such as runs/shakespeare"
        raise BadInput(f"{run} is not a run folder: it has no plan.toml", hint=hint)
    plan = load_record(Plan, run / "plan.toml")
    if not plan.model.writes:
        what = f"the model of {run} is no causal decoder, and cannot go on with a text"
        raise BadInput(what, hint="give the run of a model that was trained on the next token")
    if not (run / "tokenizer.json").is_file():
        hint = "copy it from the prepared dataset: dataset.json names the folder"
        raise BadInput(f"{run} has no tokenizer.json", hint=hint)
    tokenizer = tokenizers.read(run / "tokenizer.json")
    found = locate(run, checkpoint)
    keep_pages()
    model = _model(plan, found)
    _refuse_foreign(tokenizer, model)
    if "OMP_NUM_THREADS" not in os.environ:
        here = processor()
        torch.set_num_threads(max(1, here.cores_allowed // here.threads_per_core))
    precision = "bf16" if model.head_VD.dtype == torch.bfloat16 else "fp32"
    threads = torch.get_num_threads()
    _warm(model)
    talk(f"{found} (step {step(found)}), {precision}, {threads} thread{'s'[: threads > 1]}")
    return Generator(model, tokenizer)


def generate(
    generator: Generator, prompt: str, *, tokens: int = 200,
    sampling: Sampling | None = None, stop: Sequence[str] = (),
) -> Generation:  # fmt: skip
    """At most `tokens` tokens that go on from `prompt`; an empty one starts a new document.

    The text ends before the first of the strings `stop`. Raises BadInput at once where something
    cannot be: a prompt longer than the context, or of characters that the tokenizer lacks.
    """
    if tokens < 1:
        raise BadInput(f"tokens is {tokens}", hint="ask for at least 1")
    found = _tokens_of(prompt, generator)
    return Generation(generator, found, tokens, sampling or Sampling(), stop)


def sample(model: Transformer, tokenizer: Tokenizer, prompt: str, tokens: int, seed: int) -> str:
    """A text to look at while a model trains; the model is to be in evaluation mode."""
    sampling = Sampling(seed=seed)
    generation = generate(Generator(model, tokenizer), prompt, tokens=tokens, sampling=sampling)
    return "".join(generation)


@final
class Generation:
    """Text as it is written; iterate once. `tokens` counts what was written so far, without the
    end of document, and `finish` says at the end why it ended. `seconds` are those of each token,
    the end of document included: the first has read the prompt.
    """

    def __init__(
        self, generator: Generator, prompt: Sequence[int], tokens_max: int, sampling: Sampling,
        stop: Sequence[str],
    ) -> None:  # fmt: skip
        self.prompt = tuple(prompt)
        self.tokens = 0
        self.seconds: list[float] = []
        self.finish: Finish = "length"
        self._tokens_max = tokens_max
        self._end = generator.tokenizer.end_of_document
        self._decoding = Decoding(generator.model, len(prompt) + tokens_max)
        self._sampler = Sampler(sampling, generator.tokenizer.vocabulary)
        self._text = TextStream(generator.tokenizer, prompt)
        self._stops = StopStrings(stop)

    def __iter__(self) -> Iterator[str]:
        self._sampler.saw(self.prompt)
        token = self._next(self.prompt)
        while token != self._end:
            self.tokens += 1
            piece = self._stops.push(self._text.push(token))
            if piece:
                yield piece
            if self._stops.found or self.tokens == self._tokens_max:
                break
            token = self._next([token])
        else:
            self.finish = "end"
        last = self._stops.push(self._text.finish()) + self._stops.finish()
        if self._stops.found:
            self.finish = "stop"
        if last:
            yield last

    @property
    def cache_bytes(self) -> int:
        """What keys and values take."""
        return self._decoding.cache_bytes

    def _next(self, tokens: Sequence[int]) -> int:
        """The token after `tokens`."""
        began = time.perf_counter()
        token = self._sampler.choose(self._decoding.read(tokens))
        self.seconds.append(time.perf_counter() - began)
        return token


def _model(plan: Plan, checkpoint: Path) -> Transformer:
    """The plan's model with the checkpoint's weights, on the device that computes here."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with torch.device("meta"):
        model = Transformer(plan.model, load_kernels("torch"))
    try:
        model.load_state_dict(weights(checkpoint), assign=True)
    except RuntimeError as error:
        raise BadInput(
            f"{checkpoint} does not hold the weights of the model in plan.toml",
            causes=[line.strip() for line in str(error).splitlines()[1:4]],
            hint="was plan.toml changed since? generate from an untouched run folder",
        ) from None
    if device.type == "cpu" and not has_bf16_unit(processor()):
        model = model.float()
    return model.to(device).eval().requires_grad_(False)


def _warm(model: Transformer) -> None:
    """Read every weight once, and let torch make what it makes at the first token."""
    decoding = Decoding(model, 2)
    Sampler(Sampling(), model.spec.vocabulary).choose(decoding.read([0]))
    if model.spec.context > 1:
        decoding.read([0])


def _refuse_foreign(tokenizer: Tokenizer, model: Transformer) -> None:
    if tokenizer.vocabulary > model.spec.vocabulary:
        raise BadInput(
            f"the run's tokenizer has {tokenizer.vocabulary} tokens, its model "
            f"{model.spec.vocabulary}: they do not belong together",
            hint="copy tokenizer.json from the folder that dataset.json names",
        )


def _tokens_of(prompt: str, generator: Generator) -> list[int]:
    tokenizer, context = generator.tokenizer, generator.model.spec.context
    found = tokenizer.encode(prompt) or [tokenizer.end_of_document]
    if len(found) > context:
        what = f"the prompt is {len(found)} tokens long, the model reads {context}"
        raise BadInput(what, hint="shorten the prompt")
    unknown = sorted(set(prompt) - set(tokenizer.decode(found)))
    if unknown and "\ufffd" in tokenizer.decode(found):
        shown = " ".join(repr(each) for each in unknown[:8])
        what = f"the model's tokenizer does not know {shown}"
        raise BadInput(what, hint="leave it out: no such character was trained on")
    return found
