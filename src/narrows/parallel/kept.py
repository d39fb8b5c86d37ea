"""What is in memory while a step runs, counted by the storages that live.

torch's own MemTracker (torch.distributed._tools) does the same for one call of each module alone;
here modules run for each micro-batch, and again where they are recomputed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from narrows.spec.ledger import MemoryPeak

_GATHERED = "workspace"
"""Storages that grow and shrink: fully_shard's whole parameters."""


class Kept:
    """Births, deaths and growth of storages. What nobody names is an activation."""

    def __init__(self) -> None:
        self._serials: Any = WeakIdKeyDictionary()
        self._size: dict[int, int] = {}
        self._kind: dict[int, str] = {}
        self._maker: dict[int, str] = {}
        self._events: list[tuple[int, int]] = []
        self._references: list[weakref.ref[Any]] = []

    def see(self, tensor: Tensor, maker: str = "") -> None:
        """A tensor that is there now, and the operation that made it."""
        storage = tensor.untyped_storage()
        if storage in self._serials:
            return
        serial = len(self._references)
        self._serials[storage], self._maker[serial] = serial, maker
        self._references.append(weakref.ref(storage, lambda _: self._become(serial, 0)))
        self._become(serial, storage.nbytes())

    def name(self, kind: str, tensor: Tensor) -> None:
        """This tensor is of that kind."""
        self.see(tensor)
        self._kind[self._serials[tensor.untyped_storage()]] = kind

    def name_all(self, kind: str) -> None:
        """All that lives and has no kind yet is of this one."""
        for serial, size in self._size.items():
            if size:
                self._kind.setdefault(serial, kind)

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Sees storages that change their size, which no operation tells."""
        plain = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            plain(storage, size)
            serial = self._serials.get(storage)
            if serial is not None:
                self._kind[serial] = _GATHERED
                self._become(serial, storage.nbytes())

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = plain  # type: ignore[method-assign]

    def peak(self) -> tuple[MemoryPeak, dict[str, float]]:
        """Bytes by kind when they were most in all; and of the activations by the operation that
        made them, the most first.
        """
        live = most = place = 0
        for index, (_, change) in enumerate(self._events):
            live += change
            if live > most:
                most, place = live, index
        kinds: dict[str, float] = {}
        makers: dict[str, float] = {}
        for serial, change in self._events[: place + 1]:
            kind = self._kind.get(serial, "activations")
            kinds[kind] = kinds.get(kind, 0.0) + change
            if kind == "activations":
                maker = self._maker[serial]
                makers[maker] = makers.get(maker, 0.0) + change
        ranked = sorted(makers.items(), key=lambda pair: -pair[1])
        return MemoryPeak(**kinds, peak=most), {name: size for name, size in ranked if size}

    def most(self) -> dict[str, float]:
        """The most bytes of each kind at any time."""
        live: dict[str, float] = {}
        most: dict[str, float] = {}
        for serial, change in self._events:
            kind = self._kind.get(serial, "activations")
            live[kind] = live.get(kind, 0.0) + change
            most[kind] = max(most.get(kind, 0.0), live[kind])
        return most

    def _become(self, serial: int, size: int) -> None:
        change = size - self._size.get(serial, 0)
        self._size[serial] = size
        if change:
            self._events.append((serial, change))
