"""Parts of a shape whose keys most families of config.json share."""

from __future__ import annotations

import math
from typing import Any

from narrows.model.settings import Settings
from narrows.spec.model import Banded, Linear, Paired, RMSNorm, Rotary, Scaling, Window, Yarn

Shape = dict[str, Any]


def read_decoder(
    config: Settings, *, head_width: int | None = None, epsilon: float = 1e-6,
    activation: str = "silu", base: float = 10_000.0, share: float = 1.0,
) -> Shape:  # fmt: skip
    """Llama's choices under transformers' usual keys."""
    return {
        **read_rotary(config, head_width=head_width, base=base, share=share),
        "norm": RMSNorm(epsilon=config.number("rms_norm_eps", default=epsilon)),
        "feed_forward": config.feed_forward(
            "hidden_act", "hidden_activation", gated=True, default=activation
        ),
        "biases": False,
    }


def read_rotary(
    config: Settings, *, head_width: int | None = None, base: float = 10_000.0, share: float = 1.0
) -> Shape:
    """Sizes, and positions of the base that attention without a window has."""
    base = config.number("rope_theta", default=base)
    share = config.number("partial_rotary_factor", default=share)
    parameters = config.table("rope_parameters")
    if parameters is not None:
        parameters = parameters.table("full_attention") or parameters
        inner = parameters.number("rope_theta", default=base)
        if config.has("rope_theta") and inner != base:
            what = f"rope_theta is {base}, and within rope_parameters it is {inner}"
            raise config.refusal(what, "they mean the same: delete one of them")
        base, share = inner, parameters.number("partial_rotary_factor", default=share)
    sizes = read_sizes(config, head_width=head_width)
    pairs = int(sizes["head_width"] * share / 2)
    scaling = _scaling(config, parameters or config.table("rope_scaling"), pairs)
    return {
        **sizes,
        "positions": Rotary(base=base, share=share, scaling=scaling),
        "tied_embeddings": config.flag("tie_word_embeddings", default=False),
    }


def _scaling(config: Settings, table: Settings | None, pairs: int) -> Scaling | None:
    """How rotations of so many pairs are slowed. What grows with the sequence ("dynamic") a
    ModelSpec cannot say, and None is the nearest.
    """
    kind = None if table is None else table.data.get("rope_type", table.data.get("type"))
    if table is None or kind in (None, "default", "dynamic"):
        return None
    if kind in ("longrope", "su"):
        return _paired(config, table, pairs)
    factor, own = table.number("factor"), "original_max_position_embeddings"
    match kind:
        case "linear":
            return Linear(factor=factor)
        case "llama3":
            return Banded(
                factor=factor,
                low=table.number("low_freq_factor", default=1.0),
                high=table.number("high_freq_factor", default=4.0),
                positions=table.count(own, default=8192),
            )
        case "yarn":
            growth = yarn_growth(factor, 1.0)
            if (one := table.some("mscale")) and (all_ := table.some("mscale_all_dim")):
                growth = yarn_growth(factor, one) / yarn_growth(factor, all_)
            return Yarn(
                factor=factor,
                positions=table.count(own, default=4096),
                low=table.number("beta_slow", default=1.0),
                high=table.number("beta_fast", default=32.0),
                growth=table.number("attention_factor", default=growth),
                whole_pairs=table.flag("truncate", default=True),
            )
    known = "default, linear, llama3, yarn, dynamic, longrope"
    raise table.refusal(f"rope_type cannot be {kind!r}", f"use one of: {known}")


def _paired(config: Settings, table: Settings, pairs: int) -> Paired:
    """How each of so many is slowed, in the spelling of Phi 3 and of transformers since."""
    own = "original_max_position_embeddings"
    positions = (table if table.has(own) else config).count(own)
    context = config.count("max_position_embeddings")
    short, long = (_factors(table, name, pairs) for name in ("short_factor", "long_factor"))
    growth = table.number("attention_factor", default=paired_growth(context, positions))
    return Paired(short=short, long=long, positions=positions, context=context, growth=growth)


def _factors(table: Settings, name: str, pairs: int) -> tuple[float, ...]:
    found = table.data.get(name)
    if not isinstance(found, list) or not all(_is_factor(each) for each in found):
        raise table.refusal(f"{name} is no list of numbers above 0", f'add "{name}": [1.0, ...]')
    if len(found) != pairs:
        what = f"{name} has {len(found)} numbers, and a head {pairs} pairs to be turned"
        raise table.refusal(what, "take configuration and weights of one model")
    return tuple(map(float, found))


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def paired_growth(context: int, positions: int) -> float:
    """By how much queries and keys grow in such contexts (arXiv:2402.13753)."""
    ratio = context / positions
    return math.sqrt(1 + math.log(ratio) / math.log(positions)) if ratio > 1 < positions else 1.0


def yarn_growth(factor: float, weight: float) -> float:
    """By how much queries and keys grow where contexts do by `factor` (arXiv:2309.00071)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def read_sizes(
    config: Settings, *, head_width: int | None = None, feed_forward: str = "intermediate_size"
) -> Shape:
    """Layers, widths, heads, vocabulary and context."""
    return {
        **read_heads(config, head_width=head_width),
        "layers": config.count("num_hidden_layers"),
        "feed_forward_width": config.count(feed_forward),
        "vocabulary": config.count("vocab_size"),
        "context": config.count("max_position_embeddings"),
    }


def read_heads(
    config: Settings, *, width: tuple[str, ...] = ("hidden_size",),
    heads: tuple[str, ...] = ("num_attention_heads",), head_width: int | None = None,
) -> Shape:  # fmt: skip
    """Width and heads, which must go together."""
    D, N = config.count(*width), config.count(*heads)
    if head_width is None and config.data.get("head_dim") is None and D % N:
        what = f"{width[0]} is {D}, which {heads[0]} = {N} does not divide"
        raise config.refusal(what, "correct one of them, or add head_dim")
    H = config.count("head_dim", default=head_width or D // N)
    K = config.count("num_key_value_heads", default=N)
    if N % K:
        what = f"num_key_value_heads is {K}, which does not divide {heads[0]} = {N}"
        raise config.refusal(what, "correct one of them")
    return {"width": D, "heads": N, "kv_heads": K, "head_width": H}


def read_choice(config: Settings, *names: str) -> tuple[int, int]:
    """How many experts there are, and how many of them a token goes through."""
    count = config.count(*names)
    chosen = config.count("num_experts_per_tok", "experts_per_token")
    if chosen > count:
        what = f"num_experts_per_tok is {chosen}, and {names[0]} is {count}"
        raise config.refusal(what, f"use num_experts_per_tok <= {count}")
    return count, chosen


def read_window(
    config: Settings, *, full_every: int | None = None, default: int | None = None
) -> Window | None:
    """The window of all layers, of all but every `full_every`-th, or of those that are listed."""
    size = None if config.has("sliding_window") else default
    if config.data.get("sliding_window") is not None:
        size = config.count("sliding_window")
    kinds = config.data.get("layer_types")
    if kinds is None:
        return None if size is None else Window(size=size, full_every=full_every)
    layers = config.count("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.refusal(
            f"layer_types does not list {layers} layers", "give as many as num_hidden_layers"
        )
    if unknown := [each for each in kinds if each not in ("full_attention", "sliding_attention")]:
        what = f"layer_types has {unknown[0]!r}, which a ModelSpec cannot say"
        raise config.refusal(what, "use full_attention and sliding_attention alone")
    if "sliding_attention" not in kinds:
        return None
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else None
    regular = [every is None or (layer + 1) % every != 0 for layer in range(layers)]
    if [kind == "sliding_attention" for kind in kinds] != regular:
        what = "layer_types is irregular, and a ModelSpec has full attention in every n-th layer"
        raise config.refusal(what, "make every n-th layer full_attention for the nearest model")
    if size is None:
        raise config.refusal("sliding_window is missing", 'add "sliding_window": 4096')
    return Window(size=size, full_every=every)
