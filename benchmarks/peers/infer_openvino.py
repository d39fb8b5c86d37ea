"""Worker: OpenVINO GenAI, greedy; one stream, which is what its pipeline takes of a GGUF file."""

from __future__ import annotations

import itertools
import time

import numpy
import openvino
import openvino_genai
from infer_worker import Task, rate, report


def main() -> None:
    """Read the prompt, then write."""
    task = Task()
    pipeline = openvino_genai.LLMPipeline(
        str(task.model), "CPU", INFERENCE_NUM_THREADS=task.threads
    )
    short = openvino.Tensor(numpy.array([task.prompt[:16]], dtype=numpy.int64))
    turns = itertools.count(100)

    def whole() -> openvino.Tensor:
        """Another first token each time: what it read before it does not read again."""
        tokens = [next(turns), *task.prompt[1:]]
        return openvino.Tensor(numpy.array([tokens], dtype=numpy.int64))

    def write(tokens: openvino.Tensor, count: int) -> None:
        pipeline.generate(tokens, max_new_tokens=count, do_sample=False, ignore_eos=True)

    write(short, 1)
    start_seconds = time.perf_counter() - task.began
    prefill = rate(len(task.prompt), lambda: write(whole(), 1))
    first = 1.0 / rate(1, lambda: write(short, 1))
    all_ = 1.0 / rate(1, lambda: write(short, task.tokens + 1))
    report(
        task, start_seconds=start_seconds, version=openvino_genai.__version__, prefill=prefill,
        streams_1=task.tokens / (all_ - first),
    )  # fmt: skip


if __name__ == "__main__":
    main()
