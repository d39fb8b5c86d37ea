"""A text to look at while a model trains."""

from __future__ import annotations

from narrows.data.tokenizers import Tokenizer
from narrows.infer.generate import generate
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling
from narrows.model.transformer import Transformer


def sample(model: Transformer, tokenizer: Tokenizer, prompt: str, tokens: int, seed: int) -> str:
    """So many tokens behind the prompt; the model is to be in evaluation mode."""
    sampling = Sampling(seed=seed)
    generation = generate(Generator(model, tokenizer), prompt, tokens=tokens, sampling=sampling)
    return "".join(generation)
