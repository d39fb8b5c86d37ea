"""Adapters as OpenAI's clients ask for them: models of their own names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from narrows.cli.main import main
from narrows.data.tokenizers import Tokenizer
from narrows.infer.export import export
from narrows.infer.generate import generate
from narrows.infer.packed import PackedWriter
from narrows.infer.ready import named
from narrows.infer.sampling import Sampling
from narrows.infer.server.need import need, sizes
from narrows.infer.writer import load_writer
from narrows.spec.adapter import LowRank
from narrows.spec.errors import BadInput
from narrows.spec.model import llama
from tests.infer.conftest import CONTEXT, VOCABULARY, write_run
from tests.infer.server.serving import browsing, serving
from tests.infer.test_beside import FULL, NATIVE, SOME, adapter

SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
PROMPT = "ROMEO: what"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> Path:
    """A published model; its adapters lie beside it."""
    folder = tmp_path_factory.mktemp("adapters")
    write_run(folder / "run", bpe, SHAPE)
    export(folder / "run", folder / "small", type="f32", talk=print)
    (folder / "small" / "chat_template.jinja").write_text(TEMPLATE)
    for name, how in (("pirate", FULL), ("judge", SOME), ("long", LowRank(rank=2, rule="dora"))):
        adapter(folder / "small", folder / name, how)
    return folder / "small"


@pytest.fixture(scope="module")
def asking(base: Path) -> Iterator[OpenAI]:
    options = [f"--adapter={name}={base.parent / name}" for name in ("pirate", "judge")]
    with serving(base, base.parent / "log", *options, "--slots", "3") as served:
        yield OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_the_model_and_its_adapters_are_listed(asking: OpenAI) -> None:
    found = {each.id: each for each in asking.models.list()}
    assert list(found) == ["small", "judge", "pirate"]
    parents = [(each.model_extra or {}).get("parent") for each in found.values()]
    assert parents == [None, "small", "small"]
    assert asking.models.retrieve("pirate") == found["pirate"]


def test_each_name_is_answered_by_its_own_model(asking: OpenAI, base: Path) -> None:
    def said(model: str) -> tuple[str, str]:
        answer = asking.completions.create(model=model, prompt=PROMPT, max_tokens=9, temperature=0)
        return answer.model, answer.choices[0].text

    texts = {}
    for name in ("small", "judge", "pirate"):
        adapters = {} if name == "small" else {None: base.parent / name}
        written = generate(
            load_writer(base, adapters=adapters), PROMPT, tokens=9,
            sampling=Sampling(temperature=0.0),
        )  # fmt: skip
        texts[name] = "".join(written)
    assert len(set(texts.values())) == 3
    # The second time, with what was read before in the slots.
    for name in ("small", "pirate", "judge", "judge", "small", "pirate"):
        assert said(name) == (name, texts[name])


def test_a_stream_tells_the_adapter_s_name(asking: OpenAI) -> None:
    chunks = list(asking.completions.create(
        model="judge", prompt=PROMPT, max_tokens=5, temperature=0, stream=True
    ))  # fmt: skip
    assert {each.model for each in chunks} == {"judge"}


def test_the_page_offers_them(asking: OpenAI) -> None:
    with browsing(str(asking.base_url).removesuffix("v1/")) as page:
        page.wait_for_function("document.getElementById('model').options.length === 3")
        page.click("summary")
        page.fill("#tokens", "5")
        for name in ("small", "pirate"):
            page.click("#fresh")
            page.select_option("#model", name)
            page.fill("#message", "What light?")
            with page.expect_response("**/v1/chat/completions") as response:
                page.press("#message", "Enter")
            assert f'"model":"{name}"' in response.value.text()
            page.wait_for_function("!document.getElementById('send').disabled")
            assert page.locator(".text.assistant").inner_text()


def test_an_unknown_name_is_not_found(asking: OpenAI) -> None:
    with pytest.raises(NotFoundError) as told:
        asking.completions.create(model="parrot", prompt=PROMPT)
    assert told.value.code == "model_not_found"
    assert "ask for small or judge or pirate" in told.value.message
    with pytest.raises(NotFoundError):
        asking.models.retrieve("parrot")


@NATIVE
def test_adapters_are_counted_before_anything_is_loaded(asking: OpenAI, base: Path) -> None:
    folders = [base.parent / name for name in ("pirate", "judge")]
    sized = sizes(named(base, "bf16", print))
    found, without = need(sized, 3, adapters=folders), need(sized, 3)
    assert ", adapters " in str(found) and "adapters" not in str(without)
    assert found.total - without.total == found.adapters > 0
    assert f"takes {found}" in (base.parent / "log").read_text()
    writer = load_writer(base, precision="bf16", adapters=dict(zip("ab", folders, strict=True)))
    assert isinstance(writer, PackedWriter)
    held = sum(each.nbytes for each in writer.adapters.values())
    # Ranks are filled up to fours; the files are in fp32.
    assert held < found.adapters < 2.0 * held
    with pytest.raises(BadInput, match="is no adapter"):
        need(sized, 3, adapters=[base])


@pytest.mark.parametrize("verb", [["generate", "--prompt", PROMPT], ["chat", "--message", PROMPT]])
@pytest.mark.parametrize("guessed", [[], ["--speculate", "3"]], ids=["plain", "guessed"])
def test_generate_and_chat_write_with_one(
    verb: list[str], guessed: list[str], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *options = verb
    told, words = [], [*options, *guessed, "--tokens", "9", "--temperature", "0"]
    for adapters in ([], ["--adapter", str(base.parent / "pirate")]):
        assert main([verb, str(base), *words, *adapters]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] != told[1]
    writer = load_writer(base, adapters={None: base.parent / "pirate"})
    if verb == "generate":
        text = "".join(generate(writer, PROMPT, tokens=9, sampling=Sampling(temperature=0.0)))
        assert told[1] == f"{PROMPT}{text}\n"


def test_what_cannot_stand_beside_the_model_is_told(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base.parent / "long"
    assert main(["serve", str(base), "--port", "0", "--adapter", f"a={folder}"]) == 2
    told = capsys.readouterr().err
    assert f"{folder} is a DoRA" in told
    assert f"narrows export {base} --adapter {folder} --to long-merged" in told
