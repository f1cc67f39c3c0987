"""Counter-based randomness: every purpose of every scene has a stream of its own.

A stream is a Philox generator whose key is a hash of (generator version, seed, index, purpose). Nothing is shared
between scenes, so a scene comes out the same in any order, worker or thread; and a change to one purpose (say, the
backdrop) leaves every other (labels, faces) as it was.

Only `Generator.random` is drawn from: 53 random bits scaled by an exact power of two, so a draw, and every label
decided by comparing draws, is the same on every platform. (The normal distribution would bring in the platform's
`exp` and `log`.)
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy.random import Generator, Philox
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

GENERATOR_VERSION: int = 1
"""Part of every key. Raise it when a change makes any scene come out differently."""

T = TypeVar("T")


class _Key(ISeedSequence):
    """A ready-made Philox key. Same stream as `Philox(key=...)`, which would also fetch, and drop, entropy of the
    system."""

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, "<u8")

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> NDArray[np.uint64]:
        assert (n_words, dtype) == (len(self._words), np.uint64)
        return self._words


class Stream:
    """Draws for one purpose, e.g. `Stream(seed, index, "pose")`. The same arguments give the same draws, always."""

    __slots__ = ("_random",)

    def __init__(self, *key: int | str) -> None:
        text = "/".join(map(str, (GENERATOR_VERSION, *key)))
        key_words = _Key(blake2b(text.encode(), digest_size=16).digest())
        self._random = Generator(Philox(key_words)).random  # type: ignore[arg-type]  # numpy's stub knows SeedSequence only

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        return self._random()

    def units(self, *shape: int) -> NDArray[np.float64]:
        """An array of draws, uniform in [0, 1)."""
        return self._random(shape)

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._random()

    def bell(self, spread: float) -> float:
        """Bell-shaped in (-spread, spread) with standard deviation spread / 3: the sum of three uniforms."""
        return (self._random() + self._random() + self._random() - 1.5) * spread / 1.5

    def tent(self, spread: float) -> float:
        """Tent-shaped in (-spread, spread) with standard deviation 0.41 spread: the sum of two uniforms."""
        return (self._random() + self._random() - 1.0) * spread

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def integer(self, bound: int) -> int:
        """Uniform in 0 .. bound - 1."""
        return int(self._random() * bound)

    def choice(self, items: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the items; `weights` need not sum to 1."""
        if weights is None:
            return items[self.integer(len(items))]
        mark = self._random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]
