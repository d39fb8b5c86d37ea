"""The files of a published model in its folder, and what they are called.

files(folder) → its safetensors;   digest(files) changes when they do
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from narrows.model.mapped import DAMAGED
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.record import Record
from narrows.spec.record import read as read_record

CONFIG, OWN = "config.json", "model.toml"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
"""Of a folder of PEFT's."""
PLAN = "plan.toml"
"""A run's, whose folder is no published model's."""
_ENDS_BYTES = 1 << 20


class Own(Record):
    """The model.toml beside weights by our own names: a shape, and the family that it is of."""

    family: str
    model: ModelSpec


def files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder; raises BadInput where there are none, or one that
    the index names is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / FILE).is_file():
            return [folder / FILE]
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
                        for path in folder.glob(pattern))  # fmt: skip
        if others:
            what = f"{folder} has {others[0]} and no {FILE}: a pickle can run any code"
            raise BadInput(what, hint="take the safetensors of the same model")
        raise BadInput(f"{folder} has no {FILE}", hint="fetch the weights into the folder")
    content = read_record(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(each, str) for each in places.values())
    ):
        raise BadInput(f"{index} has no weight_map from tensors to files", hint=DAMAGED)
    found = sorted({folder / name for name in places.values()})
    for path in found:
        if path.parent != folder:
            raise BadInput(f"{index} names {path}, outside of the folder", hint=DAMAGED)
        if not path.is_file():
            raise BadInput(f"{path}, which {INDEX} names, is missing", hint="fetch it again")
    return found


def digest(paths: Iterable[Path]) -> str:
    """Changes when the files do: of their names, sizes, first and last bytes."""
    said = hashlib.sha256()
    for path in paths:
        # A link to a file, such as the hub's cache has, is the file.
        said.update(f"{path.resolve().name} {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            said.update(file.read(_ENDS_BYTES))
            file.seek(-min(_ENDS_BYTES, path.stat().st_size), os.SEEK_END)
            said.update(file.read())
    return said.hexdigest()[:24]
