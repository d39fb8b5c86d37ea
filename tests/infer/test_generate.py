from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.data.tokenizers import Tokenizer
from narrows.infer import loading as module
from narrows.infer.generate import generate
from narrows.infer.loading import Generator, load
from narrows.infer.sample import sample
from narrows.infer.sampling import Sampling
from narrows.kernels.load import available
from narrows.kernels.load import load as load_kernels
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput

from .conftest import CONTEXT, MakeRun, built, plan, spec

PROMPT = "ROMEO: what light"
GREEDY = Sampling(temperature=0.0)


def written(generator: Generator, prompt: str = PROMPT, **options: object) -> str:
    return "".join(generate(generator, prompt, **options))  # type: ignore[arg-type]


def test_text_comes_in_pieces(generator: Generator) -> None:
    generation = generate(generator, PROMPT, tokens=30)
    pieces = list(generation)
    assert len(pieces) > 5 and all(pieces)
    assert "".join(pieces) == written(generator, tokens=30)
    assert generation.tokens == 30 and generation.finish == "length"


def test_the_first_piece_comes_before_the_rest_is_computed(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    before = Transformer.hidden

    def counted(model: Transformer, tokens_BT: Tensor, *rest: object) -> Tensor:
        read.append(tokens_BT.shape[1])
        return before(model, tokens_BT, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "hidden", counted)
    pieces = iter(generate(generator, PROMPT, tokens=200))
    assert read == []
    next(pieces)
    assert len(read) < 8 and read[0] == len(generator.tokenizer.encode(PROMPT))
    assert set(read[1:]) <= {1}


def test_pausing_between_pieces_leaves_torch_as_it_was(generator: Generator) -> None:
    for _ in generate(generator, PROMPT, tokens=5):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_equal_seeds_write_equal_texts(generator: Generator) -> None:
    first = written(generator, sampling=Sampling(seed=1), tokens=40)
    torch.manual_seed(99)
    assert written(generator, sampling=Sampling(seed=1), tokens=40) == first
    assert written(generator, sampling=Sampling(seed=2), tokens=40) != first


def test_a_longer_text_begins_with_the_shorter(generator: Generator) -> None:
    assert written(generator, tokens=60).startswith(written(generator, tokens=20))


def test_greedy_text_is_the_likeliest_token_each_time(generator: Generator) -> None:
    tokens = generator.tokenizer.encode(PROMPT)
    for _ in range(20):
        logits_V = generator.model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits_V[: generator.tokenizer.vocabulary].argmax()))
    shown = written(generator, tokens=20, sampling=GREEDY)
    assert PROMPT + shown == generator.tokenizer.decode(tokens)


def wanting(tokenizer: Tokenizer, token: int) -> Generator:
    """A model that, whatever it reads, thinks `token` likeliest: the last norm's bias decides."""
    model = built(spec("gpt2"))
    model.norm.weight.zero_()
    model.norm.bias.copy_(model.tokens.weight[token])
    return Generator(model, tokenizer)


def test_what_the_prompt_says_is_penalised_too(bpe: Tokenizer) -> None:
    token = bpe.encode(PROMPT)[0]
    stubborn = wanting(bpe, token)
    assert written(stubborn, tokens=1, sampling=GREEDY) == bpe.decode([token])
    penalised = Sampling(temperature=0.0, repetition_penalty=1000.0)
    assert written(stubborn, tokens=1, sampling=penalised) != bpe.decode([token])


def test_text_joins_the_prompt_as_the_tokenizer_joins_them(spaced: Tokenizer) -> None:
    prompt, token = "the sun is", spaced.encode("the")[0]
    whole = spaced.decode([*spaced.encode(prompt), token, token])
    assert spaced.decode([token, token]) != whole[len(prompt) :]
    assert prompt + written(wanting(spaced, token), prompt, tokens=2, sampling=GREEDY) == whole


def test_text_goes_on_beyond_the_context(generator: Generator) -> None:
    generation = generate(generator, PROMPT, tokens=3 * CONTEXT)
    assert "".join(generation) and generation.tokens == 3 * CONTEXT


def test_an_empty_prompt_starts_a_document(generator: Generator) -> None:
    end = generator.tokenizer.end_of_document
    assert generate(generator, "").prompt == (end,)
    logits_V = generator.model(torch.tensor([[end]]))[0, -1]
    first = int(logits_V[: generator.tokenizer.vocabulary].argmax())
    assert written(generator, "", tokens=1, sampling=GREEDY) == generator.tokenizer.decode([first])


def test_the_end_of_a_document_ends_the_text(bpe: Tokenizer) -> None:
    ending = wanting(bpe, bpe.end_of_document)
    generation = generate(ending, PROMPT, tokens=50, sampling=GREEDY)
    assert list(generation) == []
    assert generation.tokens == 0 and generation.finish == "end"


def test_a_stop_string_ends_the_text(generator: Generator) -> None:
    whole = written(generator, tokens=60)
    stop = whole[20:24]
    generation = generate(generator, PROMPT, tokens=60, stop=["never said, surely", stop])
    assert "".join(generation) == whole[: whole.index(stop)]
    assert generation.finish == "stop" and generation.tokens < 60


def test_a_stop_string_half_said_at_the_end_is_shown(generator: Generator) -> None:
    whole = written(generator, tokens=12)
    assert written(generator, tokens=12, stop=[whole[-2:] + "never said"]) == whole


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(
    generator: Generator,
) -> None:
    prompt = "sun " * 200
    count = len(generator.tokenizer.encode(prompt))
    with pytest.raises(BadInput, match=f"{count} tokens long, the model reads {CONTEXT}"):
        generate(generator, prompt)


def test_a_prompt_as_long_as_the_context_is_read(generator: Generator) -> None:
    tokens = generator.tokenizer.encode("the sun " * CONTEXT)[:CONTEXT]
    prompt = generator.tokenizer.decode(tokens)
    assert len(generator.tokenizer.encode(prompt)) == CONTEXT
    generation = generate(generator, prompt, tokens=10)
    assert list(generation) and generation.tokens == 10


def test_characters_that_the_tokenizer_lacks_are_named(character: Tokenizer) -> None:
    model = built(spec(vocabulary=character.vocabulary))
    with pytest.raises(BadInput, match="does not know 'Ж' 'ж'") as caught:
        generate(Generator(model, character), "Romeo Жж")
    assert caught.value.hint


def test_special_tokens_written_out_are_text(generator: Generator) -> None:
    prompt = generate(generator, "a<|endoftext|>b").prompt
    assert generator.tokenizer.end_of_document not in prompt


@pytest.mark.parametrize("tokens", [0, -5])
def test_at_least_one_token_must_be_asked_for(generator: Generator, tokens: int) -> None:
    with pytest.raises(BadInput, match=f"tokens is {tokens}"):
        generate(generator, PROMPT, tokens=tokens)


def test_a_sample_while_training_is_the_text_of_the_same_seed(generator: Generator) -> None:
    found = sample(generator.model, generator.tokenizer, PROMPT, 25, 7)
    assert found == written(generator, tokens=25, sampling=Sampling(seed=7))


@pytest.mark.parametrize("kernels", available())
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_still_trains_after_a_sample(bpe: Tokenizer, kernels: str, kind: str) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if kernels == "native" else torch.float32
    model = Transformer(spec(kind), load_kernels(kernels)).to(dtype)  # type: ignore[arg-type]
    initialise(model, 0)
    sample(model.eval(), bpe, "", 4, 0)
    tokens_BT = torch.randint(model.spec.vocabulary, (2, 17))
    loss = model.train().loss(tokens_BT[:, :-1], tokens_BT[:, 1:], chunk=8, scale=1 / 32)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_run_is_loaded_and_written_from(make_run: MakeRun, bpe: Tokenizer) -> None:
    said: list[str] = []
    generator = load(make_run(), talk=said.append)
    assert not generator.model.training
    expected = Generator(built(spec(), seed=10), bpe)
    assert written(generator, sampling=GREEDY) == written(expected, sampling=GREEDY)
    assert len(said) == 1 and "step-00000010 (step 10), fp32, " in said[0]


@pytest.mark.parametrize(
    ("checkpoint", "best", "step"),
    [(None, 10, 10), (None, None, 30), ("latest", 10, 30), ("step-00000020", 10, 20)],
)
def test_the_checkpoint_asked_for_is_used(
    make_run: MakeRun, checkpoint: str | None, best: int | None, step: int
) -> None:
    generator = load(make_run(steps=(10, 20, 30), best=best), checkpoint=checkpoint)
    expected = built(spec(), seed=step)
    assert torch.equal(generator.model.tokens.weight, expected.tokens.weight)


@pytest.mark.parametrize("unit", [True, False])
def test_bf16_weights_are_widened_where_no_unit_multiplies_them(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, unit: bool
) -> None:
    monkeypatch.setattr(module, "has_bf16_unit", lambda found: unit)
    said: list[str] = []
    generator = load(make_run(precision="bf16"), talk=said.append)
    expected = built(spec(), seed=10).bfloat16().tokens.weight
    assert generator.model.head_VD.dtype == (torch.bfloat16 if unit else torch.float32)
    assert torch.equal(generator.model.head_VD, expected.to(generator.model.head_VD.dtype))
    assert ("bf16" if unit else "fp32") in said[0]
    assert written(generator, tokens=10)


def test_threads_are_the_machine_s_unless_the_user_says(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(3)
    load(run)
    assert torch.get_num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    here = module.processor()
    load(run)
    assert torch.get_num_threads() == max(1, here.cores_allowed // here.threads_per_core)


def mistake(run: Path, checkpoint: str | None = None) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load(run, checkpoint=checkpoint)
    assert caught.value.hint
    return caught.value


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "is not a run folder" in mistake(tmp_path).what
    assert "does not exist" in mistake(tmp_path / "absent").what


def test_a_run_without_a_tokenizer_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    (run / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer.json" in mistake(run).what
    (run / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in mistake(run).what


def test_a_tokenizer_of_another_model_is_refused(make_run: MakeRun, bpe: Tokenizer) -> None:
    run = make_run(shape=spec(vocabulary=bpe.vocabulary - 1))
    found = mistake(run)
    assert f"{bpe.vocabulary} tokens" in found.what and str(bpe.vocabulary - 1) in found.what


def test_weights_of_another_model_are_refused(make_run: MakeRun) -> None:
    from narrows.spec.record import save

    run = make_run()
    save(plan(spec("gpt2")), run / "plan.toml")
    found = mistake(run)
    assert "does not hold the weights of the model in plan.toml" in found.what
    assert found.causes


def test_a_model_that_sees_what_follows_is_refused(make_run: MakeRun) -> None:
    run = make_run(shape=msgspec.structs.replace(spec(), causal=False))
    found = mistake(run)
    assert "no causal decoder" in found.what and f"narrows serve {run} " in str(found.hint)


def test_a_model_that_tells_classes_is_refused_with_what_asks_it(make_run: MakeRun) -> None:
    run = make_run(shape=msgspec.structs.replace(spec(), classes=3))
    found = mistake(run)
    assert "tells classes" in found.what and f"narrows generate {run} " in str(found.hint)


def test_a_run_without_a_checkpoint_is_refused(make_run: MakeRun) -> None:
    found = mistake(make_run(steps=()))
    assert "has no checkpoint yet" in found.what and "--resume" in str(found.hint)


def test_the_generator_needs_no_other_file_of_the_run(make_run: MakeRun) -> None:
    run = make_run()
    kept = {"plan.toml", "tokenizer.json", "checkpoints"}
    assert {path.name for path in run.iterdir()} == kept
    state = json.loads((run / "checkpoints/step-00000010/state.json").read_text())
    assert state["step"] == 10
    assert written(load(run), tokens=3)
