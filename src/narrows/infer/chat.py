"""Conversations: messages as the model's own template renders them, and what it says to them."""

from __future__ import annotations

from collections.abc import Sequence

from narrows.data.conversation import Conversation
from narrows.data.tools import told
from narrows.infer.decoding import Decoding
from narrows.infer.generate import Generation, TooLong, Writer
from narrows.infer.guessed import GuessedText, Guesser
from narrows.infer.reasoning import thinking_of
from narrows.infer.sampling import Sampling
from narrows.spec.errors import BadInput


def answer(
    generator: Writer, said: Conversation, *, tokens: int = 512,
    sampling: Sampling | None = None, stop: Sequence[str] = (),
    before: Guesser | Decoding | None = None,
) -> Generation | GuessedText:  # fmt: skip
    """At most `tokens` tokens that answer what was said, which is written as it was in training.
    What the guesser or the decoding has read `before` of it is not read again.

    Raises BadInput where the model has no chat template, or the conversation is longer than its
    context.
    """
    if tokens < 1:
        raise BadInput(f"tokens is {tokens}", hint="ask for at least 1")
    found = conversation(generator, said)
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


def conversation(generator: Writer, said: Conversation) -> list[int]:
    """The tokens of what was said, up to where the model is to answer; errors as of `rendered`."""
    return generator.tokenizer.encode(rendered(generator, said), special=True)


def thinking(generator: Writer, said: Conversation) -> bool | None:
    """Whether the answer to what was said begins within a thought; None where it has none."""
    if generator.template is None or not generator.template.reasons:
        return None
    return thinking_of(generator.template, rendered(generator, said))


def rendered(generator: Writer, said: Conversation) -> str:
    """The text that the model is to go on from. Raises BadInput where it has no chat template, or
    the template refuses what was said.
    """
    if generator.template is None:
        raise BadInput(
            "the model has no chat template: it goes on with texts, and knows no conversation",
            hint="narrows generate MODEL --prompt TEXT, or take an instruction-tuned model",
        )
    messages, tools = told(generator.template, said.messages, said.tools)
    return generator.template.render(messages, tools=tools, options=said.options)
