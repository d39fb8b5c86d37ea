"""tools, tool_choice and parallel_tool_calls: what may be called, and what must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from narrows.data.template import Template
from narrows.data.tools import Style, Tool, style_of
from narrows.infer import tools
from narrows.infer.grammar import Grammars, Guide
from narrows.infer.server.errors import Refusal
from narrows.infer.server.formats import refusing
from narrows.infer.server.schemas import ChatAsked, FunctionTool, NamedTool
from narrows.infer.tools import CallReader


class Calls(NamedTuple):
    """The tools that an answer may call, in the style of the model; `chosen` those that it must
    call one of, none where it need not.
    """

    style: Style
    known: tuple[Tool, ...]
    chosen: tuple[Tool, ...]
    several: bool

    def reader(self) -> CallReader:
        """For one answer."""
        return CallReader(self.style, self.known)

    def guide(self, grammars: Grammars) -> Guide | None:
        """What holds the answer to a call; raises Refusal where a tool's schema is wrong."""
        if not self.chosen:
            return None
        with refusing("tools"):
            return tools.guide(grammars, self.style, self.chosen, several=self.several)


def calls_of(asked: ChatAsked, template: Template | None) -> Calls | None:
    """None where nothing may be called; raises Refusal where the choice is none of the tools."""
    choice, known = asked.tool_choice, tools_of(asked.tools)
    names = [tool.name for tool in known]
    chosen: tuple[Tool, ...] = ()
    if isinstance(choice, NamedTool):
        chosen = tuple(tool for tool in known if tool.name == choice.function.name)
    elif choice == "required":
        chosen = known
    if not chosen and choice not in (None, "none", "auto"):
        what = "tool_choice asks for a call of what is not among the tools"
        raise Refusal(what, hint=f"known: {', '.join(names) or 'none'}", param="tool_choice")
    if not known or choice == "none":
        return None
    style = (template and style_of(template)) or "hermes"
    several = asked.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    return Calls(style, known, chosen, several)


def tools_of(given: Sequence[FunctionTool] | None) -> tuple[Tool, ...]:
    """As templates are told of them; raises Refusal where two have one name."""
    known = tuple(
        Tool(name=each.function.name, description=each.function.description,
             parameters=each.function.parameters, strict=bool(each.function.strict))
        for each in given or ()
    )  # fmt: skip
    if len({tool.name for tool in known}) < len(known):
        raise Refusal("two tools have the same name", param="tools")
    return known
