"""Models by their names on the hub: a cache made by hand, and a hub that runs here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import narrows
from narrows.model import hugging_face, safetensors
from narrows.model.describing import config
from narrows.model.initial import initialise
from narrows.model.writing import outgoing
from narrows.spec.hub import repository

from .conftest import built, spec

SOURCE = str(Path(narrows.__file__).parent.parent)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/tiny"
OPEN = f"from narrows.model.opening import opened; print(opened({NAME!r}).spec.width)"


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shape = spec()
    made = built(shape)
    initialise(made, 0)
    weights = {name: each.detach() for name, each in made.named_parameters()}
    (folder / "config.json").write_text(json.dumps(config(shape, "llama")))
    safetensors.write(folder, outgoing(weights, shape, hugging_face.LLAMA), torch.float32)
    return folder


def run(program: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PYTHONPATH": SOURCE, "HF_HOME": str(home), **environment}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**kept, **given}
    )


class Hub(ThreadingHTTPServer):
    """Serves files as the hub serves a repository's, and notes which were asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.fetched = files, list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/{NAME}/resolve/"):
            name = path.split("/", 5)[5]
            if self.command == "GET":
                self.server.fetched.append(name)
            self._file(name)
        elif "/tree/" in path:
            self._json([{"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                        for name, content in self.server.files.items()])  # fmt: skip
        elif path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": NAME, "sha": COMMIT, "siblings": siblings})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *given: Any) -> None:
        pass

    def _file(self, name: str) -> None:
        if name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.files[name]
        self._send(content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = model(tmp_path / "repository")
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    server = Hub({**files, "pytorch_model.bin": b"pickle", "train.py": b"", "README.md": b""})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_in_the_cache_is_found_without_a_network(tmp_path: Path) -> None:
    place = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    model(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    found = run(OPEN, tmp_path, HF_HUB_OFFLINE="1")
    assert found.stdout == "64\n", found.stderr
    (place / "snapshots" / COMMIT / "model.safetensors").unlink()
    found = run(OPEN, tmp_path, HF_HUB_OFFLINE="1")
    assert f"BadInput: the model {NAME} could not be had" in found.stderr


def test_a_model_is_downloaded_once_and_no_pickle_with_it(hub: Hub, tmp_path: Path) -> None:
    found = run(OPEN, tmp_path / "home", HF_ENDPOINT=hub.address)
    assert found.stdout == "64\n", found.stderr
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]
    hub.fetched.clear()
    assert run(OPEN, tmp_path / "home", HF_HUB_OFFLINE="1").stdout == "64\n"
    assert run(OPEN, tmp_path / "home", HF_ENDPOINT=hub.address).stdout == "64\n"
    assert hub.fetched == []


def test_a_repository_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    found = run(OPEN, tmp_path / "home", HF_ENDPOINT=hub.address)
    assert "has pytorch_model.bin and no model.safetensors: a pickle can run any" in found.stderr
    hub.files["tiny.Q8_0.gguf"] = b"GGUF"
    found = run(OPEN, tmp_path / "home", HF_ENDPOINT=hub.address)
    assert f"hint: hf download {NAME} tiny.Q8_0.gguf" in found.stderr
    assert hub.fetched == []


def test_what_cannot_be_had_says_why_and_what_to_do(hub: Hub, tmp_path: Path) -> None:
    program = OPEN.replace("tiny", "nothing")
    found = run(program, tmp_path / "home", HF_ENDPOINT=hub.address)
    assert "BadInput: the model somebody/nothing could not be had" in found.stderr
    assert f"HF_ENDPOINT={hub.address}" in found.stderr and "hint: check the name" in found.stderr


def test_names_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert repository("somebody/tiny-1.5B") == "somebody/tiny-1.5B"
    assert repository("hf:models/tiny") == "models/tiny"
    for path in ("models/tiny", "runs/tiny", "tiny", "./a/b", "a/b/c", "/a/b", "~/a", "a/b.gguf",
                 "../b", "hf:tiny"):  # fmt: skip
        assert repository(path) is None, path
