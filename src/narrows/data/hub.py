"""Documents of a dataset on the Hugging Face hub, streamed. Needs the package `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from narrows.data import streams
from narrows.spec.errors import NarrowsError
from narrows.spec.hub import unreachable


def texts(name: str, field: str) -> Iterator[str]:
    """The column `field` of the train split of `name`, "owner/dataset" or "owner/dataset:config".

    HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT are honoured. Raises BadInput where it cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise streams.needs("Hugging Face datasets", "datasets") from None
    path, _, config = name.partition(":")
    try:
        found: Any = datasets.load_dataset(path, config or None, split="train", streaming=True)
        rows = iter(found)
        for row in rows:
            yield _text(row, field, name)
    except (NarrowsError, GeneratorExit):
        raise
    except Exception as error:  # the library and the network raise a dozen kinds
        raise unreachable(
            f"the dataset hf:{name}", error, hint="give a folder of parquet or jsonl files"
        ) from None


def _text(row: dict[str, object], field: str, name: str) -> str:
    value = row.get(field, "")
    if field in row and (value is None or isinstance(value, str)):
        return value or ""
    known = [key for key, inner in row.items() if isinstance(inner, str)]
    raise streams.missing(field, known, f"hf:{name} has no text in the column")
