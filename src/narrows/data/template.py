"""A chat template: messages to the text that a model was trained to read, by its own Jinja source.

The environment is the one that templates are written for, transformers' (chat_template_utils.py):
sandboxed, blocks trimmed, `raise_exception`, `strftime_now`, `tojson` and `generation` known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, final

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from narrows.spec.errors import BadInput

Message = Mapping[str, Any]
Options = Mapping[str, Any]
"""Variables that a template reads beside messages and tools, such as enable_thinking."""
NO_OPTIONS: Options = MappingProxyType({})
THOUGHT = ("<think>", "</think>")
"""What reasoning models write around what nobody is to read."""
ROLES = ("system", "developer", "user", "assistant", "tool")
_THINKING = "enable_thinking"
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")


class Turn(NamedTuple):
    """A piece of the rendered text, and whether the model is to write it."""

    text: str
    written: bool


@final
class Template:
    """Renders messages; `special` are the tokens that it may name, such as bos_token."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self.source, self.special = source, dict(special)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None,
        options: Options = NO_OPTIONS, answer: bool = True,
    ) -> str:  # fmt: skip
        """The text of the messages; with `answer` it ends where the model is to go on, behind a
        thought that the template opens whatever it is told where none is wanted.

        Raises BadInput where the template refuses them, with what it says, or knows no such option.
        """
        check(messages)
        self.refuse_unknown(options)
        try:
            text = self._compiled.render(
                messages=[self._known(each) for each in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=answer,
                **{**self.special, **options},
            )
            return unthinking(text) if answer and options.get(_THINKING) is False else text
        except jinja2.TemplateError as error:
            raise BadInput(
                f"the model's chat template refuses the messages: {error}",
                hint="change the roles or their order to what the model was trained on",
            ) from None
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise BadInput(
                f"the model's chat template cannot render the messages: {error}",
                hint="give each message a role and a content that is text",
            ) from None

    def lessons(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None,
        options: Options = NO_OPTIONS,
    ) -> list[list[Turn]]:  # fmt: skip
        """The conversation as text, cut into what the model is to write, its own turns with the
        end of each, and the rest: one text, or, where the template renders the past otherwise once
        the conversation goes on (reasoning models forget their thoughts), several, in which each of
        its turns is to be written once, behind what it is asked by.

        Raises BadInput where an answer changes what stands before it.
        """
        found: list[list[Turn]] = []
        before = ""
        for count, message in enumerate(messages, 1):
            if message.get("role") != "assistant":
                continue
            asked = self.render(messages[: count - 1], tools=tools, options=options)
            answered = self.render(messages[:count], tools=tools, options=options, answer=False)
            thought = _thought(message)
            written = _written(asked, answered, thought)
            if written is None:
                raise _untaught(count, thought)
            if not found or not asked.startswith(before):
                found.append([])
                before = ""
            found[-1] += [Turn(asked[len(before) :], False), Turn(written, True)]
            before = asked + written
        whole = self.render(messages, tools=tools, options=options, answer=False)
        if not found:
            return [[Turn(whole, False)]]
        if whole.startswith(before) and whole != before:
            found[-1].append(Turn(whole[len(before) :], False))
        return found

    @property
    def reasons(self) -> bool:
        """Whether it knows of answers that begin with a thought."""
        return THOUGHT[1] in self.source

    def reads(self, name: str) -> bool:
        """Whether what it renders may depend on the variable of that name, such as tools."""
        return name in self._variables

    def refuse_unknown(self, options: Options) -> None:
        """Raises BadInput for one that would be ignored, or is more than an option."""
        for name, value in options.items():
            if name in _GIVEN or name in self.special:
                what = f"{name} is no option of a chat template"
                raise BadInput(what, hint="leave it out; the messages and the model say it")
            if not self.reads(name) and value not in (None, False):
                known = sorted(self._variables - {*_GIVEN, *self.special})
                raise BadInput(
                    f"the model's chat template knows no {name[:60]}",
                    hint=f"leave it out; it knows: {', '.join(known) or 'none'}",
                )

    def _known(self, message: Message) -> dict[str, Any]:
        """With a role that the template knows: what a developer says is the system's elsewhere."""
        elsewhere = message["role"] == "developer" and "developer" not in self.source
        return {**message, "role": "system"} if elsewhere else dict(message)

    @cached_property
    def _variables(self) -> set[str]:
        tree = _environment().parse(self.source)
        return meta.find_undeclared_variables(tree) & _read(tree, set())

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise BadInput(
                f"the model's chat template is no Jinja template: {error}",
                hint="fetch the model's files again",
            ) from None


def unthinking(prompt: str) -> str:
    """The prompt with the thought ended that it opens."""
    kept = prompt.rstrip()
    seam = prompt[len(kept) :]
    return f"{prompt}{seam}{THOUGHT[1]}{seam * 2}" if kept.endswith(THOUGHT[0]) else prompt


def check(messages: Sequence[Message]) -> None:
    """Raises BadInput where one has no role that is known, or no content: null would be said as a
    word of the template's language.
    """
    if not messages:
        raise BadInput("there are no messages", hint='{"role": "user", "content": "Hello"}')
    for number, message in enumerate(messages, 1):
        role = message.get("role")
        if role not in ROLES:
            what = f"message {number} has the role {role!r}"
            raise BadInput(what, hint=f"use one of: {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            raise BadInput(f"message {number} has no content", hint='"content": "..."')
        if not isinstance(content, str | list | None):
            what = f"the content of message {number} is no text but {content!r:.60}"
            raise BadInput(what, hint='"content": "..."')


def _thought(message: Message) -> str:
    """What stands before an answer: in a field of its own, or between tags in its content."""
    thought, content = message.get("reasoning_content"), message.get("content")
    if isinstance(thought, str):
        return thought.strip()
    before, end, _ = content.partition(THOUGHT[1]) if isinstance(content, str) else ("", "", "")
    return before.rpartition(THOUGHT[0])[2].strip() if end else ""


def _written(asked: str, answered: str, thought: str) -> str | None:
    """What the model writes behind what it is asked by, with the thought; None where the answer
    changes the one or leaves out the other.
    """
    if answered.startswith(asked) and thought in answered[len(asked) :]:
        return answered[len(asked) :]
    begin, end = THOUGHT
    before, opened, seam = asked.rpartition(begin)
    ended = not thought and seam.strip() == end
    if not (opened and answered.startswith(before)) or (seam.strip() and not ended):
        return None
    said = answered[len(before) :].lstrip()
    if said.startswith(THOUGHT):
        said = said.partition(end)[2].lstrip()
    return said if ended else f"{thought}{seam}{end}{seam * 2}{said}"


def _untaught(count: int, thought: str) -> BadInput:
    """Of the message of that number."""
    if thought:
        return BadInput(
            f"the chat template leaves out what the assistant thought in message {count}, which "
            "would not be learned",
            hint='take the thought out of the row, or "enable_thinking": false where it has that',
        )
    return BadInput(
        f"the chat template renders what comes before message {count} otherwise once it is there: "
        "what the model is to learn cannot be told apart",
        hint="use the template that the model was published with",
    )


def _read(node: nodes.Node, own: set[str]) -> set[str]:
    """The variables that are read before they are set for certain; `own` grows by those set."""
    match node:
        case nodes.Name(ctx="load"):
            return {node.name} - own
        case nodes.Name():
            own.add(node.name)
            return set()
        case nodes.If():
            found, ways = _read(node.test, own), [(set(own), node.body)]
            ways += [(set(own), [each]) for each in node.elif_]
            ways.append((set(own), node.else_))
            for set_there, parts in ways:
                found |= _read_all(parts, set_there)
            own |= set.intersection(*(set_there for set_there, _ in ways))
            return found
        case nodes.Assign():
            return _read_all([node.node, node.target], own)
        case nodes.For():
            parts = [node.target, *([node.test] if node.test else []), *node.body, *node.else_]
            return _read(node.iter, own) | _read_all(parts, set(own))
        case nodes.Macro() | nodes.CallBlock() | nodes.With():
            return _read_all(node.iter_child_nodes(), set(own))
        case _:
            return _read_all(node.iter_child_nodes(), own)


def _read_all(parts: Iterable[nodes.Node], own: set[str]) -> set[str]:
    """Of one after the other."""
    return set[str]().union(*(_read(part, own) for part in parts))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}`, around what the model writes: its text stays, the marks go."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> Callable[..., Any]:
    raise jinja2.TemplateError(message)
