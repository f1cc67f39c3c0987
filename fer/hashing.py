"""The hash that seeds order, weights and random draws: the same in every process and on every platform."""

from __future__ import annotations

import hashlib


def stable_hash(*parts: str | int, bits: int = 64) -> int:
    """A hash that is the same in every process and on every platform, unlike Python's own.

    Args:
        parts: strings and integers; the boundaries between them count.
        bits: size of the result, a multiple of 8 up to 512.
    """
    text = "\x1f".join(f"{type(part).__name__[0]}{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=bits // 8).digest(), "big")
