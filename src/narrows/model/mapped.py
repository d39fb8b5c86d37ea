"""A file of weights as memory: bytes are read where they are touched, and given back after."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

DAMAGED = "it is damaged: fetch it again"


class Tensors(Protocol):
    """Named tensors of one or several files."""

    def names(self) -> list[str]:
        """Of all of them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one, slowest dimension first."""

    def read(self, name: str, into: Tensor) -> None:
        """Write one to `into`, of the same shape, in whatever type that has."""


class Mapped:
    """The bytes of a file; raises BadInput where it cannot be opened or has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Copied where written, which nobody does: torch takes no memory that is read-only.
                self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise BadInput(f"{path} does not exist", hint="check the path") from None
        except ValueError:
            raise BadInput(f"{path} is empty", hint="fetch it again") from None
        except OSError as error:
            what = f"{path} cannot be read: {error.strerror}"
            raise BadInput(what, hint="check the path") from None

    def __len__(self) -> int:
        return len(self.content)

    def bytes(self, start: int, size: int) -> memoryview:
        """Some of them, without a copy."""
        return memoryview(self.content)[start : start + size]

    def release(self, start: int, size: int) -> None:
        """Give back the memory of bytes that are not needed again soon."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if start + size > first and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED, first, start + size - first)
