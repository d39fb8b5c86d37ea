"""A Hugging Face config.json as a ModelSpec, without transformers.

Dropout, first values and precision are not read, nor rotations that are stretched by the length
of the text ("dynamic"), which a ModelSpec cannot say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from narrows.model.families import FAMILIES
from narrows.model.settings import Settings
from narrows.model.shapes import Shape
from narrows.spec.errors import BadInput, nearest
from narrows.spec.model import Learned, ModelSpec
from narrows.spec.record import read


def _as_is(shape: Shape) -> Shape:
    return shape


def read_config(folder: Path | str, context: int | None = None) -> ModelSpec:
    """The shape that a config.json, or the one in a folder, describes; `context` replaces its own.

    Raises BadInput where a key is missing, contradicts another or says what a ModelSpec cannot.
    """
    path = Path(folder)
    return shaped(*family(path / "config.json" if path.is_dir() else path), context)


def family(path: Path) -> tuple[str, Settings]:
    """The family of a config.json, and the settings of its text model."""
    data = read(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: the whole should be a table", hint="give a model's config.json")
    return _kind(Settings(data, str(path)))


def shaped(
    kind: str,
    config: Settings,
    context: int | None = None,
    *,
    then: Callable[[Shape], Shape] = _as_is,
) -> ModelSpec:
    """The shape that settings of a family describe; `then` adds what they do not say."""
    shape = then(FAMILIES[kind](config))
    if context is not None:
        shape = _with_context(shape, context, config)
    window = shape.get("window")
    if window is not None and window.size >= shape["context"]:
        shape = {**shape, "window": None}
    try:
        return ModelSpec(**shape)
    except BadInput as error:
        raise BadInput(f"{config.source}: {error.what}", hint=error.hint) from None


def _kind(config: Settings) -> tuple[str, Settings]:
    """The family, and the settings of its text model."""
    kind = config.data.get("model_type")
    if kind is None:
        raise config.refusal("model_type is missing", 'add "model_type", such as "llama"')
    if kind == "gemma3":
        text = config.table("text_config")
        if text is None:
            raise config.refusal(
                "text_config is missing", "take the config.json of the whole model"
            )
        return "gemma3_text", text
    if not isinstance(kind, str) or kind not in FAMILIES:
        guess = nearest(str(kind), FAMILIES)
        known = f"known: {', '.join(FAMILIES)}"
        raise config.refusal(
            f'model_type "{kind}" is not known',
            f"did you mean {guess}? {known}" if guess else known,
        )
    return kind, config


def _with_context(shape: Shape, context: int, config: Settings) -> Shape:
    positions, own = shape["positions"], shape["context"]
    if isinstance(positions, Learned) and context > own:
        what = f"context is {context}, and the model has embeddings of {own} positions"
        raise config.refusal(what, f"use context <= {own}")
    return {**shape, "context": context}
