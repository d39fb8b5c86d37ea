"""Codes and scales laid out in the panels that native/quantized.h computes with.

pack([(rows, slabs), …], bias) → Packed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from narrows.kernels.panels import GROUP, NEST, PANEL, PARTS_MOST, WHOLE, Packed, Part

Slab = tuple[int, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Some rows of a matrix: bits, codes [N,D] uint8, scales, least values and units, which mean what
model/blocks.py says of groups; of 16 bits the values alone, bf16."""


def pack(pieces: Sequence[tuple[int, Iterable[Slab]]], bias_N: Tensor | None = None) -> Packed:
    """From pieces, rows and slabs that have as many; whole panels of all but the last."""
    assert all(rows % PANEL == 0 for rows, _ in pieces[:-1]) and len(pieces) <= PARTS_MOST
    made = [_part(rows, slabs) for rows, slabs in pieces]
    if bias_N is not None:
        bias_N = pad(bias_N.float(), (0, -len(bias_N) % PANEL)).contiguous()
    bias = None if bias_N is None else bias_N.numpy()
    return Packed(tuple(part for part, _ in made), bias, made[0][1])


def _part(rows: int, slabs: Iterable[Slab]) -> tuple[Part, int]:
    """A part and the columns it has; a slab at a time, so that no more lies beside the panels."""
    panels, at = torch.empty(0, 0), 0
    for slab in slabs:
        bits, codes, _, least, units = slab
        made = _panels(slab)
        if at == 0:
            panels = torch.empty(-(-rows // PANEL), made.shape[1], dtype=torch.uint8)
        panels[at : at + len(made)] = made
        at += len(made)
    assert at == len(panels)
    return Part(panels.numpy(), rows, bits, units is not None, least is None), codes.shape[1]


def _panels(slab: Slab) -> Tensor:
    bits, codes_ND, scales, least, units = slab
    lacking = -len(codes_ND) % PANEL
    if bits == WHOLE:
        values_PRCX = pad(codes_ND, (0, 0, 0, lacking)).view(-1, PANEL, codes_ND.shape[1] // 2, 2)
        return values_PRCX.transpose(1, 2).flatten(1).view(torch.uint8)
    G = codes_ND.shape[1] // GROUP
    codes_PGQRC = pad(codes_ND, (0, 0, 0, lacking)).view(-1, PANEL, G, 8, 4).permute(0, 2, 3, 1, 4)
    beside = [_side_by_side(each, G, lacking) for each in (scales, least) if each is not None]
    groups = torch.cat([*_planes(bits, codes_PGQRC), *beside], dim=2)
    if units is None:
        return groups.flatten(1)
    nests = groups.view(len(groups), G // NEST, -1)
    return torch.cat([_side_by_side(units, G // NEST, lacking), nests], dim=2).flatten(1)


def _planes(bits: int, codes_PGQRC: Tensor) -> list[Tensor]:
    """Codes as they lie in a group, flat behind [P,G]."""
    if bits == 8:
        return [codes_PGQRC.flatten(2)]
    low = codes_PGQRC & 15
    planes = [(low[:, :, :4] | low[:, :, 4:] << 4).flatten(2)]
    worth = 1 << torch.arange(8, dtype=torch.uint8)
    for bit in range(4, bits):
        ones = (codes_PGQRC >> bit & 1).flatten(2).unflatten(2, (-1, 8))
        planes.append((ones * worth).sum(3, dtype=torch.uint8))
    return planes


def _side_by_side(numbers: Tensor, groups: int, lacking: int) -> Tensor:
    """What each of 16 rows has so many of for each of its groups, as bytes behind [P,G]: all rows'
    first, then all rows' second.
    """
    whole = pad(numbers, (0, 0, 0, lacking))
    numbers_PRGX = whole.view(-1, PANEL, groups, numbers.shape[1] // groups)
    return numbers_PRGX.permute(0, 2, 3, 1).contiguous().view(torch.uint8).flatten(2)
