"""Conversations, and models that say one thing of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.data.conversation import Conversation
from narrows.data.published import Words
from narrows.data.rows import Row
from narrows.data.teaching import documents
from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.data.tools import Tool
from narrows.data.training import character
from narrows.infer.chat import answer, conversation
from narrows.infer.classifier import Classifier, is_one
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling
from narrows.infer.server.schemas import Called, CalledFunction, Message
from narrows.kernels.arrays import Floats
from narrows.kernels.load import load as kernels
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import llama
from narrows.spec.objective import Chat, Classify, Regress

TEMPLATE = Template(
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}",
    {},
)
SPEC = llama(layers=1, width=32, heads=2, vocabulary=30, context=64)
MESSAGES = [{"role": "user", "content": "hello"}]


def tokenizer() -> Tokenizer:
    return Tokenizer(character(Counter("abcdefghijklmnopqrstuvwxyz:;"), 30))


def model(**changes: object) -> Transformer:
    made = Transformer(msgspec.structs.replace(SPEC, **changes), kernels("torch"))
    initialise(made, 0)
    return made.eval().requires_grad_(False)


def test_a_conversation_is_read_as_the_template_renders_it() -> None:
    generator = Generator(model(), tokenizer(), TEMPLATE)
    writing = answer(
        generator, Conversation(MESSAGES), tokens=5, sampling=Sampling(temperature=0.0)
    )
    assert writing.prompt == tuple(generator.tokenizer.encode("u:hello;a:"))
    said = "".join(writing)
    assert writing.tokens <= 5
    longer = [*MESSAGES, {"role": "assistant", "content": said}, *MESSAGES]
    assert (
        answer(generator, Conversation(longer), tokens=1).prompt[: len(writing.prompt)]
        == writing.prompt
    )


KNOWS_TOOLS = "{% if tools %}<tool_call>{{ tools[0].function.name }};{% endif %}"


@pytest.mark.parametrize("source", ["", KNOWS_TOOLS])
@pytest.mark.parametrize("tools", [(), (Tool(name="rain"),)])
def test_a_conversation_is_asked_as_it_was_taught(source: str, tools: tuple[Tool, ...]) -> None:
    generator = Generator(model(), tokenizer(), Template(source + TEMPLATE.source, {}))
    called = {"name": "rain", "arguments": '{"city": "rome"}'}
    asked: list[dict[str, object]] = [
        *MESSAGES, {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "no"}, {"role": "tool", "content": "never"},
    ]  # fmt: skip
    told = [{"type": "function", "function": {"name": each.name}} for each in tools]
    fields = {"messages": [*asked, {"role": "assistant", "content": "dry"}], "tools": told}
    words = Words(generator.tokenizer, generator.template)
    ((_, (taught,)),) = documents([Row(fields, "", None)], Chat(), words, ())
    answers = taught.learned.index(True), len(taught.learned) - taught.learned[::-1].index(False)
    for end, count in zip(answers, (1, 4), strict=True):
        served = [Message(**each).plain(0) for each in _as_clients_write(asked[:count])]
        assert conversation(generator, Conversation(served, tools)) == taught.tokens[:end]


def _as_clients_write(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls as OpenAI's clients send them."""
    return [
        each | {"tool_calls": [Called(id="1", function=CalledFunction(**call))
                               for call in each["tool_calls"]]}
        if "tool_calls" in each else each for each in messages
    ]  # fmt: skip


def test_what_was_read_before_is_not_read_again() -> None:
    generator, read = Generator(model(), tokenizer(), TEMPLATE), list[int]()
    decoding = generator.decoding(SPEC.context)
    inner = decoding._model.read

    def counted(tokens: Sequence[int], start: int) -> Floats:
        read.append(len(tokens))
        return inner(tokens, start)

    decoding._model.read = counted  # type: ignore[method-assign]
    greedy, messages = Sampling(temperature=0.0), list(MESSAGES)
    for count in range(3):
        alone = answer(generator, Conversation(messages), tokens=4, sampling=greedy)
        kept = answer(generator, Conversation(messages), tokens=4, sampling=greedy, before=decoding)
        said, known = "".join(alone), len(read)
        assert "".join(kept) == said and kept.seconds
        # Behind what the first answer has read: its last token, and the new message.
        assert read[known] == (len(kept.prompt) if count == 0 else len(";u:more;a:") + 1)
        assert set(read[known + 1 :]) == {1}
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "more"}]
    other = answer(generator, Conversation(MESSAGES), tokens=4, sampling=greedy, before=decoding)
    known = len(read)
    "".join(other)
    assert read[known] == 1


@pytest.mark.parametrize(
    ("template", "messages", "tokens", "what"),
    [
        (None, MESSAGES, 4, "no chat template"),
        (TEMPLATE, [{"role": "user", "content": "x" * 80}], 4, "tokens long"),
        (TEMPLATE, MESSAGES, 0, "tokens is 0"),
        (TEMPLATE, [{"role": "owl", "content": "hoot"}], 4, "has the role"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    template: Template | None, messages: list[dict[str, str]], tokens: int, what: str
) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        answer(Generator(model(), tokenizer(), template), Conversation(messages), tokens=tokens)
    assert caught.value.hint


def test_a_classifier_says_every_class_and_how_likely() -> None:
    made = model(classes=3, pooling="mean", causal=False)
    said = Classifier(made, Words(tokenizer()), Classify(labels=("a", "b", "c"))).answer("hello")
    shares = [each.share or 0.0 for each in said]
    assert sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)
    ids = torch.tensor([[*tokenizer().encode("hello"), tokenizer().end_of_document]])
    expected = made.scores(made.hidden(ids)[0].mean(0)[None])[0].softmax(0)
    assert shares[0] == pytest.approx(float(expected.max()), rel=1e-5)
    with pytest.raises(BadInput, match="tokens long"):
        Classifier(made, Words(tokenizer()), Classify(labels=("a", "b", "c"))).answer("x" * 100)


def test_a_number_has_no_class() -> None:
    (said,) = Classifier(model(classes=1), Words(tokenizer()), Regress()).answer("hello")
    assert said.label is None and said.number is not None


def test_a_folder_without_a_plan_is_no_classifier(tmp_path: Path) -> None:
    assert not is_one(tmp_path)
