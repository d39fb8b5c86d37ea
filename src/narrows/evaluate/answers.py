"""Answers to rows: written and held against what was expected, or the likeliest of choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from narrows.data.template import THOUGHT, Options, unthinking
from narrows.evaluate import classification, overlap
from narrows.evaluate.assessment import Found, Item, Kind, Manner, Rows, metrics
from narrows.evaluate.documents import begin
from narrows.evaluate.likelihood import Reader, Reading
from narrows.evaluate.passes import Passes
from narrows.evaluate.progress import Progress, Talk
from narrows.evaluate.questions import Question, questions
from narrows.evaluate.writing import Manuscript, Prompt, write
from narrows.infer.chat import rendered
from narrows.infer.generate import tokens_of
from narrows.infer.loading import Generator
from narrows.infer.reasoning import parted, thinking_of
from narrows.spec.errors import BadInput

KINDS = (
    Kind(name="exact match", form="mean", better="higher"),
    Kind(name="relaxed match", form="mean", better="higher"),
    Kind(name="BLEU", form="bleu", better="higher"),
    Kind(name="chrF", form="chrf", better="higher"),
    Kind(name="ROUGE-1", form="mean", better="higher"),
    Kind(name="ROUGE-2", form="mean", better="higher"),
    Kind(name="ROUGE-L", form="mean", better="higher"),
    Kind(name="accuracy", form="mean", better="higher"),
    Kind(name="accuracy by length", form="mean", better="higher"),
    Kind(name="macro F1", form="f1_macro", better="higher"),
    Kind(name="Brier score", form="mean", better="lower"),
    Kind(name="calibration error", form="calibration", better="lower"),
)
_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
Sums = dict[str, tuple[float, ...]]


class _Asked(NamedTuple):
    """The tokens before an answer, and whether they end within a thought (None: there are none)."""

    tokens: list[int]
    thinking: bool | None = None


def answer(
    generator: Generator, data: Rows, manner: Manner, passes: Passes, talk: Talk
) -> Found:  # fmt: skip
    """Every row answered; raises BadInput, before any is, where one cannot be asked."""
    asked, sha256 = questions(Path(data.file).expanduser(), manner.limit)
    choosing = [row for row in asked if row.choices]
    writing = [row for row in asked if not row.choices]
    prompts = {row.number: _prompt(generator, row, data.options) for row in asked}
    readings = {
        row.number: [
            _reading(generator, row, prompts[row.number].tokens, choice, manner)
            for choice in row.choices
        ]
        for row in choosing
    }
    context = manner.context or generator.model.spec.context
    _refuse_long(asked, prompts, readings, manner.tokens, context)
    items, notes = list[Item](), list[str]()
    tokens = sum(len(each.tokens) for row in readings.values() for each in row)
    if choosing:
        reader = Reader(generator.model, manner.batch, passes=passes)
        items += _chosen(reader, choosing, readings, talk)
    if writing:
        how = Manuscript(manner.tokens, manner.sampling, manner.stop, manner.batch)
        given = [Prompt(prompts[row.number].tokens, row.number) for row in writing]
        texts = write(generator, given, how, passes, talk)
        tokens += sum(len(each.tokens) for each in given) + sum(each.tokens for each in texts)
        said = [
            parted(prompts[row.number].thinking, each.text).text
            for row, each in zip(writing, texts, strict=True)
        ]
        writing = [_silent(row, prompts[row.number].thinking) for row in writing]
        held, cut = _held(writing, said)
        items += held
        notes.append(f"BLEU finds words by sacrebleu's {cut}")
        notes += _thoughts([prompts[row.number].thinking for row in writing], said)
    if generator.template is not None and any(row.prompt is not None for row in asked):
        notes.append("prompts are read as they are; give messages to ask as in training")
    items.sort(key=lambda item: item.number)
    found = metrics(KINDS, tuple(items), manner.seed)
    return Found(tuple(items), found, sha256, tokens, notes=tuple(notes))


def _silent(row: Question, thinking: bool | None) -> Question:
    """The row without a thought before its answer, which no other is held with either."""
    begun = None if thinking is None else THOUGHT[1] in row.answer
    return row._replace(answer=parted(begun, row.answer).text)


def _thoughts(thinking: Sequence[bool | None], said: Sequence[str]) -> list[str]:
    """What is to be known of answers that begin with a thought."""
    if all(each is None for each in thinking):
        return []
    silent = sum(not text for text in said)
    over = f"; {silent} of {len(said)} said nothing behind it (--tokens)" if silent else ""
    return [f"answers are held without the thought that they begin with{over}"]


def _prompt(generator: Generator, row: Question, options: Options) -> _Asked:
    """What stands before the answer, a conversation by the model's own template."""
    try:
        if row.prompt is not None:
            return _Asked(tokens_of(row.prompt, generator))
        if generator.template is None:
            # As training reads a prompt and its answer for a model without a template.
            if [each.get("role") for each in row.said.messages] == ["user"]:
                return _Asked(tokens_of(str(row.said.messages[0]["content"]), generator))
            raise BadInput(
                "there are messages, and the model has no chat template",
                hint="give prompts, or a model that was tuned to converse",
            )
        said = row.said._replace(options={**options, **row.said.options})
        text = rendered(generator, said)
        if row.choices:
            text = unthinking(text)
        tokens = generator.tokenizer.encode(text, special=True)
        return _Asked(tokens, thinking_of(generator.template, text))
    except BadInput as error:
        raise BadInput(f"{row.place}: {error.what}", hint=error.hint) from None


def _reading(
    generator: Generator, row: Question, prompt: Sequence[int], choice: str, manner: Manner
) -> Reading:
    """The prompt with the choice behind it. Both are cut into tokens as one text, white space at
    the end of the prompt with the choice, as the harness does.
    """
    tokenizer = generator.tokenizer
    if row.prompt is None:
        return Reading([*prompt, *tokenizer.encode(choice)], len(prompt))
    kept = row.prompt.rstrip()
    seam = row.prompt[len(kept) :] or ("" if choice[:1].isspace() else manner.joint)
    if not kept:
        before = begin(generator)
        return Reading([*before, *tokenizer.encode(seam + choice)], len(before))
    before = [*tokenizer.begin, *tokenizer.encode(kept)]
    whole = [*tokenizer.begin, *tokenizer.encode(kept + seam + choice)]
    return Reading(whole, min(len(before), len(whole) - 1))


def _refuse_long(
    asked: Sequence[Question], prompts: Mapping[int, _Asked],
    readings: Mapping[int, Sequence[Reading]], tokens: int, context: int,
) -> None:  # fmt: skip
    """Raises BadInput for the first row that the model cannot read whole with its answer."""
    for row in asked:
        if row.choices:
            needed, what = max(len(each.tokens) for each in readings[row.number]) - 1, "a choice"
        else:
            needed = len(prompts[row.number].tokens) + tokens
            what = f"{tokens} tokens of answer"
        if needed > context:
            raise BadInput(
                f"{row.place} is too long: {needed} tokens with {what}, and the model reads "
                f"{context}",
                hint="shorten the row, or the answer (--tokens); nothing is cut in silence",
            )


def _chosen(
    reader: Reader, asked: Sequence[Question], readings: Mapping[int, Sequence[Reading]],
    talk: Talk,
) -> list[Item]:  # fmt: skip
    """Each row's choices by their likelihood."""
    together = [each for row in asked for each in readings[row.number]]
    reader.announce(together, f"{len(together):,} choices", talk)
    progress = Progress(talk, "choices", len(together))
    found = reader.read(together, lambda done: progress.add(len(done)))
    alike = len({frozenset(row.choices) for row in asked}) == 1
    items, start = [], 0
    for row in asked:
        nats_C = np.array([each.nats for each in found[start : start + len(row.choices)]])
        items.append(_item_of_choice(row, nats_C, alike))
        start += len(row.choices)
    return items


def _item_of_choice(row: Question, nats_C: np.ndarray, alike: bool) -> Item:
    lengths_C = np.array([len(choice) for choice in row.choices])
    label = np.array([row.choices.index(row.answer)])
    likeliest = int(nats_C.argmin())
    odds_C = np.exp(nats_C.min() - nats_C)
    odds_1C = (odds_C / odds_C.sum())[None]
    right = float(likeliest == label[0])
    bins = classification.binned(odds_1C.max(-1), np.array([right]))[0]
    added: Sums = {
        "accuracy": (right, 1.0),
        "accuracy by length": (float((nats_C / lengths_C).argmin() == label[0]), 1.0),
        "Brier score": (float(classification.brier_of_rows(label, odds_1C)[0]), 1.0),
        "calibration error": tuple(map(float, bins)),
    }
    if alike:
        names = sorted(row.choices)
        truth = np.array([names.index(row.answer)])
        said = np.array([names.index(row.choices[likeliest])])
        pairs_CC = classification.confusion(truth, said, len(names))
        added["macro F1"] = tuple(map(float, pairs_CC.ravel()))
    return Item(number=row.number, sums=added, answer=row.choices[likeliest])


def _held(
    asked: Sequence[Question], said: Sequence[str]
) -> tuple[list[Item], overlap.Cut]:  # fmt: skip
    """What was written held against what was expected, and how BLEU finds words."""
    cut = overlap.cut_for([row.answer for row in asked])
    items = [
        Item(number=row.number, sums=_overlaps(row.answer, text, cut), answer=text)
        for row, text in zip(asked, said, strict=True)
    ]
    return items, cut


def _overlaps(expected: str, text: str, cut: overlap.Cut) -> Sums:
    parts = overlap.rouge(expected, text)
    return {
        "exact match": (float(overlap.exact(expected, text)), 1.0),
        "relaxed match": (float(overlap.relaxed(expected, text)), 1.0),
        "BLEU": tuple(overlap.bleu_sums(expected, text.strip(), cut)),
        "chrF": tuple(overlap.chrf_sums(expected, text.strip())),
        **{_ROUGE[name]: (share, 1.0) for name, share in parts.items()},
    }
