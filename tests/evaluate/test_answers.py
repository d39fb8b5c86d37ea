from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from narrows.data.template import Template
from narrows.evaluate import writing
from narrows.evaluate.answers import answer
from narrows.evaluate.assessment import Found, Manner, Rows
from narrows.evaluate.passes import Passes
from narrows.evaluate.writing import Manuscript, Prompt, Written
from narrows.infer.generate import generate
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling
from narrows.spec.errors import BadInput
from tests.infer.conftest import CONTEXT, built, spec

GREEDY = Sampling(temperature=0.0)
PROMPTS = ("ROMEO:", "JULIET: O Romeo", "But,", "the sun is", "", "It is the east, and", "Deny")


def asked(generator: Generator, tmp_path: Path, *lines: object, **manner: object) -> Found:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    how = Manner(**manner)  # type: ignore[arg-type]
    return answer(generator, Rows(file=str(path)), how, Passes(generator.model), print)


def value(found: Found, name: str) -> float:
    (number,) = [each.value for each in found.metrics if each.name == name]
    return number


def write(generator: Generator, prompts: list[Prompt], how: Manuscript) -> list[Written]:
    return writing.write(generator, prompts, how, Passes(generator.model), lambda text: None)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_answers_are_those_of_generate(generator: Generator, batch: int) -> None:
    tokenizer = generator.tokenizer
    prompts = [
        Prompt(tokenizer.encode(text) or [tokenizer.end_of_document], number)
        for number, text in enumerate(PROMPTS)
    ]
    found = write(generator, prompts, Manuscript(12, GREEDY, ("OM",), batch))
    for text, ours in zip(PROMPTS, found, strict=True):
        theirs = generate(generator, text, tokens=12, sampling=GREEDY, stop=["OM"])
        assert ours.text == "".join(theirs)
        assert (ours.tokens, ours.finish) == (theirs.tokens, theirs.finish)


def test_drawn_answers_do_not_depend_on_the_batch(generator: Generator) -> None:
    prompts = [Prompt(generator.tokenizer.encode(text or "a"), n) for n, text in enumerate(PROMPTS)]
    warm = Sampling(temperature=1.0, seed=3)
    alone, together = (
        write(generator, prompts, Manuscript(10, warm, (), batch)) for batch in (1, 8)
    )
    assert alone == together
    assert len({each.text for each in alone}) > 1
    again = write(generator, prompts[2:3], Manuscript(10, warm, (), 8))
    assert again == alone[2:3]


def test_an_answer_ends_where_the_model_ends_it(generator: Generator) -> None:
    model = built(spec(), seed=3)
    prompt = Prompt(generator.tokenizer.encode("ROMEO:"))
    with torch.no_grad():
        hidden_D = model.hidden(torch.tensor([prompt.tokens]))[0, -1]
        model.head_VD[generator.tokenizer.end_of_document] = 9 * hidden_D
    found = write(Generator(model, generator.tokenizer), [prompt], Manuscript(9, GREEDY))
    assert found[0] == ("", 0, "end")


def test_a_right_answer_is_counted(generator: Generator, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    said = "".join(generate(generator, "ROMEO:", tokens=5, sampling=GREEDY))
    lines = [{"prompt": "ROMEO:", "answer": said}, {"prompt": "But,", "answer": "quite another"}]
    found = asked(generator, tmp_path, *lines, tokens=5)
    assert [each.answer for each in found.items][0] == said
    assert value(found, "exact match") == 0.5
    assert [item.sums["exact match"][0] for item in found.items] == [1.0, 0.0]
    names = [each.name for each in found.metrics]
    assert names == [
        "exact match",
        "relaxed match",
        "BLEU",
        "chrF",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
    ]


def test_a_choice_is_the_likeliest_continuation(generator: Generator, tmp_path: Path) -> None:
    """Against the sum of logarithms with all logits in memory."""
    choices = ["light", "the east", "Juliet is"]
    row = {"prompt": "ROMEO: what", "choices": choices, "answer": "the east"}
    found = asked(generator, tmp_path, row)
    tokenizer, nats = generator.tokenizer, []
    before = tokenizer.encode("ROMEO: what")
    for choice in choices:
        tokens = tokenizer.encode(f"ROMEO: what {choice}")
        assert tokens[: len(before)] == before
        odds_TV = generator.model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
        nats.append(-sum(float(odds_TV[t - 1, tokens[t]]) for t in range(len(before), len(tokens))))
    best = min(range(3), key=nats.__getitem__)
    assert found.items[0].answer == choices[best]
    assert value(found, "accuracy") == float(best == 1)
    by_length = min(range(3), key=lambda n: nats[n] / len(choices[n]))
    assert value(found, "accuracy by length") == float(by_length == 1)
    weights = [math.exp(min(nats) - each) for each in nats]
    odds = [each / sum(weights) for each in weights]
    brier = sum((each - (n == 1)) ** 2 for n, each in enumerate(odds))
    assert value(found, "Brier score") == pytest.approx(brier, rel=1e-4)
    error = abs(max(odds) - (best == 1))
    assert value(found, "calibration error") == pytest.approx(error, abs=1e-5)


def test_white_space_at_the_seam_goes_with_the_choice(generator: Generator, tmp_path: Path) -> None:
    unsure = generator._replace(model=built(spec(), deviation=2.0))

    def score(prompt: str, choice: str, joint: str = " ") -> float:
        row = {"prompt": prompt, "choices": [choice, "Juliet"], "answer": choice}
        (item,) = asked(unsure, tmp_path, row, joint=joint).items
        return item.sums["Brier score"][0]

    joined = score("ROMEO: what", "light")
    assert score("ROMEO: what ", "light") == score("ROMEO: what", " light") == joined
    assert score("ROMEO: what", "light", "") != pytest.approx(joined, rel=1e-3)


def test_f1_is_told_where_all_rows_have_the_same_choices(
    generator: Generator, tmp_path: Path
) -> None:
    lines = [
        {"prompt": text, "choices": choices, "answer": "sun"}
        for text, choices in (("the", ["sun", "moon"]), ("soft", ["moon", "sun"]))
    ]
    found = asked(generator, tmp_path, *lines)
    right = [item.sums["accuracy"][0] for item in found.items]
    share = sum(right) / 2
    assert value(found, "macro F1") == pytest.approx(2 * share / (1 + share) / (1 + (share < 1)))
    lines.append({"prompt": "the", "choices": ["sun", "east"], "answer": "sun"})
    names = [each.name for each in asked(generator, tmp_path, *lines).metrics]
    assert "macro F1" not in names and "accuracy" in names


def test_the_batch_changes_no_choice(generator: Generator, tmp_path: Path) -> None:
    lines = [
        {"prompt": text or "a", "choices": ["light", "the sun", "Romeo"], "answer": "light"}
        for text in PROMPTS
    ]
    alone, together = (asked(generator, tmp_path, *lines, batch=batch) for batch in (1, 8))
    for one, eight in zip(alone.items, together.items, strict=True):
        assert one.answer == eight.answer
        for name, sums in one.sums.items():
            assert sums == pytest.approx(eight.sums[name], rel=1e-5, abs=1e-6)


def test_a_conversation_is_rendered_by_the_template(generator: Generator, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}JULIET:"
    row: dict[str, object] = {"messages": [{"role": "user", "content": "soft"}], "answer": "O"}
    talking = generator._replace(template=Template(source, {}))
    found = asked(talking, tmp_path, row, tokens=6)
    expected = "".join(generate(generator, "user: soft\nJULIET:", tokens=6, sampling=GREEDY))
    assert found.items[0].answer == expected
    taught = asked(talking, tmp_path, {"question": "soft", "answer": "O"}, tokens=6)
    assert taught.items == found.items and not any("prompts are" in each for each in taught.notes)
    raw = asked(talking, tmp_path, {"prompt": "soft", "answer": "O"}, tokens=6)
    assert raw.notes[-1] == "prompts are read as they are; give messages to ask as in training"
    plain = asked(generator, tmp_path, {"question": "soft", "answer": "O"}, tokens=6)
    assert plain.items == raw.items and plain.notes == found.notes
    row["messages"] = [{"role": "system", "content": "be"}, {"role": "user", "content": "soft"}]
    with pytest.raises(BadInput, match="line 1: there are messages, and the model has no chat"):
        asked(generator, tmp_path, row)


@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_an_answer_is_held_without_the_thought_of_the_row(
    opened: str, generator: Generator, tmp_path: Path
) -> None:
    pytest.importorskip("sacrebleu")
    source = "{% for m in messages %}{{ m.content }}{% endfor %}" + opened + "{# </think> #}"
    thinking = generator._replace(template=Template(source, {}))
    for said in ("<think>\nIs it?\n</think>\n\nthe east", "Is it?</think>the east"):
        bare, taught = (
            asked(thinking, tmp_path, {"question": "what", "answer": each}, tokens=6)
            for each in ("the east", said)
        )
        assert taught.items == bare.items
    plain = generator._replace(template=Template("{{ messages[0].content }}", {}))
    kept = asked(plain, tmp_path, {"question": "what", "answer": said}, tokens=6)
    assert kept.items != bare.items


def test_a_choice_is_no_thought(generator: Generator, tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}<think>"
    row = {"question": "what", "choices": ["light", "the east"], "answer": "light"}
    opened, ended = (
        asked(generator._replace(template=Template(each, {})), tmp_path, row)
        for each in (f"{source}{{# </think> #}}", f"{source}</think>")
    )
    assert opened.items == ended.items


def test_a_row_longer_than_the_context_is_named_and_never_cut(
    generator: Generator, tmp_path: Path
) -> None:
    short, long = "ROMEO:", "light " * CONTEXT
    with pytest.raises(BadInput, match="rows.jsonl line 2: the prompt is .* tokens long"):
        asked(
            generator, tmp_path, {"prompt": short, "answer": "a"}, {"prompt": long, "answer": "a"}
        )
    with pytest.raises(BadInput, match="line 1 is too long: .* with 64 tokens of answer"):
        asked(generator, tmp_path, {"prompt": short, "answer": "a"})
    with pytest.raises(BadInput, match="line 1 is too long: .* with a choice"):
        asked(generator, tmp_path, {"prompt": short, "choices": [long, "a"], "answer": "a"})


def test_a_prompt_of_unknown_characters_is_refused(
    character: object, generator: Generator, tmp_path: Path
) -> None:
    other = generator._replace(tokenizer=character)
    with pytest.raises(BadInput, match="line 1: the model's tokenizer does not know 'ω'"):
        asked(other, tmp_path, {"prompt": "ω", "answer": "a"})
