"""Names of repositories on the Hugging Face hub, and what to say where one cannot be had."""

from __future__ import annotations

import os
import re
from pathlib import Path

from narrows.spec.errors import BadInput

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".gguf", ".toml", ".json", ".safetensors")


def repository(text: Path | str) -> str | None:
    """The repository "owner/name" that "hf:owner/name" means, and "owner/name" where that is no
    path: neither it nor a folder "owner" is there, it is not in "runs", nor ends like a file.
    """
    text = str(text)
    name = text.removeprefix("hf:")
    if not _NAME.fullmatch(name):
        return None
    path = Path(name)
    own = path.parent.name == "runs"
    local = own or path.exists() or path.parent.exists() or path.suffix in _FILES
    return None if local and name == text else name


def unreachable(what: str, error: Exception, *, hint: str) -> BadInput:
    """The error to raise: what the library or the network said, and what it was told."""
    causes = [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"]
    for variable in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HOME"):
        if os.environ.get(variable):
            causes.append(f"{variable}={os.environ[variable]}")
    return BadInput(
        f"{what} could not be had from Hugging Face",
        causes=causes,
        hint="check the name and the network; what is private or has terms needs `hf auth login`; "
        f"a mirror is chosen by HF_ENDPOINT; or {hint}",
    )
