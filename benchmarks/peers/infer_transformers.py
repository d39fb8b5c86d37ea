"""Worker: transformers, greedy, weights made whole: bf16 where the processor multiplies it."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import transformers
from infer_worker import Task, rate, report


def main() -> None:
    """Read the prompt, then write with each number of streams."""
    task = Task()
    torch.set_num_threads(task.threads)
    flags = Path("/proc/cpuinfo").read_text()
    dtype = torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(
        task.model.parent, gguf_file=task.model.name, dtype=dtype
    )
    run = Run(model.eval())
    run.read(torch.tensor([task.prompt[:4]]))
    start_seconds = time.perf_counter() - task.began
    prompt = torch.tensor([task.prompt])

    def prefill() -> None:
        run.forget()
        run.read(prompt)

    figures = {"prefill": rate(len(task.prompt), prefill)}
    for count in task.streams:
        figures[f"streams_{count}"] = streams(run, task, count)
    report(task, start_seconds=start_seconds, version=transformers.__version__, **figures)


class Run:
    """A model and what it has read of some texts."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.model = model
        self.forget()

    def forget(self) -> None:
        """All of it."""
        self.cache = transformers.DynamicCache()

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """The likeliest token after each row [B,T], as a column [B,1]."""
        found = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1].argmax(-1, keepdim=True)


def streams(run: Run, task: Task, count: int) -> float:
    """Tokens a second of so many texts together."""
    beginnings = torch.tensor(task.beginnings(count))

    def write() -> None:
        run.forget()
        last = run.read(beginnings)
        for _ in range(task.tokens):
            last = run.read(last)

    return rate(count * task.tokens, write)


if __name__ == "__main__":
    main()
