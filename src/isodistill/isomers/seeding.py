"""Random streams that cannot meet: one per (seed, what it is for), never seed + index."""

from __future__ import annotations

import hashlib
import random

__all__ = ["seeded_rng"]


def seeded_rng(*key: int | str) -> random.Random:
    """A random stream for a key such as ``(seed, family, index)``; equal keys give equal streams.

    The key is hashed (SHA-256), so streams of neighbouring seeds or indices have nothing in common.
    """
    return random.Random(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()))
