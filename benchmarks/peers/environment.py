"""Environments of the peers: one each, made on demand, torch first so that all have one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "peers"
TORCH = "torch==2.13.0"
PACKAGES = {
    "transformers": ("transformers==5.23.0", "accelerate==1.15.0"),
    "transformers_gguf": ("transformers==5.23.0", "accelerate==1.15.0", "gguf>=0.17"),
    "peft": ("transformers==5.23.0", "accelerate==1.15.0", "peft==0.21.2"),
    "litgpt": ("litgpt==0.5.13",),
    "llama_cpp": ("llama-cpp-python==0.3.36",),
    "openvino": ("openvino-genai",),
}
WITHOUT_TORCH = ("llama_cpp", "openvino")
FROM_SOURCE = {"llama_cpp": "llama-cpp-python"}
"""What is compiled for this processor, with its own compiler."""


def python_of(peer: str, *, talk: Callable[[str], None]) -> Path:
    """The interpreter of the peer's environment, made first where it is absent."""
    folder = CACHE / f"environment-{peer}"
    python = folder / "bin" / "python"
    finished = folder / "finished"
    torch = () if peer in WITHOUT_TORCH else (TORCH,)
    wanted = " ".join((*torch, *PACKAGES[peer]))
    if finished.exists() and finished.read_text() == wanted:
        return python
    talk(f"{peer}: making its environment in {folder} (once)")
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet"]
    if torch:
        _run([*install, *torch])
    if peer in FROM_SOURCE:
        install += ["--no-binary", FROM_SOURCE[peer]]
    _run([*install, *torch, *PACKAGES[peer]])
    finished.write_text(wanted)
    return python


def variables(peer: str, *, threads: int) -> dict[str, str]:
    """The process's variables: the peer's thread count, its own compile cache, no network."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(CACHE / f"inductor-{peer}"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed\n{done.stderr[-2000:]}")
