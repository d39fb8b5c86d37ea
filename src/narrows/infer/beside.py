"""Adapters beside a model whose weights they share: each for the texts that ask for it by name.

    read(original, {name: folder}) → {name: TheirAdapter}
    packed(theirs), lows(theirs), adapted(model, theirs)

The name None is that of texts that ask for none.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from narrows.adapt.peft_reading import TheirAdapter, put, read_adapter
from narrows.infer.generate import Folders
from narrows.kernels.low_rank import Bits, Low, PackedAdapter
from narrows.model.opening import Original
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput


def read(original: Original, folders: Folders) -> dict[str | None, TheirAdapter]:
    """Those in folders of PEFT's format; raises BadInput where one was not made for the model, or
    is more than products beside its matrices.
    """
    naming, found = original.published_naming, dict[str | None, TheirAdapter]()
    for name, folder in folders.items():
        found[name] = read_adapter(folder, original.spec, naming)
        if found[name].low.rule == "dora":
            raise BadInput(
                f"{folder} is a DoRA: the lengths of its rows are not applied beside a model",
                hint=f"merge it: narrows export {original.path} --adapter {folder} --to "
                f"{folder.name}-merged",
            )
    return found


def packed(theirs: TheirAdapter) -> PackedAdapter:
    """For the packed decoder, in bf16."""
    return PackedAdapter(theirs.spec.layers, lows(theirs))


def lows(theirs: TheirAdapter) -> dict[tuple[int, str], list[Low]]:
    """What stands beside each matrix of each layer, in bf16."""
    found = dict[tuple[int, str], list[Low]]()
    for layer, matrix, (first, last), a_RD, b_XR in theirs.parts():
        low = Low(first, last, _bits(a_RD), _bits(b_XR))
        found.setdefault((layer, matrix), []).append(low)
    return found


def _bits(values: Tensor) -> Bits:
    return np.asarray(values.to(torch.bfloat16).contiguous().view(torch.uint16).numpy())


def adapted(model: Transformer, theirs: TheirAdapter) -> Transformer:
    """A second model of the same parameters, with the adapter beside its matrices."""
    shared = [*model.parameters(), *model.buffers()]
    another = copy.deepcopy(model, {id(each): each for each in shared})
    put(another, theirs)
    return another.eval().requires_grad_(False)
