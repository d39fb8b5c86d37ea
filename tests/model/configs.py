"""Configs as repositories have them, and changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from narrows.model.configuration import read_config
from narrows.spec.model import ModelSpec

Config = dict[str, Any]


def read(folder: Path, config: object, context: int | None = None) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder, context)


def changed(config: Config, **changes: object) -> Config:
    """The config with other values; without the keys that are given as `...`."""
    return {key: value for key, value in {**config, **changes}.items() if value is not ...}
