"""What a model is computed in: what generate, chat and serve say of it."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what weights, and keys and values, are in."""
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8", "int4"],
                        help="of the weights (default: as they lie, or quickest)")  # fmt: skip
    parser.add_argument("--cache", choices=["bf16", "int8"], help="of keys and values (default "
                        "bf16, or fp32 where torch computes so)")  # fmt: skip
