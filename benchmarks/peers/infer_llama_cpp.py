"""Worker: llama.cpp by its own C interface, greedy."""

from __future__ import annotations

import time

import llama_cpp as library
import numpy
from infer_worker import Task, rate, report


def main() -> None:
    """Read the prompt, then write with each number of streams."""
    task = Task()
    library.llama_backend_init()
    library.llama_log_set(_SILENT, None)
    model = library.llama_model_load_from_file(
        str(task.model).encode(), library.llama_model_default_params()
    )
    asked = library.llama_context_default_params()
    most = max(task.streams)
    asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max = 256 * most + 1024, 512, 512, most
    asked.n_threads = asked.n_threads_batch = task.threads
    asked.kv_unified = True
    run = Run(library.llama_init_from_model(model, asked), model)
    run.read([(0, 0, task.prompt[:4])])
    start_seconds = time.perf_counter() - task.began

    def prefill() -> None:
        run.forget(0)
        run.read([(0, 0, task.prompt)])

    figures = {"prefill": rate(len(task.prompt), prefill)}
    for count in task.streams:
        figures[f"streams_{count}"] = streams(run, task, count)
    report(task, start_seconds=start_seconds, version=library.__version__, **figures)


@library.llama_log_callback
def _SILENT(level, text, data):  # noqa: ANN001, ANN202, N802
    return None


class Run:
    """A context, and batches of tokens for it."""

    def __init__(self, context: object, model: object) -> None:
        self.context = context
        vocabulary = library.llama_model_get_vocab(model)
        self.vocabulary = library.llama_vocab_n_tokens(vocabulary)
        self.batch = library.llama_batch_init(512, 0, 1)

    def forget(self, start: int) -> None:
        """Positions from `start` on, of all sequences."""
        memory = library.llama_get_memory(self.context)
        library.llama_memory_seq_rm(memory, -1, start, -1)

    def read(self, pieces: list[tuple[int, int, list[int]]]) -> list[int]:
        """Tokens of sequences from a position on; the likeliest after each piece."""
        at, ends = 0, []
        for sequence, start, tokens in pieces:
            for offset, token in enumerate(tokens):
                last = offset == len(tokens) - 1
                self.batch.token[at], self.batch.pos[at] = token, start + offset
                self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
                self.batch.logits[at] = last
                ends += [at] if last else []
                at += 1
        self.batch.n_tokens = at
        if library.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        rows = (library.llama_get_logits_ith(self.context, end) for end in ends)
        return [
            int(numpy.ctypeslib.as_array(row, shape=(self.vocabulary,)).argmax()) for row in rows
        ]


def streams(run: Run, task: Task, count: int) -> float:
    """Tokens a second of so many texts together."""
    run.forget(0)
    beginnings = task.beginnings(count)
    last = [run.read([(i, 0, each)])[0] for i, each in enumerate(beginnings)]

    def write() -> None:
        nonlocal last
        run.forget(16)
        for step in range(task.tokens):
            last = run.read([(i, 16 + step, [token]) for i, token in enumerate(last)])

    return rate(count * task.tokens, write)


if __name__ == "__main__":
    main()
