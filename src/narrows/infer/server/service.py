"""A model that is served, and requests to it as the scheduler takes them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from narrows.data.conversation import Conversation
from narrows.data.template import NO_OPTIONS, Options
from narrows.data.tools import Tool
from narrows.infer.chat import rendered
from narrows.infer.generate import Writer, tokens_of
from narrows.infer.grammar import Grammars
from narrows.infer.requests import Answer, Request
from narrows.infer.sampling import SEEDS, Sampling
from narrows.infer.scheduler import Scheduler
from narrows.infer.server.calls import Calls, tools_of
from narrows.infer.server.errors import Refusal
from narrows.infer.server.formats import guide_of
from narrows.infer.server.schemas import Asked, ChatAsked, Message, TextAsked, TokensAsked
from narrows.spec.errors import NarrowsError
from narrows.spec.record import Record


class Limits(Record):
    """What one request may take; `drain_s` is how long answers may go on when the server ends."""

    tokens_max: int
    body_bytes: int = 4 * 2**20
    seconds: float = 600.0
    body_seconds: float = 30.0
    choices: int = 16
    drain_s: float = 30.0


class Service(NamedTuple):
    """All that the routes need; the template is told the options where a request says no other."""

    name: str
    since: int
    writer: Writer
    scheduler: Scheduler
    limits: Limits
    grammars: Grammars
    options: Options = NO_OPTIONS

    @property
    def cards(self) -> list[dict[str, Any]]:
        """The model and its adapters, as OpenAI lists models."""
        own = {"id": self.name, "object": "model", "created": self.since,
               "owned_by": "narrows", "context": self.scheduler.core.context}  # fmt: skip
        adapters = sorted(each for each in self.scheduler.core.adapters if each is not None)
        return [own, *({**own, "id": each, "parent": self.name} for each in adapters)]

    def rendered(
        self, messages: Sequence[Message], options: Options | None, tools: tuple[Tool, ...] = ()
    ) -> str:
        """A conversation as the model reads it; raises what `chat.rendered` does, and Refusal."""
        said = [message.plain(index) for index, message in enumerate(messages)]
        told = {**self.options, **(options or {})}
        return rendered(self.writer, Conversation(said, tools, told))


def chat_requests(
    service: Service, asked: ChatAsked, text: str, calls: Calls | None = None
) -> list[Request]:  # fmt: skip
    """The one request of a rendered conversation, whose answer may be calls."""
    prompt = service.writer.tokenizer.encode(text, special=True)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal("top_logprobs without logprobs", hint='add "logprobs": true',
                      param="top_logprobs")  # fmt: skip
    most = asked.max_completion_tokens or asked.max_tokens
    odds = (asked.top_logprobs or 0) if asked.logprobs else None
    request = _request(service, asked, prompt, most, odds)
    if calls is None:
        return [request]
    if request.guide is not None:
        what = "a form of the answer and tools that it may call are asked for at once"
        raise Refusal(what, hint='"tool_choice": "none"', param="tool_choice")
    return [msgspec.structs.replace(request, guide=calls.guide(service.grammars))]


def text_requests(service: Service, asked: TextAsked) -> list[Request]:
    """One for each prompt."""
    prompts = asked.prompts()
    if len(prompts) * (asked.n or 1) > service.limits.choices:
        raise _too_many(service, len(prompts) * (asked.n or 1))
    vocabulary = service.writer.tokenizer.vocabulary
    found = []
    for prompt in prompts:
        if isinstance(prompt, str):
            tokens = tokens_of(prompt, service.writer)
        else:
            tokens = prompt
            wrong = [token for token in tokens if not 0 <= token < vocabulary]
            if wrong:
                what = f"token {wrong[0]} is none of the tokenizer's {vocabulary}"
                raise Refusal(what, param="prompt")
        # OpenAI's completions are short unless asked for.
        found.append(_request(service, asked, tokens, asked.max_tokens or 16, asked.logprobs))
    return found


def tokens_asked(service: Service, asked: TokensAsked) -> list[int]:
    """The tokens of a text or of a conversation."""
    if asked.messages is not None:
        text = service.rendered(
            asked.messages, asked.chat_template_kwargs, tools_of(asked.tools)
        )  # fmt: skip
        return service.writer.tokenizer.encode(text, special=True)
    if asked.prompt is None:
        raise Refusal("there is neither prompt nor messages", param="prompt")
    if asked.tools:
        raise Refusal("tools are told of with messages, not with a prompt", param="tools")
    return service.writer.tokenizer.encode(asked.prompt)


def submitted(service: Service, requests: list[Request]) -> list[Answer]:
    """All or none; raises what the scheduler does, and Refusal of more than it ever takes."""
    slots, queue = service.scheduler.core.slots, service.scheduler.queue
    if len(requests) > slots + queue:
        what = f"{len(requests)} prompts are asked for at once, the server writes {slots}"
        raise Refusal(f"{what} and lets {queue} wait", hint=f"send at most {slots + queue}",
                      param="prompt")  # fmt: skip
    answers: list[Answer] = []
    try:
        for request in requests:
            answers.append(service.scheduler.submit(request))
    except NarrowsError:
        for answer in answers:
            answer.cancel()
        raise
    return answers


def _request(
    service: Service, asked: Asked, prompt: list[int], most: int | None, odds: int | None
) -> Request:
    limits, room = service.limits, service.scheduler.core.context - len(prompt)
    if most is not None and most > limits.tokens_max:
        what = f"{most} tokens are asked for, the server writes at most {limits.tokens_max}"
        raise Refusal(what, hint="ask for fewer", param="max_tokens")
    if (asked.n or 1) > limits.choices:
        raise _too_many(service, asked.n or 1)
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if "" in stop:
        raise Refusal("a stop string is empty", hint="leave it out", param="stop")
    return Request(
        prompt=tuple(prompt), tokens_max=most or max(1, min(limits.tokens_max, room)),
        sampling=_sampling(asked), stop=stop, count=asked.n or 1, logprobs=odds,
        guide=guide_of(asked, service.grammars),
        adapter=None if asked.model == service.name else asked.model,
    )  # fmt: skip


def _sampling(asked: Asked) -> Sampling:
    seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed % SEEDS
    bias = {}
    for name, value in (asked.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            what = f"logit_bias names {name[:40]!r}, which is no token's number"
            raise Refusal(what, param="logit_bias")
        bias[int(name)] = value
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=asked.top_p, top_k=asked.top_k, min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0, logit_bias=bias, seed=seed,
    )  # fmt: skip


def _too_many(service: Service, count: int) -> Refusal:
    what = f"{count} texts are asked for at once, the server writes at most"
    return Refusal(f"{what} {service.limits.choices}", hint="ask for fewer", param="n")
