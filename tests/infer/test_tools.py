from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest

from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.data.tools import Style, Tool, style_of, told
from narrows.infer.generate import generate
from narrows.infer.grammar import BadGrammar, Grammars
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling
from narrows.infer.tools import Call, CallReader, guide

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
HERMES = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}" + PLAIN
LLAMA = '{% if not tools is defined %}{% set tools = none %}{% endif %}{"name": , "parameters": }'
OTHER = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}" + PLAIN
CODER = "{% if tools %}<tool_call>\n<function=name>{% endif %}" + PLAIN
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
        "$defs": {"city": {"enum": ["Rome", "Zürich"]}}}  # fmt: skip
WEATHER, TIME = Tool(name="weather", parameters=CITY), Tool(name="time")
ROME = Call("weather", '{"city": "Rome"}')
HERMES_ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
LLAMA_ROME = '{"name": "weather", "parameters": {"city": "Rome"}}'


@pytest.mark.parametrize(
    ("source", "style"),
    [(PLAIN, None), (HERMES, "hermes"), (LLAMA, "llama"), (OTHER, None), (CODER, None)],
)
def test_the_template_says_how_calls_are_written(source: str, style: Style | None) -> None:
    assert style_of(Template(source, {})) == style


def test_a_template_that_knows_no_tools_is_told_in_its_system_message() -> None:
    call = {"id": "1", "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Rome"}}}  # fmt: skip
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "yes"}, {"role": "tool", "content": "no"},
    ]  # fmt: skip
    found, shown = told(Template(PLAIN, {}), messages, [WEATHER, TIME])
    assert shown is None and [each["role"] for each in found] == [
        "system", "user", "assistant", "user"
    ]  # fmt: skip
    assert found[0]["content"].startswith("Be brief.\n\nYou can call functions.")
    assert json.dumps(CITY, ensure_ascii=False) in found[0]["content"]
    assert found[2]["content"] == f"{HERMES_ROME}\n{HERMES_ROME}"
    responses = "<tool_response>\nyes\n</tool_response>\n<tool_response>\nno\n</tool_response>"
    assert found[3]["content"] == responses
    same, shown = told(Template(HERMES, {}), messages, [TIME])
    assert same == messages and shown == [TIME.told]
    assert told(Template(PLAIN, {}), messages[:2], []) == (messages[:2], None)


@pytest.mark.parametrize(
    ("style", "text", "found"),
    [
        ("hermes", HERMES_ROME, [ROME]),
        ("hermes", f"Let me see.\n{HERMES_ROME}\n{HERMES_ROME}\n", ["Let me see.", ROME, ROME]),
        ("hermes", "a < b, <tool", ["a < b, <tool"]),
        ("hermes", "I say <tool_call> is a tag.", ["I say <tool_call> is a tag."]),
        ("hermes", "So:\n\n<tool_call>{\n</tool_call>\n", ["So:\n\n<tool_call>{\n</tool_call>\n"]),
        ("hermes", f"\nSee: \n{HERMES_ROME}\nSo.\n{HERMES_ROME}", ["\nSee:", ROME, "\nSo.", ROME]),
        ("hermes", f"a\n<tool_call></tool_call>\n{HERMES_ROME} b\n<tool_call>",
         ["a\n<tool_call></tool_call>", ROME, " b\n<tool_call>"]),
        ("hermes", "<tool_call>{</tool_call>", ["<tool_call>{</tool_call>"]),
        ("hermes", HERMES_ROME.replace("weather", "war"), [HERMES_ROME.replace("weather", "war")]),
        ("hermes", HERMES_ROME[:-3], [HERMES_ROME[:-3]]),
        *(("hermes", said, [said]) for said in (
            HERMES_ROME.replace('"weather"', "[]"), HERMES_ROME.replace('"weather"', '{"a": 1}'),
            *(HERMES_ROME.replace('"Rome"', value)
              for value in ("NaN", "[-Infinity]", "1e999", r'"\ud800"')),
        )),
        ("llama", '{"name": {}, "parameters": {}}', ['{"name": {}, "parameters": {}}']),
        ("llama", LLAMA_ROME, [ROME]),
        ("llama", f"<|python_tag|>{LLAMA_ROME}; {LLAMA_ROME}", [ROME, ROME]),
        ("llama", "It rains. {}", ["It rains. {}"]),
        ("llama", '{"rain": true}', ['{"rain": true}']),
        ("llama", f"{LLAMA_ROME} or so", [f"{LLAMA_ROME} or so"]),
        ("llama", "<", ["<"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_however_the_text_is_cut(
    style: Style, text: str, found: list[str | Call], size: int
) -> None:
    reader = CallReader(style, [WEATHER, TIME])
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    given = [each for piece in pieces for each in reader.push(piece)] + reader.finish()
    joined: list[str | Call] = []
    for call, group in groupby(given, key=lambda each: isinstance(each, Call)):
        several = list(group)
        joined += several if call else ["".join(map(str, several))]
    assert joined == found
    assert reader.calls == sum(isinstance(each, Call) for each in found)


@pytest.mark.parametrize("style", ["hermes", "llama"])
@pytest.mark.parametrize("seed", range(4))
def test_an_answer_that_must_call_does(
    generator: Generator, bpe: Tokenizer, style: Style, seed: int
) -> None:
    held = guide(Grammars(bpe), style, [WEATHER, TIME], several=False)
    sampling = Sampling(temperature=2.0, seed=seed)
    writing = generate(generator, "R", tokens=200, sampling=sampling, guide=held)
    reader = CallReader(style, [WEATHER, TIME])
    text = "".join(writing)
    [call] = reader.push(text) + reader.finish()
    assert writing.finish == "end" and isinstance(call, Call)
    known = {"weather": [{"city": "Rome"}, {"city": "Zürich"}], "time": [{}]}
    assert json.loads(call.arguments) in known[call.name]


def test_a_tool_whose_schema_is_wrong_is_named(bpe: Tokenizer) -> None:
    wrong = Tool(name="b", parameters={"type": "object", "properties": {"x": {"type": "y"}}})
    with pytest.raises(BadGrammar, match="b: .*Invalid type: y") as refused:
        guide(Grammars(bpe), "hermes", [TIME, wrong], several=True)
    assert refused.value.place == "[1].function.parameters.properties.x"
