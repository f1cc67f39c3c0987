"""The same photograph is found in another crop, size, light or mirrored; different photographs are left alone."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from fer.shards import duplicates
from fer.shards.duplicates import PRINT, agreement, fingerprint, near_duplicates

Pixels = npt.NDArray[np.uint8]


def photo(seed: int, side: int = 60) -> Pixels:
    """(side, side) gray: spots of all sizes, the larger ones stronger, as in photographs."""
    random = np.random.default_rng(seed)
    layers = [
        contrast * cv2.resize(random.normal(0, 1, (cells, cells)), (side, side), interpolation=cv2.INTER_CUBIC)
        for cells, contrast in ((4, 50), (8, 25), (16, 12), (32, 6))
    ]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def crop(image: Pixels, x: int, y: int, side: int, size: int) -> Pixels:
    return cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)


def marked(image: Pixels) -> Pixels:
    """With a faint watermark."""
    text = cv2.putText(image.copy(), "PHOTO", (2, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.3, 255, 1)
    return cv2.addWeighted(image, 0.8, text, 0.2, 0)


def recompressed(image: Pixels) -> Pixels:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0)


ALTERED: dict[str, Callable[[Pixels], Pixels]] = {
    "moved": lambda image: crop(image, 8, 4, 48, 48),
    "larger": lambda image: crop(image, 7, 7, 46, 112),
    "closer": lambda image: crop(image, 8, 9, 44, 48),
    "darker": lambda image: (crop(image, 6, 6, 48, 48) // 3 + 10).astype(np.uint8),
    "marked": lambda image: marked(crop(image, 6, 6, 48, 48)),
    "recompressed": lambda image: recompressed(crop(image, 6, 6, 48, 48)),
    "color": lambda image: cv2.merge([crop(image, 6, 6, 48, 48)] * 3),
}


@pytest.mark.parametrize("how", ALTERED)
def test_altered_image_is_found(how: str) -> None:
    originals = [crop(photo(seed), 6, 6, 48, 48) for seed in range(12)]
    altered = [ALTERED[how](photo(seed)) for seed in range(12)]
    found = near_duplicates([fingerprint(image) for image in originals + altered])
    assert [(pair.first, pair.second, pair.kind) for pair in found] == [(row, row + 12, "near") for row in range(12)]


def test_mirrored_image_is_found_and_named_so() -> None:
    images = [crop(photo(seed), 6, 6, 48, 48) for seed in range(6)]
    mirrored = [np.ascontiguousarray(ALTERED["moved"](photo(seed))[:, ::-1]) for seed in range(6)]
    found = near_duplicates([fingerprint(image) for image in [*images, *mirrored]])
    assert [(pair.first, pair.second, pair.kind) for pair in found] == [(row, row + 6, "mirrored") for row in range(6)]


def test_different_images_of_one_scene_are_no_duplicates() -> None:
    scene = photo(0, 48).astype(np.float64)
    images = [np.clip(scene + photo(seed, 48) - 128.0, 0, 255).astype(np.uint8) for seed in range(1, 60)]
    assert near_duplicates([fingerprint(image) for image in images]) == []


def test_empty_images_are_no_duplicates_and_too_few_images_are_no_error() -> None:
    empty = [fingerprint(np.full((48, 48), gray, np.uint8)) for gray in (0, 0, 128, 255)]
    assert near_duplicates(empty) == []
    assert near_duplicates(empty[:1]) == []
    assert near_duplicates([]) == []


def test_result_does_not_depend_on_the_order_of_the_images() -> None:
    prints = [fingerprint(ALTERED[how](photo(seed))) for seed in range(8) for how in ("moved", "closer", "marked")]
    order = np.random.default_rng(0).permutation(len(prints))
    pairs = {(pair.first, pair.second) for pair in near_duplicates(prints)}
    shuffled = near_duplicates([prints[index] for index in order])
    assert {tuple(sorted((order[pair.first], order[pair.second]))) for pair in shuffled} == pairs


def test_pairs_speak_of_the_rows_that_were_asked_for_in_an_array_that_may_be_read_only() -> None:
    prints = np.array([fingerprint(ALTERED[how](photo(1))) for how in ("moved", "marked", "closer")], PRINT)
    prints.flags.writeable = False
    assert [pair[:3] for pair in near_duplicates(prints, [2, 0])] == [(0, 2, "near")]


def nearest_of_all(coarse: npt.NDArray[np.float32], mirrored: bool) -> set[tuple[int, int]]:
    """Each image with the 16 that are most alike, by comparing all with all."""
    template = coarse.reshape(-1, 8, 8)[:, :, ::-1].reshape(coarse.shape) if mirrored else coarse
    products = template @ coarse.T
    np.fill_diagonal(products, 0)
    nearest = np.argsort(-products, axis=1, kind="stable")[:, :16]
    return {
        (min(one, other), max(one, other))
        for one, others in enumerate(nearest.tolist())
        for other in others
        if products[one, other] > 0.6 * 2048**2
    }


@pytest.mark.parametrize("mirrored", [False, True])
def test_candidates_are_the_nearest_of_all_images_while_the_cells_are_few(
    mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_CELL", 24)  # 25 cells of 600 images
    monkeypatch.setattr(duplicates, "_PENDING", 500)
    random = np.random.default_rng(0)
    cells = random.normal(0, 1, (600, 64)) + random.normal(0, 1.2, (8, 1, 8)).repeat(75, axis=0).repeat(8, axis=2)[:, 0]
    coarse = np.rint(2048 * cells / np.linalg.norm(cells, axis=1, keepdims=True)).astype(np.float32)
    found = duplicates._candidates(coarse, mirrored)
    assert {(one, other) for one, other in found.tolist()} == nearest_of_all(coarse, mirrored)
    assert len(found) > 1000


def test_nearly_all_true_candidates_are_found_and_few_images_compared_where_the_cells_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "_CELL", 8)  # 250 cells
    random = np.random.default_rng(0)
    cells = random.normal(0, 1, (1000, 64))
    cells = np.concatenate([cells, cells + random.normal(0, 0.5, cells.shape)])
    coarse = np.rint(2048 * cells / np.linalg.norm(cells, axis=1, keepdims=True)).astype(np.float32)
    found = duplicates._candidates(coarse, False)
    assert len({(row, row + 1000) for row in range(1000)} - {(one, other) for one, other in found.tolist()}) <= 10


def test_agreement_of_an_image_with_itself_is_one() -> None:
    fine = fingerprint(photo(3)).fine
    assert agreement(fine, fine) == 1.0


# ------------------------------------------------------------------------------------------------ real faces


@pytest.fixture(scope="module")
def faces(test_data: Path) -> list[Pixels]:
    """The first 500 images of FER2013, each once."""
    table = pq.read_table(test_data / "fer2013" / "fer2013.parquet", columns=["image"]).slice(0, 540)
    images = [cv2.imdecode(np.frombuffer(value.as_py(), np.uint8), 0) for value in table["image"]]
    return list({image.tobytes(): image for image in images}.values())[:500]


def test_no_two_of_500_different_photographs_are_duplicates(faces: list[Pixels]) -> None:
    assert near_duplicates([fingerprint(image) for image in faces]) == []


def test_nine_in_ten_real_faces_are_found_in_another_crop_darker_and_recompressed(faces: list[Pixels]) -> None:
    random = np.random.default_rng(0)
    again = []
    for image in faces:
        x, y, side = random.integers(0, 4), random.integers(0, 4), random.integers(43, 46)
        again.append(recompressed((crop(image, x, y, side, 48) * 0.7).astype(np.uint8)))
    found = {(pair.first, pair.second) for pair in near_duplicates([fingerprint(image) for image in [*faces, *again]])}
    right = {(row, row + len(faces)) for row in range(len(faces))}
    assert len(found & right) >= 0.9 * len(faces)
    assert found - right <= {(445, 51 + len(faces))}  # looked at: 51 and 445 are one photograph, too
