"""Worker: greedy text by transformers, which reads the GGUF file itself, in fp32."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    """Write all prompts, one at a time; last line JSON."""
    task = json.loads(Path(sys.argv[1]).read_text())
    path = Path(task["model"])
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    texts = []
    for number, prompt in enumerate(task["prompts"], 1):
        texts.append(written(model, prompt, task["tokens"]))
        print(f"reference: {number} of {len(task['prompts'])}", file=sys.stderr, flush=True)
    print(json.dumps({"by": f"transformers {transformers.__version__}", "texts": texts}))


@torch.no_grad()
def written(model: transformers.PreTrainedModel, prompt: list[int], tokens: int) -> dict:
    """The tokens behind the prompt, and how far each was ahead of the next likely."""
    ids = torch.tensor([prompt])
    done = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    pairs = [each[0].topk(2).values.tolist() for each in done.logits]
    return {
        "tokens": done.sequences[0, len(prompt) :].tolist(),
        "gaps": [first - second for first, second in pairs],
    }


if __name__ == "__main__":
    main()
