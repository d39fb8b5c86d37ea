"""Conversations: messages as the model's own template renders them, and what it says to them."""

from __future__ import annotations

from collections.abc import Sequence

from narrows.data.template import Message
from narrows.data.tools import Tool, told
from narrows.infer.decoding import Decoding
from narrows.infer.generate import Generation, TooLong, Writer
from narrows.infer.guessed import GuessedText, Guesser
from narrows.infer.sampling import Sampling
from narrows.spec.errors import BadInput


def answer(
    generator: Writer, messages: Sequence[Message], *, tokens: int = 512,
    sampling: Sampling | None = None, stop: Sequence[str] = (),
    before: Guesser | Decoding | None = None,
) -> Generation | GuessedText:  # fmt: skip
    """At most `tokens` tokens that answer the messages, which are written as they were in training.
    What the guesser or the decoding has read `before` of them is not read again.

    Raises BadInput where the model has no chat template, or the conversation is longer than its
    context.
    """
    if tokens < 1:
        raise BadInput(f"tokens is {tokens}", hint="ask for at least 1")
    found = conversation(generator, messages)
    context = generator.spec.context
    if len(found) > context:
        raise TooLong(
            f"the conversation is {len(found)} tokens long, the model reads {context}",
            hint="begin a new one",
        )
    if isinstance(before, Guesser):
        room = before.scheduler.core.context - len(found)
        return before.write(found, max(1, min(tokens, room)), sampling=sampling, stop=stop)
    return Generation(generator, found, tokens, sampling or Sampling(), stop, before)


def conversation(
    generator: Writer, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[int]:
    """The tokens of the messages, up to where the model is to answer, which may call the tools;
    raises BadInput where it has no chat template, or the template refuses them.
    """
    if generator.template is None:
        raise BadInput(
            "the model has no chat template: it goes on with texts, and knows no conversation",
            hint="narrows generate MODEL --prompt TEXT, or take an instruction-tuned model",
        )
    messages, shown = told(generator.template, messages, tools)
    text = generator.template.render(messages, tools=shown, answer=True)
    return generator.tokenizer.encode(text, special=True)
