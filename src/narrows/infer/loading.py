"""A model ready to write: one that was trained here, or one that its makers published.

load(path) → Generator
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from narrows.adapt.trained import whole
from narrows.data import published, tokenizers
from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.hardware.find import has_bf16_unit, processor, threads
from narrows.infer.checkpoint import locate, step, weights
from narrows.infer.decoding import Decoding
from narrows.infer.sampling import Sampler, Sampling
from narrows.infer.torch_core import TorchCore
from narrows.infer.torch_decoding import decoding_of
from narrows.kernels.allocator import keep_pages
from narrows.kernels.load import load as load_kernels
from narrows.model.folder import PLAN
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.plan.layouts import TrainingPrecision
from narrows.plan.words import count
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan
from narrows.spec.record import load as load_record

Talk = Callable[[str], None]
_DTYPES: dict[TrainingPrecision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Generator(NamedTuple):
    """A model ready to write, its tokenizer, and its chat template where it has one; and the same
    model `adapted`, by the names of its adapters.
    """

    model: Transformer
    tokenizer: Tokenizer
    template: Template | None = None
    adapted: Mapping[str | None, Transformer] = MappingProxyType({})
    cache: CachePrecision | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.model.spec

    @property
    def precision(self) -> TrainingPrecision:
        """What it computes in."""
        return "bf16" if self.model.head_VD.dtype == torch.bfloat16 else "fp32"

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def decoding(self, tokens_max: int) -> Decoding:
        """A sequence to begin, of at most so many tokens."""
        return decoding_of(self.model, tokens_max, self.cache)

    def core(self, slots: int, context: int) -> TorchCore:
        """What computes so many texts at once."""
        return TorchCore(self.model, slots, context, self.cache, self.adapted)


def load(
    path: Path, *, checkpoint: str | None = None, precision: TrainingPrecision | None = None,
    cache: CachePrecision | None = None, talk: Talk = lambda text: None,
) -> Generator:  # fmt: skip
    """The model of a run folder, by default its best checkpoint, else its latest; of a published
    model's folder; or of a GGUF file.

    Where no `precision` is asked for, a run's computes in the one that it was trained in, a
    published one in bf16; either in fp32, once widened, where the processor has no bf16 unit and
    would be slow without. Keys and values are kept in the same, or in int8. Raises BadInput where
    the path is none of these, has no checkpoint yet, or is damaged.
    """
    keep_pages()
    if (path / PLAN).is_file():
        generator, what = _trained(path, checkpoint, precision)
    else:
        if checkpoint is not None:
            raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
        generator, what = _published(path, precision)
    published.refuse_foreign(generator.tokenizer, generator.spec.vocabulary, path)
    if cache == "bf16" and generator.precision != cache:
        raise BadInput(
            f"torch computes {path} in {generator.precision}, and keeps keys and values so",
            hint="--precision bf16, --cache int8, or leave --cache out",
        )
    set_threads()
    many = torch.get_num_threads()
    _warm(generator.model)
    talk(f"{what}, {generator.precision}, {many} thread{'s'[: many > 1]}")
    return generator._replace(cache=cache)


def set_threads() -> None:
    """One for each core that is allowed, where the user says nothing else."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads())


def _trained(
    run: Path, checkpoint: str | None, precision: TrainingPrecision | None
) -> tuple[Generator, str]:
    plan = load_record(Plan, run / PLAN)
    if not plan.model.writes or plan.model.classes:
        raise no_writer(run, plan.model)
    words, found = words_of(run), locate(run, checkpoint)
    model = model_of(plan, found, precision)
    generator = Generator(model, words.tokenizer, words.template)
    return generator, f"{found} (step {step(found)})"


def words_of(run: Path) -> published.Words:
    """The tokenizer and template that a run was trained with."""
    if not (run / tokenizers.FILE).is_file():
        hint = "copy it from the prepared dataset: dataset.json names the folder"
        raise BadInput(f"{run} has no {tokenizers.FILE}", hint=hint)
    return published.of_folder(run)


def _published(path: Path, precision: TrainingPrecision | None) -> tuple[Generator, str]:
    original = opened(path)
    if not original.spec.writes:
        raise no_writer(path, original.spec)
    words = published.words(original.path, original.facts)
    dtype = _DTYPES[precision or ("bf16" if computes_bf16() else "fp32")]
    model = build(original, dtype, _device())
    size = f"{count(original.spec.parameters)} parameters"
    generator = Generator(_ready(model), words.tokenizer, words.template)
    return generator, f"{path}: {original.kind}, {size}"


def model_of(
    plan: Plan, checkpoint: Path, precision: TrainingPrecision | None = None
) -> Transformer:
    """The plan's model with the checkpoint's weights, on the device that computes here."""
    if not plan.learning.everything:
        model = whole(plan, weights(checkpoint))
        return _ready((model if computes_bf16() else model.float()).to(_device()))
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
    if precision is not None:
        model = model.to(_DTYPES[precision])
    elif not computes_bf16():
        model = model.float()
    return _ready(model.to(_device()))


def _ready(model: Transformer) -> Transformer:
    return model.eval().requires_grad_(False)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def computes_bf16() -> bool:
    """Whether what computes here is not slower in bf16 than in fp32."""
    return _device().type != "cpu" or has_bf16_unit(processor())


def _warm(model: Transformer) -> None:
    """Read every weight once, and let torch make what it makes at the first token."""
    decoding = decoding_of(model, 2)
    Sampler(Sampling(), model.spec.vocabulary).choose(decoding.read([0]))
    if model.spec.context > 1:
        decoding.read([0])


def no_writer(path: Path, spec: ModelSpec) -> BadInput:
    """Of a model that does not write; the hint is what it does instead."""
    where = shlex.quote(str(path))
    if spec.classes:
        what = f"the model of {path} tells classes or a number, and cannot go on with a text"
        return BadInput(what, hint=f'narrows generate {where} --prompt "..."   (what it says)')
    what = f"the model of {path} is no causal decoder, and cannot go on with a text"
    if spec.causal or spec.encoder_layers:
        return BadInput(what, hint="give a model that was trained on the next token")
    return BadInput(what, hint=f"narrows serve {where}   (vectors of texts)")
