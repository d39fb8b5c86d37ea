"""GGUF and safetensors files of a few bytes, as tests want them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TYPES = {bool: 7, int: 4, float: 6, str: 8}
FORMS = {7: "<?", 4: "<I", 6: "<f"}


def text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def fact(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, list):
        kind = TYPES[type(value[0])]
        body = b"".join(bare(kind, each) for each in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + body
    kind = TYPES[type(value)]
    return struct.pack("<I", kind) + bare(kind, value)


def bare(kind: int, value: Any) -> bytes:
    return text(value) if kind == 8 else struct.pack(FORMS[kind], value)


def gguf_bytes(
    facts: Mapping[str, Any], tensors: Mapping[str, tuple[Sequence[int], int, bytes]]
) -> bytes:
    """A file of `tensors`: the shape, slowest dimension first, the type, the bytes of each."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    for key, value in facts.items():
        header += text(key) + fact(value)
    body = b""
    for name, (shape, kind, content) in tensors.items():
        header += text(name) + struct.pack("<I", len(shape))
        header += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        header += struct.pack("<IQ", kind, len(body))
        body += content + bytes(-len(content) % 32)
    return header + bytes(-len(header) % 32) + body


def safetensors_bytes(header: Any, body: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
