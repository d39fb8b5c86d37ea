from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from narrows.kernels import build, load
from narrows.spec.errors import BadInput, RunFailed

needs_compiler = pytest.mark.skipif(
    build.obstacle() is not None, reason=f"no native kernels here: {build.obstacle()}"
)


def compiler(folder: Path, script: str) -> str:
    path = folder / "cxx"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


COPIES = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
"""What a compiler does that takes no time."""


def test_the_readable_kernels_are_always_there() -> None:
    assert load.available()[0] == "torch"
    assert load.load("torch").name == "torch"


def here(flags: set[str], monkeypatch: pytest.MonkeyPatch, system: str = "Linux") -> None:
    """A machine whose processor has these."""
    monkeypatch.setattr(build, "_processor_flags", lambda: flags)
    monkeypatch.setattr(build.platform, "system", lambda: system)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")


@needs_compiler
def test_the_native_kernels_load_where_they_can_be_compiled() -> None:
    assert load.available() == ("torch", "native")
    assert load.load("native").name == "native"


@pytest.mark.parametrize(
    ("flags", "system", "reason"),
    [
        ({"avx2"}, "Linux", "lacks fma, f16c"),
        (set(build.AVX512.needed), "Darwin", "this is Darwin"),
    ],
)
def test_what_is_missing_is_named(
    flags: set[str], system: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(flags, monkeypatch, system)
    assert reason in str(build.obstacle())
    assert load.available() == ("torch",)
    with pytest.raises(BadInput, match=reason) as caught:
        load.load("native")
    assert "layout.kernels=torch" in str(caught.value.hint)


@needs_compiler
@pytest.mark.parametrize("more", [set(), {"avx512f", "avx512bw", "avx512_vnni"}])
def test_avx2_is_enough(more: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here({*build.AVX2.needed, *more}, monkeypatch)
    assert build.level() is build.AVX2 and build.obstacle() is None
    assert load.available() == ("torch", "native")


@needs_compiler
def test_each_level_has_a_library_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CXX", compiler(tmp_path, COPIES))
    names = set()
    for level in (build.AVX512, build.AVX2):
        here(set(level.needed), monkeypatch)
        names.add(build.library().name)
    assert len(names) == 2


def test_no_compiler_is_an_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here(set(build.AVX2.needed), monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in str(build.obstacle())
    with pytest.raises(RunFailed, match=r"no C\+\+ compiler"):
        build.library()


@needs_compiler
def test_a_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    # Compiling in earnest takes seconds and is done by every other test: here it is counted.
    monkeypatch.setenv("CXX", compiler(tmp_path, f'echo "$@" >> {tmp_path}/calls; {COPIES}'))
    first, second = build.library(), build.library()
    assert first == second and first.read_text() == "made\n"
    *compiled, joined = (tmp_path / "calls").read_text().splitlines()
    assert len(compiled) == len(build.SOURCES) and all(" -c " in each for each in compiled)
    assert all(f"{name}.o" in joined for name in build.SOURCES)
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@needs_compiler
def test_processes_that_start_at_once_compile_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    script = f'echo "$@" >> {tmp_path}/calls; sleep 0.05; {COPIES}'
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    program = "from narrows.kernels.build import library; print(library())"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len((tmp_path / "calls").read_text().splitlines()) == len(build.SOURCES) + 1


@needs_compiler
def test_another_compiler_makes_another_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    names = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("CXX", compiler(tmp_path / name, COPIES))
        names.add(build.library().name)
    assert len(names) == 2


@needs_compiler
def test_what_the_compiler_says_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    script = "echo 'error: unrecognized option -mavx512bf16' >&2; exit 1"
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    with pytest.raises(RunFailed) as caught:
        build.library()
    assert caught.value.causes == ("error: unrecognized option -mavx512bf16",)
    assert "layout.kernels=torch" in str(caught.value.hint)
    assert os.listdir(tmp_path / "home/native") == []
