"""Random numbers that are a function of what they are for, and of nothing else.

Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC
2011): ten rounds turn a 64-bit key and a 128-bit counter into four 32-bit words. There is no state that threads could
share or a resumed run could lose, and numpy evaluates it for all samples of a batch at once.
"""

import numpy as np
import numpy.typing as npt

from fer.hashing import stable_hash

UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: tuple[npt.ArrayLike, ...], key: UInt64Array | int) -> tuple[UInt64Array, ...]:
    """Four words of 32 bits for each counter and key, which broadcast against each other.

    Args:
        counter: four arrays of words, the lowest first.
        key: 64 bits.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    keys = np.asarray(key, np.uint64)
    k0, k1 = keys & _LOW, keys >> _HALF
    for number in range(_ROUNDS):
        bumped0 = (k0 + np.uint64(number * _WEYL[0] & 0xFFFFFFFF)) & _LOW
        bumped1 = (k1 + np.uint64(number * _WEYL[1] & 0xFFFFFFFF)) & _LOW
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ bumped0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ bumped1,
            product0 & _LOW,
        )
    return c0, c1, c2, c3


def sample_keys(seed: int, epoch: int, rows: npt.NDArray[np.int64], repeats: npt.NDArray[np.int64]) -> UInt64Array:
    """uint64 (B,): the key of each sample's augmentation.

    Args:
        rows: (B,) rows of the split, below 2**32.
        repeats: (B,) how often the row came before in this epoch.
    """
    low, high, _, _ = philox((rows, repeats, 0, 0), stable_hash("fer.augment", seed, epoch))
    return low | (high << _HALF)


def uniforms(keys: UInt64Array, slots: npt.NDArray[np.int64]) -> Float64Array:
    """Numbers in [0, 1), multiples of 2**-32.

    Args:
        keys: (B,), of the samples.
        slots: (N, 2): number of a transform, and number of a block of four numbers within it.

    Returns:
        (B, 4 N): the blocks side by side.
    """
    words = philox((slots[:, 1], slots[:, 0], 0, 0), keys[:, None])
    return np.asarray(np.stack(words, axis=-1).reshape(len(keys), -1) * 2.0**-32, np.float64)
