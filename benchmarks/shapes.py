"""The model of a row: a known one by its name, else what the row's sizes make of it."""

from __future__ import annotations

import re
from difflib import get_close_matches

import msgspec
from cells import Row, size

from narrows.model.presets import preset, presets
from narrows.spec.errors import BadInput
from narrows.spec.model import Alibi, Experts, ModelSpec, gpt2, llama

_VOCABULARY = 50304
# Models known by their size as experts of as many parameters: billions in all, layers, width,
# experts and how many a token meets. Hybrids of attention and state space, which itself is not
# modelled (NVIDIA, Nemotron 3 white paper, 2025-12), and sparse attention (NVIDIA, NeMo AutoModel,
# DeepSeek-V4-Flash, 2026).
_BY_SIZE = {
    "nemotron_3_nano": (31.6, 52, 2688, 128, 8), "nemotron_3_super": (120.0, 88, 4096, 128, 8),
    "nemotron_3_ultra": (500.0, 108, 8192, 128, 8), "deepseekv4_flash": (284.0, 43, 4096, 256, 6),
}  # fmt: skip
# How alike two names must be for one to stand for the other.
_ALIKE = 0.5
# Models that are tuned often and no presets: layers, width, heads, vocabulary, feed-forward width
# (their configurations on Hugging Face).
_TUNED = {
    "stablelm-alpha-3b": (16, 4096, 32, 50688, 16384),
    "stablelm-alpha-7b": (16, 6144, 48, 50432, 24576),
    "pythia-1b": (16, 2048, 8, 50304, 8192), "pythia-2.8b": (32, 2560, 32, 50304, 10240),
    "pythia-6.9b": (32, 4096, 32, 50432, 16384), "pythia-12b": (36, 5120, 40, 50688, 20480),
    "gpt-j-6b": (28, 4096, 16, 50400, 16384), "gpt-neox-20b": (44, 6144, 64, 50432, 24576),
    "tinyllama-1.1b": (22, 2048, 32, 32000, 5632),
}  # fmt: skip


def model_of(row: Row) -> ModelSpec:
    """The model by its name where it is a known one, else by the sizes that the row gives."""
    context = int(size(row, "seq_len") or 2048)
    name = row["model"]
    if row.get("kind") in ("finetune", "inference") and not re.search(r"\d[bm]\b", name.lower()):
        name += f"-{row['params_B']}b"
    try:
        known = preset(name).spec
        same = (size(row, "n_layers") or known.layers) == known.layers
        if same and (size(row, "d_model") or known.width) == known.width:
            vocabulary = int(size(row, "vocab") or known.vocabulary)
            known = msgspec.structs.replace(known, context=context, vocabulary=vocabulary)
            return _with_its_kernel(row, known)
    except BadInput:
        pass
    if known_size := _BY_SIZE.get(re.sub(r"\W+", "_", row["model"].lower())):
        billions, *sizes = known_size
        return of_experts(1e9 * billions, *sizes, context=context)
    layers, width = size(row, "n_layers"), size(row, "d_model")
    scale = re.fullmatch(r"maxtext-(\d+)b", row["model"].lower())
    if layers is None and scale:
        return _scaled(int(scale[1]), context)
    if layers is None and (sizes := _TUNED.get(re.sub(r"\W+", "-", name.lower()))):
        names = ("n_layers", "d_model", "n_heads", "vocab", "d_ff")
        row = {**row, **dict(zip(names, map(str, sizes), strict=True))}
        layers, width = sizes[:2]
    if layers is None or width is None:
        billions_told = _billions(row)
        if billions_told is None:
            return model_of({**row, "model": _nearest(row["model"])})
        # Of a model known by its size alone: 12 L D² parameters, 128 of width for each layer.
        layers = max(1.0, round((1e9 * billions_told / 12 / 128**2) ** (1 / 3)))
        width = 128 * layers
    gated = "glu" in row["ffn_kind"] or "llama" in row["model"].lower()
    heads = _heads(row, int(width), gated)
    feed = size(row, "d_ff") or (4 * width if not gated else 8 / 3 * width)
    make = llama if gated else gpt2
    model = make(
        layers=int(layers), width=int(width), heads=heads,
        vocabulary=int(size(row, "vocab") or _VOCABULARY), context=context,
    )  # fmt: skip
    shared = int(size(row, "n_kv_heads") or heads)
    changes: dict[str, object] = {
        "kv_heads": shared if heads % shared == 0 else heads, "feed_forward_width": int(feed),
    }  # fmt: skip
    experts = re.search(r"moe(\d+)top(\d+)(?:\+(\d+)sh)?", row["ffn_kind"])
    if experts:
        changes["experts"] = Experts(
            count=int(experts[1]), chosen=int(experts[2]), width=int(feed),
            shared=int(experts[3] or 0),
        )  # fmt: skip
    return _with_its_kernel(row, msgspec.structs.replace(model, **changes))


def _with_its_kernel(row: Row, model: ModelSpec) -> ModelSpec:
    """MPT of any size attends by the Triton kernel that takes a bias, whether it has one or not
    (`attn_impl: triton` in scripts/train/yamls/pretrain of mosaicml/llm-foundry).
    """
    if row["model"].lower().startswith(("mpt", "bloom")):
        return msgspec.structs.replace(model, positions=Alibi())
    return model


def _scaled(billions: int, context: int) -> ModelSpec:
    """MaxText's own model of so many billions, a power of two: heads and feed-forward width, width
    and layers are doubled in turn (`get_individual_scales` of MaxText/pyconfig.py).
    """
    often, rest = divmod(billions.bit_length() - 1, 3)
    wide = 2 ** (often + (rest > 0))
    common = llama(
        layers=16 * 2**often, width=2048 * 2 ** (often + (rest > 1)), heads=16 * wide,
        vocabulary=32_000, context=context, feed_forward_width=7168 * wide, tied_embeddings=False,
    )  # fmt: skip
    return msgspec.structs.replace(common, head_width=128)


def _billions(row: Row) -> float | None:
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bm])\b", row["model"].lower())
    by_name = float(named[1]) / {"b": 1.0, "m": 1e3}[named[2]] if named else None
    return size(row, "params_B") or by_name or None


def _nearest(name: str) -> str:
    """Of a model whose sizes are told nowhere, the known one whose name is most alike."""
    known = (*_BY_SIZE, *presets())
    found = get_close_matches(name.lower(), known, 1, _ALIKE) if name else []
    if not found or found[0] == name:
        raise BadInput(
            f"{name} is not among the presets, and the row gives no sizes",
            hint="add n_layers and d_model, or params_B",
        )
    return found[0]


def _heads(row: Row, width: int, gated: bool) -> int:
    """As told, or of 128 each; of a gated model, whose positions turn pairs, of an even width."""
    told = re.search(r"n_heads (\d+) unless", row.get("inferred", ""))
    wanted = size(row, "n_heads") or (float(told[1]) if told else max(1.0, round(width / 128)))
    fitting = [n for n in range(1, width + 1) if width % n == 0 and width // n % 2 == 0]
    if not gated or not fitting or int(wanted) in fitting:
        return int(wanted)
    return min(fitting, key=lambda n: abs(n - wanted))


def of_experts(
    parameters: float, layers: int, width: int, count: int = 128, chosen: int = 8, *, context: int
) -> ModelSpec:
    """A model of so many experts, known by its size alone."""
    common = llama(
        layers=layers, width=width, heads=max(1, width // 128), kv_heads=1,
        vocabulary=131_072, context=context, tied_embeddings=False,
    )  # fmt: skip
    attention = 2 * width * width * layers
    routed = parameters - attention - common.embedding_parameters
    each = max(64, round(routed / layers / count / (3 * width)))
    return msgspec.structs.replace(common, experts=Experts(count=count, chosen=chosen, width=each))
