from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import narrows
import narrows.model.presets as module
from narrows.model.presets import plain, preset, presets
from narrows.spec.errors import BadInput
from narrows.spec.record import from_builtins, to_builtins

FILES = sorted(Path(module.__file__).with_suffix("").glob("*.toml"))
ALL = list(presets())

# Parameters that one token meets, as the makers print them: embeddings are counted, but not twice.
ACTIVE = {
    "mixtral-8x7b": 12.9e9, "mixtral-8x22b": 39e9, "qwen3-30b-a3b": 3.3e9,
    "qwen3-235b-a22b": 22e9, "deepseek-v2": 21e9, "deepseek-v2-lite": 2.4e9,
    "deepseek-v3": 37e9, "gpt-oss-20b": 3.6e9, "gpt-oss-120b": 5.1e9, "kimi-k2": 32e9,
    "glm-4.5": 32e9, "glm-4.5-air": 12e9, "minimax-m2": 10e9,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_preset_has_as_many_parameters_as_published(name: str) -> None:
    found = presets()[name]
    assert found.tolerance <= 0.015
    gap = abs(found.spec.parameters - found.parameters)
    assert gap <= found.tolerance * found.parameters, f"{found.spec.parameters:,}"


@pytest.mark.parametrize(("name", "active"), ACTIVE.items())
def test_a_token_meets_as_many_weights_as_published(name: str, active: float) -> None:
    """Makers count the embeddings of the input or not, and round to a digit or two."""
    spec = presets()[name].spec
    embedding = spec.vocabulary * spec.width
    least = spec.product_parameters_active - embedding
    assert 0.93 * active < least + 2 * embedding and least < 1.07 * active


def test_there_are_as_many_as_the_files_say() -> None:
    tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in FILES]
    assert len(ALL) == sum(len(table.keys() - {"shared"}) for table in tables) == 116
    assert {path.stem for path in FILES} >= {
        "gpt2", "gpt3", "bert", "opt", "bloom", "mpt", "llama", "mistral", "qwen", "gemma", "phi",
        "deepseek", "gpt-oss", "olmo", "smollm", "t5",
    }  # fmt: skip


def test_most_counts_are_exact() -> None:
    rounded = [name for name in ALL if presets()[name].tolerance]
    assert len(rounded) == 13
    assert {re.split(r"-|(?<=opt)", name)[0] for name in rounded} == {
        "gpt3", "opt", "mpt", "nemotron"
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_preset_survives_the_file(name: str) -> None:
    found = presets()[name]
    assert found.source
    assert from_builtins(type(found), to_builtins(found)) == found


def test_no_two_presets_share_a_spelling() -> None:
    spellings = [
        (spelling, name)
        for name, found in presets().items()
        for spelling in {plain(each) for each in (name, *found.aliases)}
    ]
    assert len(dict(spellings)) == len(spellings)
    assert all(plain(name) == plain(plain(name)) for name in ALL)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("llama 3.1 8b", "llama-3.1-8b"),
        ("LLAMA3_1-8B", "llama-3.1-8b"),
        ("llama-3-1/8b", "llama-3.1-8b"),
        ("llama3.1:8b", "llama-3.1-8b"),
        ("GPT-2 XL", "gpt2-xl"),
        ("openai-community/gpt2", "gpt2"),
        ("GPT-3", "gpt3-175b"),
        ("gpt3 1.3B", "gpt3-1.3b"),
        ("gpt3 13B", "gpt3-13b"),
        ("facebook/opt-1.3b", "opt-1.3b"),
        ("opt-13b", "opt-13b"),
        ("microsoft/phi-1_5", "phi-1.5"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("qwen2.5 0.5B", "qwen2.5-0.5b"),
    ],
)
def test_spelling_does_not_matter(asked: str, meant: str) -> None:
    assert preset(asked) is presets()[meant]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("llama-3.1-9b", "llama-3.1-8b"),
        ("meta-llama/Lama-3.1-8B", "llama-3.1-8b"),
        ("opt-13", "opt-13b"),
        ("olmo2-14b", "olmo-2-13b"),
        ("", "use one of: bert-base"),
        ("x/", "use one of: bert-base"),
    ],
)
def test_an_unknown_name_suggests_what_was_meant(asked: str, hint: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f'no model "{asked}"')) as caught:
        preset(asked)
    assert caught.value.hint is not None and hint in caught.value.hint


def test_opt_350m_is_refused_rather_than_guessed() -> None:
    with pytest.raises(BadInput):
        preset("opt-350m")


def test_presets_and_configs_are_read_without_torch() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(narrows.__file__).parents[1])!r})\n"
        "from narrows.model import configuration, presets\n"
        "presets.preset('gpt2')\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
