"""Small models with random weights, tokenizers trained on a few lines, run folders of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.data import tokenizers, training
from narrows.data.tokenizers import Tokenizer
from narrows.infer.loading import Generator
from narrows.kernels.load import load
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.layout import Layout
from narrows.spec.ledger import Ledger, MemoryPeak, Total
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.optimizer import Optimizer
from narrows.spec.plan import Checkpointing, Evaluation, Plan, Provenance, Schedule
from narrows.spec.record import save
from narrows.train.checkpoint import Checkpoints, Contents, State

TEXT = """\
ROMEO: But, soft! what light through yonder window breaks? It is the east, and Juliet is the sun.
JULIET: O Romeo, Romeo! wherefore art thou Romeo? Deny thy father and refuse thy name.
Où est la forêt? Ça va être l'été à Zürich: 5 €, naïve café. 你好，世界！ 🎭🌞 こんにちは
"""
VOCABULARY = 300
CONTEXT = 48


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return Tokenizer(training.bpe(TEXT.splitlines(), VOCABULARY))


@pytest.fixture(scope="session")
def character() -> Tokenizer:
    counts = {each: TEXT.count(each) for each in set(TEXT)}
    return Tokenizer(training.character(counts, VOCABULARY))


@pytest.fixture(scope="session")
def spaced() -> Tokenizer:
    """One that writes a space before each word but the first, so that tokens alone lose it."""
    import tokenizers as library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = library.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<|endoftext|>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(["the sun is in the east and the moon is in the west"], trainer)
    return Tokenizer(made)


def spec(kind: str = "llama", *, context: int = CONTEXT, vocabulary: int = VOCABULARY) -> ModelSpec:
    shape = {
        "layers": 2, "width": 64, "heads": 4, "vocabulary": vocabulary, "context": context
    }  # fmt: skip
    return llama(**shape, kv_heads=2) if kind == "llama" else gpt2(**shape)


def encoder_spec() -> ModelSpec:
    """Like BERT's, that reads both ways."""
    return msgspec.structs.replace(spec("gpt2"), causal=False)


def built(shape: ModelSpec, *, seed: int = 0, deviation: float = 8.0) -> Transformer:
    """A model whose random weights are large enough for its choices to differ."""
    model = Transformer(shape, load("torch"))
    initialise(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(deviation)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def generator(bpe: Tokenizer) -> Generator:
    return Generator(built(spec(), seed=3), bpe)


@pytest.fixture(scope="session")
def roomy(bpe: Tokenizer) -> Generator:
    """The same with room for a conversation."""
    return Generator(built(spec(context=1500), seed=3), bpe)


def plan(shape: ModelSpec, precision: str = "fp32") -> Plan:
    layout = Layout(
        micro_batch=1, accumulation=1, precision=precision, recompute="none", compile=False,
        kernels="torch", threads=1, loss_chunk=64,
    )  # fmt: skip
    total = Total(
        steps=1, tokens=1.0, seconds=1.0, seconds_training=1.0, seconds_start=0.0,
        seconds_evaluating=0.0, seconds_saving=0.0, joules=1.0, dollars=0.0, carbon_grams=0.0,
    )  # fmt: skip
    predicted = Ledger(
        basis="predicted", energy_basis="estimated", rows=(), step_seconds=1.0, step_tokens=1.0,
        mfu=0.1, memory=MemoryPeak(peak=1.0), total=total,
    )  # fmt: skip
    return Plan(
        name="tiny", seed=0, model=shape, layout=layout,
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule(shape="constant", warmup_steps=0, decay_steps=0, floor=0.0),
        batch_sequences=1, context=shape.context, steps=1,
        evaluation=Evaluation(every=1, sequences=1), checkpoints=Checkpointing(every=1, keep=2),
        power_watts=1.0, peak_flop_per_s=1.0, why={}, bottleneck="compute", doubling=(),
        alternatives=(), predicted=predicted,
        made_from=Provenance(job="0", machine="0", machine_name="test", narrows="0"),
    )  # fmt: skip


MakeRun = Callable[..., Path]


def write_run(
    run: Path, tokenizer: Tokenizer, shape: ModelSpec, *, steps: tuple[int, ...] = (10,),
    best: int | None = 10, precision: str = "fp32",
) -> None:  # fmt: skip
    """A run folder as `train` makes it; checkpoints at `steps`, the best at `best`."""
    run.mkdir()
    save(plan(shape, precision), run / "plan.toml")
    tokenizer._tokenizer.save(str(run / tokenizers.FILE))
    checkpoints = Checkpoints(run / "checkpoints", keep=9, talk=print)
    for step in steps:
        model = built(shape, seed=step)
        model = model.bfloat16() if precision == "bf16" else model
        weights = {name: each.detach() for name, each in model.named_parameters()}
        state = State(step=step, tokens=0.0, elapsed_s=0.0, validation_loss=None, sha256={})
        checkpoints.save(Contents(weights, {}, {}), state, step == best)
        checkpoints.wait()


@pytest.fixture
def make_run(tmp_path: Path, bpe: Tokenizer) -> MakeRun:
    """Writes a run folder, of the small model unless told."""

    def make(
        *, shape: ModelSpec | None = None, tokenizer: Tokenizer = bpe, **options: Any
    ) -> Path:  # fmt: skip
        write_run(tmp_path / "run", tokenizer, shape or spec(), **options)
        return tmp_path / "run"

    return make
