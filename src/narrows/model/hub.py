"""A published model by its name on the Hugging Face hub: out of the cache, or downloaded to it.

HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub, which does the work.
What is whole in the cache is taken as it is, without a question to the hub. Safetensors and
settings are downloaded, never a pickle.
"""

from __future__ import annotations

import re
from pathlib import Path

from narrows.model.folder import CONFIG, FILE, INDEX, files
from narrows.spec.errors import BadInput
from narrows.spec.hub import unreachable

_WANTED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|chat_template\.jinja|tokenizer\.model|(LICENSE|NOTICE)[\w.]*"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def fetched(repository: str) -> Path:
    """The folder of the model; raises BadInput where it cannot be had, or has no safetensors."""
    import huggingface_hub

    cached = _cached(repository)
    if cached is not None:
        return cached
    try:
        # Unlike the list of files, which is asked for six times, in vain where there is no network.
        told = huggingface_hub.HfApi().model_info(repository).siblings or []
        wanted = _wanted(repository, [each.rfilename for each in told])
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
    except BadInput:
        raise
    except Exception as error:  # the library and the network raise a dozen kinds
        raise unreachable(
            f"the model {repository}", error, hint="give a model's folder or a GGUF file"
        ) from None


def _cached(repository: str) -> Path | None:
    """The folder in the cache that the branch main points at, where the model is whole."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, CONFIG)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    try:
        files(folder)
    except BadInput:
        return None
    return folder


def _wanted(repository: str, names: list[str]) -> list[str]:
    if FILE in names or INDEX in names:
        return [name for name in names if _WANTED.fullmatch(name)]
    if others := [name for name in names if name.endswith(".gguf")]:
        raise BadInput(
            f"{repository} has GGUF files, of which one is to be chosen",
            causes=others[:4],
            hint=f"hf download {repository} {others[0]}, and give the path that it prints",
        )
    if others := [name for name in names if name.endswith(_PICKLES)]:
        what = f"{repository} has {others[0]} and no {FILE}: a pickle can run any code"
        raise BadInput(what, hint="take a repository with safetensors of the same model")
    raise BadInput(f"{repository} has no {FILE}", hint="check the name: it is no language model's")
