"""The crop of one picture: what comes out, what is refused, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer.faces import align
from fer.faces.config import CropConfig
from fer.faces.crop import FaceCrop, crop_sample
from fer.pictures import decode_image
from fer.sources.base import AnnotatedFace, RawSample, Reject

CONFIG = CropConfig(size=64, min_face_size=20)


def picture(height: int = 160, width: int = 160) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=2).astype(np.uint8)


def face(scale: float = 1.0, shift: tuple[float, float] = (20.0, 30.0), label: int = 3) -> AnnotatedFace:
    points = align.template(64) * scale + np.array(shift)
    x1, y1 = shift
    return AnnotatedFace(
        box=(x1, y1, x1 + 64 * scale, y1 + 64 * scale),
        landmarks=tuple((float(x), float(y)) for x, y in points),
        label=label,
        clean_label=label,
        subject="s1",
        pose=(1.0, 2.0, 3.0),
    )


def sample(*faces: AnnotatedFace, image: bytes | np.ndarray | None = None, is_crop: bool = False) -> RawSample:
    return RawSample(
        key="set/00000007",
        image=picture() if image is None else image,
        split="train",
        faces=faces,
        is_crop=is_crop,
        origin="file:7",
    )


def only(results: list[FaceCrop | Reject]) -> FaceCrop:
    (result,) = results
    assert isinstance(result, FaceCrop)
    return result


def reject(results: list[FaceCrop | Reject]) -> Reject:
    (result,) = results
    assert isinstance(result, Reject)
    return result


def test_a_face_comes_out_aligned_with_its_landmarks_in_crop_pixels() -> None:
    crop = only(crop_sample(sample(face(scale=1.5)), CONFIG))
    assert (crop.height, crop.width, crop.channels) == (64, 64, 3)
    assert np.array(crop.landmarks) == pytest.approx(align.template(64))
    assert decode_image(crop.image).shape == (64, 64, 3)
    row = crop.row()
    assert (row["sample_id"], row["label"], row["subject"], row["split"]) == ("set/00000007", 3, "s1", "train")
    assert row["origin"] == "file:7"


def test_aligned_crops_are_jpeg_without_colour_subsampling_and_keep_rgb_order() -> None:
    red = np.zeros((160, 160, 3), np.uint8)
    red[:, :, 0] = 250
    red[:, :, 1] = 10
    crop = only(crop_sample(sample(face(), image=red), CONFIG))
    assert crop.image[:3] == b"\xff\xd8\xff"
    frame = crop.image.index(b"\xff\xc0")
    assert crop.image[frame + 11] == 0x11, "the luma sampling factor of 4:4:4"
    assert np.abs(decode_image(crop.image)[32, 32].astype(int) - [250, 10, 0]).max() <= 3


def test_grey_pictures_are_stored_with_one_channel() -> None:
    grey = np.repeat(picture()[:, :, :1], 3, axis=2)
    crop = only(crop_sample(sample(face(), image=grey), CONFIG))
    assert crop.channels == 1


def test_every_annotated_face_is_cropped_under_an_id_of_its_own() -> None:
    results = crop_sample(sample(face(label=1), face(shift=(80.0, 80.0), label=2)), CONFIG)
    assert [(r.sample_id, r.detection.annotation.label) for r in results if isinstance(r, FaceCrop)] == [
        ("set/00000007#0", 1),
        ("set/00000007#1", 2),
    ]


def test_a_published_face_crop_passes_through_with_its_pixels_and_size() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    plain = AnnotatedFace(box=(0, 0, 48, 48), landmarks=None, label=0, clean_label=0)
    crop = only(crop_sample(sample(plain, image=pixels, is_crop=True), CONFIG))
    assert crop.image[:4] == b"\x89PNG"
    assert (crop.height, crop.width, crop.channels) == (48, 48, 1)
    assert (decode_image(crop.image)[:, :, 0] == pixels).all()


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (face(scale=0.2), "face_too_small"),
        (face(shift=(500.0, 500.0)), "outside_picture"),
        (replace(face(), landmarks=((5.0, 5.0),) * 5), "bad_landmarks"),
        (replace(face(), box=(float("nan"),) * 4), "face_too_small"),
    ],
)
def test_a_face_that_cannot_be_used_is_refused_with_its_reason(one: AnnotatedFace, reason: str) -> None:
    result = reject(crop_sample(sample(one), CONFIG))
    assert (result.reason, result.sample_id, result.origin) == (reason, "set/00000007", "file:7")
    assert result.detail


def test_a_picture_without_a_face_is_refused_not_forgotten() -> None:
    assert reject(crop_sample(sample(), CONFIG)).reason == "no_face"


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"<html></html>", "not_an_image")])
def test_bytes_that_are_no_picture_are_refused(data: bytes, reason: str) -> None:
    assert reject(crop_sample(sample(face(), image=data), CONFIG)).reason == reason


def test_a_face_without_landmarks_is_cut_by_its_box() -> None:
    crop = only(crop_sample(sample(replace(face(), landmarks=None)), CONFIG))
    assert crop.landmarks is None
    assert crop.height == 64


def test_the_same_sample_gives_the_same_bytes() -> None:
    _, data = cv2.imencode(".png", picture())
    one, two = (only(crop_sample(sample(face(0.7), image=data.tobytes()), CONFIG)) for _ in range(2))
    assert one == two


def test_hostile_pictures_are_refused_or_cropped_never_an_exception(test_data: Path) -> None:
    for path in sorted((test_data / "bad").iterdir()):
        if path.is_file() and path.suffix.lower() in (".jpg", ".png", ".tiff", ".gif", ""):
            results = crop_sample(sample(face(), image=path.read_bytes()), CONFIG)
            assert len(results) == 1, path.name
