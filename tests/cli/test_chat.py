"""What can be said in a terminal beside messages."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from narrows.cli.main import INTERRUPTED, main
from narrows.data.conversation import Conversation
from narrows.spec.errors import BadInput

Said = pytest.CaptureFixture[str]
Asked = list[list[tuple[str, str]]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Answer:
    """Two words, the second of which may be interrupted."""

    tokens, finish, guessed = 2, "end", None

    def __init__(self, *, stopped: bool) -> None:
        self._stopped = stopped

    def __iter__(self) -> Iterator[str]:
        yield "so"
        if self._stopped:
            raise KeyboardInterrupt
        yield " be it"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """The conversations that a model was asked to go on with; "stop" is interrupted, and what is
    too long is refused.
    """
    found: Asked = []

    def answer(writer: object, said: Conversation, **how: object) -> Answer:
        last = said.messages[-1]["content"]
        if last == "long":
            raise BadInput("the conversation is 9 tokens long", hint="begin a new one")
        found.append([(each["role"], each["content"]) for each in said.messages])
        return Answer(stopped=last == "stop")

    writer = SimpleNamespace(
        spec=SimpleNamespace(context=64), template=None, decoding=lambda context: object()
    )
    model = SimpleNamespace(writer=lambda **how: writer)
    monkeypatch.setattr("narrows.infer.ready.named", lambda *given: model)
    monkeypatch.setattr("narrows.infer.chat.answer", answer)
    (tmp_path / "plan.toml").write_text("")
    return found


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: Asked) -> Callable[..., int]:
    def talked(*lines: str, stdin: type[io.StringIO] = Terminal, given: Sequence[str] = ()) -> int:
        monkeypatch.setattr("sys.stdin", stdin("".join(f"{line}\n" for line in lines)))
        return main(["chat", str(tmp_path), *given])

    return talked


def test_what_was_said_is_remembered_until_it_is_forgotten(
    talk: Callable[..., int], asked: Asked, capsys: Said
) -> None:
    assert talk("one", "", "two", "/new", "three", "/quit", "four", given=["--system", "s"]) == 0
    rule, one, so = ("system", "s"), ("user", "one"), ("assistant", "so be it")
    assert asked == [[rule, one], [rule, one, so, ("user", "two")], [rule, ("user", "three")]]
    assert capsys.readouterr().out == "so be it\n" * 3


def test_what_the_model_keeps_to_may_change(talk: Callable[..., int], asked: Asked) -> None:
    assert talk("/system  be brief ", "one", "/system", "two") == 0
    one, so = ("user", "one"), ("assistant", "so be it")
    assert asked == [[("system", "be brief"), one], [one, so, ("user", "two")]]


def test_help_is_told_beside_the_answers(talk: Callable[..., int], capsys: Said) -> None:
    assert talk("/help", "/helpless") == 0
    said = capsys.readouterr()
    assert "/new" in said.err and "ctrl-C stops an answer" in said.err
    assert said.out == "so be it\n"


def test_an_answer_is_stopped_and_the_conversation_goes_on(
    talk: Callable[..., int], asked: Asked, capsys: Said
) -> None:
    assert talk("stop", "on") == 0
    assert asked[1] == [("user", "stop"), ("assistant", "so"), ("user", "on")]
    assert capsys.readouterr().out == "so\nso be it\n"
    assert talk("stop", "on", stdin=io.StringIO) == INTERRUPTED


def test_what_cannot_be_answered_ends_no_conversation_in_a_terminal(
    talk: Callable[..., int], asked: Asked, capsys: Said
) -> None:
    assert talk("one", "long", "/new", "two") == 0
    assert asked[1] == [("user", "two")]
    assert "9 tokens long" in capsys.readouterr().err
    assert talk("long", stdin=io.StringIO) == 2


def test_what_is_no_text_is_read_for_the_tokenizer_to_refuse(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8"))
    assert main(["chat", str(tmp_path)]) == 0
    assert asked == [[("user", "a\udcff")]]
