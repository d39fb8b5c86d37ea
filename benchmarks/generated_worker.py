"""Answer random prompts with random weights; the last line says what it took, as JSON."""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.hardware.load import LoadWatch
from narrows.hardware.measure.run import go_first
from narrows.infer.sampling import Sampler, Sampling
from narrows.infer.torch_decoding import spoken
from narrows.kernels.allocator import keep_pages
from narrows.kernels.load import load as load_kernels
from narrows.kernels.meter import MemoryMeter
from narrows.model.transformer import Transformer
from narrows.spec.model import ModelSpec
from narrows.spec.record import load

_ROUNDS, _SECONDS = (3, 40), 3.5
_FIRSTS, _SECONDS_FIRSTS = 12, 3.0
_NOISE = 1 << 20
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    """Rounds of a prompt and its answer, preferred over other work as a probe is; one warms up."""
    spec, dtype = load(ModelSpec, sys.argv[1]), _DTYPES[sys.argv[2]]
    sequences, prompt, tokens, threads = map(int, sys.argv[3:])
    torch.set_num_threads(threads)
    go_first()
    keep_pages()
    tokens_BT = torch.randint(spec.vocabulary, (sequences, prompt))
    noise = (0.02 * torch.randn(_NOISE)).to(dtype)
    memory = MemoryMeter("cpu")
    model = _model(spec, noise)
    answering = Answering(model, tokens_BT, tokens)
    answering.round()
    peak = memory.peak()
    firsts: list[float] = []
    rest: list[float] = []
    began, watch = time.perf_counter(), LoadWatch()
    while len(firsts) < _ROUNDS[0] or (
        time.perf_counter() - began < _SECONDS and len(firsts) < _ROUNDS[1]
    ):
        first, each = answering.round()
        firsts.append(first)
        rest += each
    # Few of long rounds are too few to tell what a prompt takes.
    while len(firsts) < _FIRSTS and time.perf_counter() - began < _SECONDS + _SECONDS_FIRSTS:
        firsts.append(answering.first())
    found = {
        "first_token_s": _quiet(firsts), "per_token_s": _quiet(rest), "memory_bytes": peak,
        "other_load": watch.cores(),
    }  # fmt: skip
    print(json.dumps(found))


def _quiet(seconds: list[float]) -> float:
    """The lower quartile: of shared cores, what they do while others leave them alone."""
    return sorted(seconds)[len(seconds) // 4]


def _model(spec: ModelSpec, noise: Tensor) -> Transformer:
    """Made as `narrows generate` makes it; its random weights are drawn before and copied."""
    with torch.device("meta"):
        model = Transformer(spec, load_kernels("torch"))
    weights = {}
    for name, parameter in model.named_parameters():
        weights[name] = torch.empty(parameter.shape, dtype=noise.dtype)
        for piece in weights[name].view(-1).split(len(noise)):
            piece.copy_(noise[: len(piece)])
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


class Answering:
    """One cache for all rounds, each of which writes it from its start."""

    def __init__(self, model: Transformer, prompts_BT: Tensor, tokens: int) -> None:
        self.model, self.prompts_BT, self.tokens = model, prompts_BT, tokens
        B, T = prompts_BT.shape
        self.caches = model.caches(B, T + tokens)
        self.samplers = [Sampler(Sampling(seed=seed), model.spec.vocabulary) for seed in range(B)]

    def round(self) -> tuple[float, list[float]]:
        """Seconds of the first token and of each other one."""
        fresh_BT, start, taken = self.prompts_BT, 0, []
        for _ in range(self.tokens):
            began = time.perf_counter()
            chosen = self._read(fresh_BT, start)
            taken.append(time.perf_counter() - began)
            start += fresh_BT.shape[1]
            fresh_BT = torch.tensor(chosen)[:, None]
        return taken[0], taken[1:]

    def first(self) -> float:
        """Seconds of the first token alone."""
        began = time.perf_counter()
        self._read(self.prompts_BT, 0)
        return time.perf_counter() - began

    @torch.inference_mode()
    def _read(self, tokens_BT: Tensor, start: int) -> list[int]:
        hidden_BTD = self.model.hidden(tokens_BT, self.caches, start)
        logits_BV = F.linear(hidden_BTD[:, -1], self.model.head_VD)
        return [
            sampler.choose(logits_V)
            for sampler, logits_V in zip(self.samplers, spoken(logits_BV), strict=True)
        ]


if __name__ == "__main__":
    main()
