"""Face crops of images, and the reasons of refusals."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer.faces import align
from fer.faces import crop as crop_module
from fer.faces.config import CropConfig
from fer.faces.crop import BATCH, FaceCrop, Finder, Unreadable, crop_samples, finder
from fer.faces.detection import Detection, Image
from fer.io.images import decode_image
from fer.sources.base import AnnotatedFace, RawSample, Reject

CONFIG = CropConfig(size=64, min_face_size=20)


def pattern(height: int = 160, width: int = 160) -> np.ndarray:
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
        image=pattern() if image is None else image,
        split="train",
        faces=faces,
        is_crop=is_crop,
        origin="file:7",
    )


def crop_sample(one: RawSample, config: CropConfig, finder: Finder | None = None) -> list[FaceCrop | Reject]:
    (faces,) = crop_samples([one], config, finder)
    return faces


def only(results: list[FaceCrop | Reject]) -> FaceCrop:
    (result,) = results
    assert isinstance(result, FaceCrop)
    return result


def reject(results: list[FaceCrop | Reject]) -> Reject:
    (result,) = results
    assert isinstance(result, Reject)
    return result


def test_face_is_aligned_with_its_landmarks_in_crop_pixels() -> None:
    crop = only(crop_sample(sample(face(scale=1.5)), CONFIG))
    assert (crop.height, crop.width, crop.channels) == (64, 64, 3)
    assert np.array(crop.landmarks) == pytest.approx(align.template(64))
    assert decode_image(crop.image).shape == (64, 64, 3)
    row = crop.row()
    assert (row["sample_id"], row["label"], row["subject"], row["split"]) == ("set/00000007", 3, "s1", "train")
    assert row["origin"] == "file:7"


def test_aligned_crops_are_jpeg_without_chroma_subsampling_in_rgb_order() -> None:
    red = np.zeros((160, 160, 3), np.uint8)
    red[:, :, 0] = 250
    red[:, :, 1] = 10
    crop = only(crop_sample(sample(face(), image=red), CONFIG))
    assert crop.image[:3] == b"\xff\xd8\xff"
    frame = crop.image.index(b"\xff\xc0")
    assert crop.image[frame + 11] == 0x11, "the luma sampling factor of 4:4:4"
    assert np.abs(decode_image(crop.image)[32, 32].astype(int) - [250, 10, 0]).max() <= 3


def test_gray_images_are_stored_with_one_channel() -> None:
    gray = np.repeat(pattern()[:, :, :1], 3, axis=2)
    crop = only(crop_sample(sample(face(), image=gray), CONFIG))
    assert crop.channels == 1


@pytest.mark.parametrize("is_crop", [False, True])
def test_gray_crops_have_the_luma_of_the_color_ones(is_crop: bool) -> None:
    one = sample(face(), is_crop=is_crop)
    color = decode_image(only(crop_sample(one, CONFIG)).image)
    gray = only(crop_sample(one, CONFIG.model_copy(update={"color": "gray"})))
    assert gray.channels == 1
    luma = color @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(decode_image(gray.image)[:, :, 0] - luma).max() <= (1 if is_crop else 12), "but for the JPEGs' errors"


def test_every_annotated_face_has_its_own_id() -> None:
    results = crop_sample(sample(face(label=1), face(shift=(80.0, 80.0), label=2)), CONFIG)
    assert [(r.sample_id, r.face.annotation.label) for r in results if isinstance(r, FaceCrop)] == [
        ("set/00000007#0", 1),
        ("set/00000007#1", 2),
    ]


def test_published_crop_keeps_its_pixels_and_size() -> None:
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
def test_unusable_face_is_refused_with_the_reason(one: AnnotatedFace, reason: str) -> None:
    result = reject(crop_sample(sample(one), CONFIG))
    assert (result.reason, result.sample_id, result.origin) == (reason, "set/00000007", "file:7")
    assert result.detail


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (sample(), "no_face"),
        (sample(face(), image=b""), "empty"),
        (sample(face(), image=b"<html></html>"), "not_an_image"),
    ],
)
def test_image_without_a_face_or_pixels_is_refused(one: RawSample, reason: str) -> None:
    assert reject(crop_sample(one, CONFIG)).reason == reason


def test_face_without_landmarks_is_cropped_by_its_box() -> None:
    crop = only(crop_sample(sample(replace(face(), landmarks=None)), CONFIG))
    assert crop.landmarks is None
    assert crop.height == 64


def test_same_sample_gives_the_same_bytes() -> None:
    _, data = cv2.imencode(".png", pattern())
    one, two = (only(crop_sample(sample(face(0.7), image=data.tobytes()), CONFIG)) for _ in range(2))
    assert one == two


# ------------------------------------------------------------------------------------------------ with a detector

DETECT = CONFIG.model_copy(update={"detector": "yunet"})


class Stub:
    """Finds one face in every image, at a position that depends on the image's size; records its calls."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, ...]]] = []

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        self.calls.append([image.shape for image in images])
        return [[self.face(image)] for image in images]

    @staticmethod
    def face(image: Image) -> Detection:
        x, y = image.shape[1] / 8, image.shape[0] / 8
        points = align.template(64) + np.array([x, y])
        return Detection(
            box=(x, y, x + 64, y + 64), landmarks=tuple((float(a), float(b)) for a, b in points), score=0.875
        )


def unboxed(index: int, height: int = 120, width: int = 160) -> RawSample:
    one = replace(face(), box=None, landmarks=None, pose=None)
    return replace(sample(one, image=pattern(height, width)), key=f"set/{index:03d}", origin=f"file:{index}")


def test_detected_face_has_box_score_landmarks_and_their_pose() -> None:
    crop = only(crop_sample(unboxed(0), DETECT, Finder(detector=Stub(), min_score=0.6)))
    row = crop.row()
    assert row["box"] == [20.0, 15.0, 84.0, 79.0]
    assert row["score"] == 0.875
    assert np.array(crop.landmarks) == pytest.approx(align.template(64))
    assert row["pose"] == list(align.pose_of(Stub.face(pattern(120, 160)).landmarks or ()))


def test_published_pose_is_kept() -> None:
    crop = only(crop_sample(sample(face()), DETECT, Finder(detector=Stub(), min_score=0.6)))
    assert crop.row()["pose"] == [1.0, 2.0, 3.0]
    assert crop.row()["score"] == 0.875


@pytest.mark.parametrize(
    ("placing", "target"),
    [("arcface", align.template(64)), ("poses", (align.POSES["left"] + 0.5) * 64 / align.TEMPLATE_SIZE)],
)
def test_landmarks_that_fit_a_template_are_mapped_onto_it(placing: str, target: align.Points) -> None:
    turned = align.transform(np.array([[0.9, -0.3, 60.0], [0.3, 0.9, 20.0]]), target)
    one = replace(face(), landmarks=tuple((float(x), float(y)) for x, y in turned))
    crop = only(crop_sample(sample(one), CONFIG.model_copy(update={"align": placing})))
    assert np.array(crop.landmarks) == pytest.approx(target, abs=1e-6)


def test_square_crop_uses_the_box_alone_and_keeps_the_landmarks() -> None:
    config = CONFIG.model_copy(update={"align": "square", "box_margin": 0.0})
    crop = only(crop_sample(sample(face(scale=1.5, shift=(10.0, 20.0))), config))
    assert np.array(crop.landmarks) == pytest.approx(align.template(64))
    bare = only(crop_sample(sample(replace(face(scale=1.5, shift=(10.0, 20.0)), landmarks=None)), config))
    assert bare.image == crop.image
    nowhere = replace(face(), landmarks=((float("nan"), 1.0),) * 5)
    assert reject(crop_sample(sample(nowhere), config)).reason == "bad_landmarks"


def test_crop_beyond_the_image_follows_the_border() -> None:
    bright = np.full((160, 160, 3), (200, 180, 160), np.uint8)
    at_the_edge = face(shift=(-30.0, 40.0))
    sides = {
        border: decode_image(
            only(crop_sample(sample(at_the_edge, image=bright), CONFIG.model_copy(update={"border": border}))).image
        )[32, 2]
        for border in ("black", "replicate", "reflect")
    }
    assert sides["black"].max() < 10
    assert np.abs(sides["replicate"].astype(int) - [200, 180, 160]).max() < 4
    assert (sides["replicate"] == sides["reflect"]).all()


def test_images_are_detected_in_batches_and_few_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        for taken in range(1, 100):
            yield unboxed(taken)

    detector = Stub()
    results = crop_samples(endless(), DETECT, Finder(detector=detector, min_score=0.6), threads=2)  # type: ignore[arg-type]
    next(results)
    assert taken <= BATCH + 3
    assert [len(call) for call in detector.calls] == [BATCH]
    monkeypatch.setattr(crop_module, "BATCH_PIXELS", 3 * 120 * 160)
    detector.calls.clear()
    assert len(list(crop_samples(map(unboxed, range(7)), DETECT, Finder(detector=detector, min_score=0.6)))) == 7
    assert [len(call) for call in detector.calls] == [3, 3, 1]


def test_only_images_with_an_open_label_are_searched() -> None:
    detector = Stub()
    plain = replace(sample(replace(face(), landmarks=None), image=pattern(48, 48), is_crop=True), key="set/crop")
    lost = Reject(sample_id="set/lost", reason="missing_file", detail="gone", origin="lost.jpg")
    broken = replace(sample(face(), image=b"not an image"), key="set/broken")
    given = [plain, lost, unboxed(1), broken, replace(sample(), key="set/empty"), unboxed(2, 200, 100)]
    results = list(crop_samples(given, DETECT, Finder(detector=detector, min_score=0.6)))
    assert detector.calls == [[(120, 160, 3), (200, 100, 3)]]
    assert [one.sample_id for faces in results for one in faces] == [
        "set/crop", "set/lost", "set/001", "set/broken", "set/empty", "set/002",
    ]  # fmt: skip
    assert results[1] == [lost]
    assert isinstance(results[3][0], Unreadable)
    assert [reject([results[4][0]]).reason] == ["no_face"]


def test_number_of_decoding_threads_changes_no_crop() -> None:
    def encoded(index: int) -> RawSample:
        return replace(unboxed(index), image=cv2.imencode(".png", pattern(100 + index, 160))[1].tobytes())

    one, three = (
        list(crop_samples(map(encoded, range(40)), DETECT, Finder(detector=Stub(), min_score=0.6), threads=threads))
        for threads in (1, 3)
    )
    assert one == three


def test_every_error_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Stub):
        def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
            if any(image.shape[0] == 77 for image in images):
                raise cv2.error("out of luck")
            return super().detect(images)

    broken = [unboxed(1), unboxed(2), unboxed(3, height=77), unboxed(4)]
    with pytest.raises(RuntimeError, match=r"error in set/003 \(file:3\): out of luck"):
        list(crop_samples(broken, DETECT, Finder(detector=Fails(), min_score=0.6)))
    with pytest.raises(ValueError, match=r"set/001 \(file:1\): a label without a box"):
        crop_sample(unboxed(1), CONFIG)
    monkeypatch.setattr(crop_module, "decode_image", lambda data: 1 / 0)
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError in set/00000007 \(file:7\)"):
        crop_sample(sample(face(), image=b"data"), CONFIG)


def test_image_with_little_color_keeps_it() -> None:
    image = np.full((160, 160, 3), 100, np.uint8)
    image[61, 61] = (200, 50, 50)
    assert only(crop_sample(sample(face(), image=image), CONFIG)).channels == 3


def test_finder_asks_for_lower_scores_and_creates_its_detector_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def create(name: str, **settings: object) -> Stub:
        asked.append((name, settings))
        return Stub()

    monkeypatch.setattr(crop_module, "create_detector", create)
    assert finder(CONFIG, None) is None
    config = DETECT.model_copy(update={"min_score": 0.7, "detector_side": 320})
    first, second = (finder(config, str(tmp_path / "net")) for _ in range(2))
    assert first.min_score == 0.7
    assert first.detector is second.detector
    assert asked == [("yunet", {"weights": tmp_path / "net", "min_score": 0.35, "longest_side": 320})]
