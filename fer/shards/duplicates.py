"""The same photograph twice: images that show it in another crop, size, brightness or with a watermark, or mirrored.

Aligned faces are all alike, so a short perceptual hash alone calls thousands of different people equal. The search has
two steps. *Candidates*: of each image the few whose coarse structure, 8 x 8 numbers, is most alike; this tolerates the
shifts of another detector's box. *Proof*: the fine structure of one image's middle is searched for in the other, at
several sizes, and must agree there and wherever the two images overlap. Different people agree in the coarse structure,
not in the fine one.

Measured on 29,859 images of FER2013: see docs/shards.md.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fer.console import progress

SAME = 0.88
"""Agreement, -1 .. 1, from which two images count as the same photograph."""

_SIDE = 32  # px of the fine structure; an image of 48 px has little more
_CELLS = 8  # of the coarse structure, on each side
_MIDDLE = 20  # px of the part that is template in the other image: it may lie 6 px off, a fifth of the image
_CELL = 512  # images of a cell of the index, on average
_PROBES = 40  # cells that an image is compared with
_ROWS = 1024  # images that are compared at once
_PENDING = 2**18  # candidates of those that may wait to be sorted
_UNLOADED = 2**14  # pairs that are proved before the mapped fingerprints are unloaded
_NEIGHBOURS = 16  # candidates of an image: beyond, hardly a pair of FER2013 proves equal
_ALIKE = 0.6  # coarse agreement of candidates
_GATE = 0.6  # fine agreement at equal size below which other sizes are not tried
_PLAUSIBLE = 0.8  # fine agreement of the middle below which the rest of the image is not looked at
_SIZES = (0.94, 1.06)  # tried first; the better of them, where it is better than equal size, twice as far too
_STEP = 0.03  # finer sizes around the best one
_STEPS = 2048  # of the coarse numbers: their products stay exact in float32, in whatever order they are added
_FLAT = 0.5  # gray levels of fine structure below which an image is empty
_SPREAD = 24.0  # gray levels that the fine structure is scaled to

Float32Array = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class Fingerprint(NamedTuple):
    """What the search needs of an image; as a record of `PRINT` 1,280 bytes.

    coarse: float32 (64,), whole numbers, a vector of length 2048; zero for an empty image.
    fine: uint8 (32, 32), what is left of the gray image between 0.5 and 2.5 px, as levels around 128.
    """

    coarse: Float32Array
    fine: Pixels


PRINT = np.dtype([("coarse", np.float32, _CELLS**2), ("fine", np.uint8, (_SIDE, _SIDE))])
"""A `Fingerprint` in an array or a file."""


class Pair(NamedTuple):
    """Two images of one photograph, by number. kind: "exact" (the same pixels), "near" or "mirrored"."""

    first: int
    second: int
    kind: str
    agreement: float


def fingerprint(image: npt.NDArray[Any]) -> Fingerprint:
    """Of a uint8 image, (H, W) or (H, W, 3) BGR, of any size."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    fine = cv2.GaussianBlur(small, (0, 0), 0.5) - cv2.GaussianBlur(small, (0, 0), 2.5)
    spread = float(fine.std())
    if spread < _FLAT:
        return Fingerprint(np.zeros(_CELLS**2, np.float32), np.full((_SIDE, _SIDE), 128, np.uint8))
    levels = np.clip(np.rint(fine * (_SPREAD / spread)) + 128, 0, 255).astype(np.uint8)
    shape = small - cv2.GaussianBlur(small, (0, 0), _SIDE / 6)  # light from one side is no structure
    cells = cv2.resize(shape, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).reshape(-1)
    cells -= cells.mean()
    return Fingerprint(np.rint(cells * (_STEPS / max(float(np.linalg.norm(cells)), 1e-6))), levels)


def near_duplicates(
    prints: Sequence[Fingerprint] | npt.NDArray[np.void], rows: Sequence[int] | None = None
) -> list[Pair]:
    """Every pair that is found to show one photograph, in order of `first`, then `second`.

    A function of the images: the same pairs in whatever order they are given.

    Time grows with the number of images: up to 20,480 each is compared with all, beyond with about as many. Memory: a
    few hundred bytes an image; the fingerprints may be those of a mapped file.

    Args:
        prints: of `PRINT`, or such as an array of it is made of.
        rows: numbers of those that are compared, of which the pairs speak; all by default.
    """
    given, prints = prints, np.asarray(prints, PRINT)
    numbers = np.arange(len(prints)) if rows is None else np.asarray(rows, np.int64)
    digests = np.fromiter((_digest(prints[number]) for number in numbers), np.uint64, len(numbers))
    order = numbers[np.argsort(digests, kind="stable")]
    order = order[[bool(prints["coarse"][number].any()) for number in order]]  # the others are empty
    if not len(order):
        return []
    coarse = prints["coarse"][order]
    _unload(given)
    found: dict[tuple[int, int], Pair] = {}
    for mirrored in (False, True):
        candidates = _candidates(coarse, mirrored)
        with progress(len(candidates), "mirrored images" if mirrored else "similar images", "pair") as bar:
            for number, (one, other) in enumerate(candidates):
                if number % _UNLOADED == 0:
                    _unload(given)
                fine = prints["fine"][order[one]]
                fine = np.ascontiguousarray(fine[:, ::-1]) if mirrored else fine
                score = agreement(fine, prints["fine"][order[other]])
                first, second = sorted((int(order[one]), int(order[other])))
                known = found.get((first, second))
                if score >= SAME and (known is None or score > known.agreement):
                    found[first, second] = Pair(first, second, "mirrored" if mirrored else "near", score)
                bar.update()
    return [found[key] for key in sorted(found)]


def _unload(prints: Any) -> None:
    """Takes the pages of a mapped file out of memory; they are read again where they are needed."""
    if isinstance(prints, np.memmap):
        mapped: Any = prints._mmap  # type: ignore[attr-defined]
        mapped.madvise(mmap.MADV_DONTNEED)


def _digest(record: np.void) -> int:
    return int.from_bytes(hashlib.blake2b(record.tobytes(), digest_size=8).digest())


def _candidates(coarse: Float32Array, mirrored: bool) -> npt.NDArray[np.int64]:
    """int64 (pairs, 2), ascending, the smaller number first: each image with those that are most alike.

    An index of cells: the first 1/512 of the images, whose order is random, are pivots; each image is filed under the
    pivot that it is most like, and compared with all that are filed under the 40 pivots that are most like it.
    """
    count = len(coarse)
    pivots = coarse[: -(-count // _CELL)].T
    home = np.concatenate([np.argmax(part @ pivots, axis=1) for part in _parts(coarse)])
    by_cell = np.argsort(home, kind="stable")
    ends = np.searchsorted(home, np.arange(pivots.shape[1] + 1), sorter=by_cell)
    filed = coarse[by_cell]
    probes = min(_PROBES, pivots.shape[1])
    keys = []
    # Images of one cell side by side: they look into the same cells.
    for images, part in zip(_parts(by_cell), _parts(filed), strict=True):
        if mirrored:
            part = part.reshape(-1, _CELLS, _CELLS)[:, :, ::-1].reshape(part.shape)
        near = part @ pivots
        looked_into = near >= np.partition(near, -probes, axis=1)[:, [-probes]]
        least = np.full(len(part), _ALIKE * _STEPS**2, np.float32)
        found = np.zeros((3, 0), np.int64)  # row of the part, likeness negated, the other image
        for cell in np.flatnonzero(looked_into.any(axis=0)):
            rows, members = np.flatnonzero(looked_into[:, cell]), slice(ends[cell], ends[cell + 1])
            products = part[rows] @ filed[members].T
            hit, member = np.nonzero(products >= least[rows, None])
            row, other = rows[hit], by_cell[members][member]
            alike = np.stack([row, -products[hit, member].astype(np.int64), other])[:, images[row] != other]
            found = np.concatenate([found, alike], axis=1)
            if found.shape[1] > _PENDING:
                found, (full, likeness) = _best(found)
                least[full] = -likeness
        (row, _, other), _ = _best(found)
        keys.append(np.minimum(images[row], other) * count + np.maximum(images[row], other))
    found = np.concatenate(keys)
    del keys, filed  # there are many pairs: no copy more than needed
    found.sort()
    found = found[np.flatnonzero(np.diff(found, prepend=-1))]
    pairs = np.empty((len(found), 2), np.int64)
    np.divmod(found, count, out=(pairs[:, 0], pairs[:, 1]))
    return pairs


def _parts(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (array[start : start + _ROWS] for start in range(0, len(array), _ROWS))


def _best(found: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each row the 16 that are most alike, among equals the lowest numbers; and the last of each row that has 16."""
    found = found[:, np.lexsort(found[::-1])]
    rank = np.arange(found.shape[1]) - np.searchsorted(found[0], found[0])
    return found[:, rank < _NEIGHBOURS], found[:2, rank == _NEIGHBOURS - 1]


def agreement(template: Pixels, other: Pixels) -> float:
    """How well two fine structures agree, -1 .. 1, to three digits; `template` may lie elsewhere, larger or smaller.

    The mean of two correlations: of the middle of `template` where it fits best, and of all that the two images share
    when laid upon each other so. Where the first is low already, it alone.
    """
    best = _fit(template, other, 1.0)
    if best.correlation >= _GATE:
        best = max([best, *(_fit(template, other, size) for size in _SIZES)])
        if best.size != 1.0:
            best = max(best, _fit(template, other, 2 * best.size - 1.0))  # as far again
        if best.correlation >= _PLAUSIBLE:
            best = max([best, *(_fit(template, other, best.size + step) for step in (-_STEP, _STEP))])
            return round((best.correlation + _overlap(template, other, best)) / 2, 3)
    return round(best.correlation, 3)


class _Fit(NamedTuple):
    """How well the middle agrees, at which size, and where the template image's corner then lies in the other, px."""

    correlation: float
    size: float
    x: int
    y: int


def _fit(template: Pixels, other: Pixels, size: float) -> _Fit:
    scaled = _scaled(template, size)
    margin = (len(scaled) - _MIDDLE) // 2
    middle = scaled[margin : margin + _MIDDLE, margin : margin + _MIDDLE]
    _, highest, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(other, middle, cv2.TM_CCOEFF_NORMED))
    return _Fit(highest, size, x - margin, y - margin)


def _overlap(template: Pixels, other: Pixels, fit: _Fit) -> float:
    scaled = _scaled(template, fit.size)
    height, width = scaled.shape
    top, left = max(fit.y, 0), max(fit.x, 0)
    bottom, right = min(fit.y + height, _SIDE), min(fit.x + width, _SIDE)
    one = scaled[top - fit.y : bottom - fit.y, left - fit.x : right - fit.x]
    two = np.ascontiguousarray(other[top:bottom, left:right])
    return float(cv2.matchTemplate(two, one, cv2.TM_CCOEFF_NORMED)[0, 0])


def _scaled(image: Pixels, size: float) -> Pixels:
    side = round(_SIDE * size)
    if side == _SIDE:
        return image
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
