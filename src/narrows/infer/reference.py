"""Others' readers of what we write: transformers of a folder, the `gguf` package of a GGUF file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from narrows.data.samples import CONVERSATION, TEXTS
from narrows.infer.source import Source
from narrows.model import gguf as own
from narrows.spec.errors import BadInput

INSTALL = "pip install 'narrows[export]'"
Talk = Callable[[str], None]


class Seen(NamedTuple):
    """What a reader makes of a model: the tokens of texts, a rendered conversation, the tokens at
    which texts end, and logits and loss of a passage; None of what it does not read. `wrong`: the
    first thing that the reader itself finds.
    """

    by: str
    tokens: dict[str, list[int]]
    rendered: str | None = None
    ends: frozenset[int] | None = None
    logits_TX: Tensor | None = None
    loss: float | None = None
    wrong: str | None = None


def refuse_absent(*, of_file: bool, needed: bool, talk: Talk) -> None:
    """Say that the format's reference reader is not installed; BadInput where it is needed."""
    package = "gguf" if of_file else "transformers"
    if importlib.util.find_spec(package) is not None:
        return
    if needed:
        raise BadInput(f"{package} is not installed, to read back what is written", hint=INSTALL)
    talk(f"{package} is not installed: only narrows' own reader compares ({INSTALL})")


def seen(written: Path, again: Source, ids: list[int]) -> Seen | None:
    """By the reference reader of the format, None where it is not installed. `again` is what our
    own reader made of it.
    """
    package = "transformers" if written.is_dir() else "gguf"
    if importlib.util.find_spec(package) is None:
        return None
    by = f"{package} {importlib.metadata.version(package)}"
    if package == "gguf":
        return Seen(by, {}, wrong=_by_gguf(written))
    return _by_transformers(by, written, again, ids)


def _by_gguf(path: Path) -> str | None:
    """The first fact or tensor that the package reads otherwise than we do."""
    import gguf
    import numpy as np

    theirs, ours = gguf.GGUFReader(path), own.opened(path)
    found = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    if sorted(found) != sorted(ours.facts):
        return f"the facts are {sorted(found)}"
    for name, field in found.items():
        if field.contents() != ours.facts[name]:
            return f"{name} is {str(field.contents())[:80]}"
    if [each.name for each in theirs.tensors] != ours.names():
        return "there are other tensors"
    for each in theirs.tensors:
        values = gguf.quants.dequantize(each.data, each.tensor_type).astype(np.float32)
        mine = torch.empty(ours.shape(each.name))
        ours.read(each.name, mine)
        if not torch.equal(torch.from_numpy(values.reshape(mine.shape)), mine):
            return f"{each.name} has other values"
    return None


@torch.no_grad()
def _by_transformers(by: str, folder: Path, again: Source, ids: list[int]) -> Seen:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    spec, words = again.spec, again.words
    kind = "ForSeq2SeqLM" if spec.encoder_layers else "ForCausalLM" if spec.writes else ""
    kind = "ForMaskedLM" if spec.head_transform else kind
    kind = "ForSequenceClassification" if spec.classes else kind
    model, told = getattr(transformers, f"AutoModel{kind}").from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    tokens_BT = torch.tensor([ids])
    more = {"decoder_input_ids": tokens_BT} if spec.encoder_layers else {}
    model, wrong = model.eval(), _unloaded(told, again)
    if spec.classes:
        found = torch.cat([model(input_ids=each).logits for each in texts_of(tokens_BT)])
        wrong = wrong or _labelled(model.config, again.labels or ())
    else:
        given = model(input_ids=tokens_BT, **more)
        found = (given.logits if kind else given.last_hidden_state)[0].float()
    if words is None:
        return Seen(by, {}, logits_TX=found, wrong=wrong)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = {text: list(tokenizer(text)["input_ids"]) for text in TEXTS}
    rendered = None
    if words.template is not None:
        rendered = _rendered(tokenizer)
        tokens[rendered] = list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    if spec.writes and not spec.classes:
        told = model.generation_config.eos_token_id
        wrong = wrong or _unended(told, tokenizer, words.tokenizer.ends)
    return Seen(by, tokens, rendered, logits_TX=found, wrong=wrong)


def texts_of(tokens_1T: Tensor) -> list[Tensor]:
    """Several texts to say something of: beginnings of the one [1,T]."""
    longest = tokens_1T.shape[1]
    lengths = sorted({max(1, longest // 4), max(1, longest // 2), longest})
    return [tokens_1T[:, :length] for length in lengths]


def _labelled(config: Any, labels: tuple[str, ...]) -> str | None:
    """Labels that transformers has otherwise."""
    found = tuple(config.id2label[number] for number in range(config.num_labels))
    if labels and found != labels:
        return f"the labels are {found}, and not {labels}"
    return None


def _unended(told: Any, tokenizer: Any, ends: frozenset[int]) -> str | None:
    """A token that transformers ends texts at and we do not, or none at all."""
    found = {told} if isinstance(told, int) else set(told or ())
    found |= {tokenizer.eos_token_id} - {None}
    if found and found <= ends:
        return None
    return f"texts end at {sorted(found)}, and not at {sorted(ends)}"


def _rendered(tokenizer: Any) -> str:
    """As `parity` renders it."""
    import jinja2

    def render(messages: Any) -> str:
        return str(tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        ))  # fmt: skip

    try:
        return render([dict(each) for each in CONVERSATION])
    except jinja2.TemplateError:
        return render([dict(CONVERSATION[0])])


def _unloaded(told: Any, again: Source) -> str | None:
    """A weight that the class wants or does not know."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [str(name) for name in told[what]]
        # Beside a head for masked tokens transformers has no pooler.
        pooled = again.spec.pooler and not again.spec.head_transform
        names = [name for name in names if pooled or "pooler" not in name]
        if names:
            return f"{what.replace('_', ' ')}: {', '.join(names[:3])}"
    return None
