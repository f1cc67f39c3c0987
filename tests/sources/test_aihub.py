"""AI-Hub set 82: label rules, boxes, splits by person; Korean names in any encoding."""

import json
import os
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer.io.files import FileError
from fer.io.images import decode_image
from fer.labels import DATASET_LABELS, SPACES, named
from fer.sources.aihub import CLASS_NAMES, AiHubConfig, Record, korean, parse_record, read_json_records
from fer.sources.csvfile import RowError

NAMES = SPACES["aihub7"].labels
KOREAN = {
    "기쁨": "happiness",
    "당황": "panic",
    "분노": "anger",
    "불안": "anxiety",
    "상처": "hurt",
    "슬픔": "sadness",
    "중립": "neutral",
}
BOX = {"minX": 2.0, "minY": 3.0, "maxX": 20.0, "maxY": 24.0}


def person(number: int) -> str:
    return f"{number:064x}"


def file_name(who: int, emotion: str = "기쁨", shot: int = 0) -> str:
    return f"{person(who)}_여_20_{emotion}_숙박 및 거주공간_20210126165538-010-{shot:03d}.jpg"


def record(
    who: int | str, emotion: str = "기쁨", votes: str = "", boxes: tuple[Any, ...] = (BOX, BOX, BOX), shot: int = 0
) -> dict[str, Any]:
    """A record as it is distributed, of a person or a file; `votes`: the annotators', or all the same."""
    name = who if isinstance(who, str) else file_name(who, emotion, shot)
    raw: dict[str, Any] = {"filename": name, "gender": "여", "age": 20, "faceExp_uploader": emotion}
    for letter, word, box in zip("ABC", votes.split() or [emotion] * 3, boxes, strict=True):
        raw[f"annot_{letter}"] = {"boxes": box, "faceExp": word}
    return raw


def write(
    root: Path, records: list[dict[str, Any]], emotion: str = "기쁨", *, valid: bool = False, encoding: str = "utf-8"
) -> Path:
    """One emotion's label file and its images, in the folders that AI-Hub names."""
    where, kind, name = ("Validation", "VALID", "validation") if valid else ("Training", "TRAIN", "training")
    dumped = json.dumps(records, ensure_ascii=False).encode(encoding)
    text(root / where / f"[라벨]EMOIMG_{emotion}_{kind}" / f"img_emotion_{name}_data({emotion}).json", dumped)
    for index, one in enumerate(records):
        folder = root / where / f"[원천]EMOIMG_{emotion}_{kind}{'' if valid else '_01'}"
        picture(folder / one["filename"], index, size=30)
    return root


def photo(root: Path, who: int) -> Path:
    return root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01" / file_name(who)


def dataset(root: Path, persons: int = 4, valid: int = 2) -> Path:
    """Every emotion of some persons for training and of others for validation; everybody agrees."""
    for emotion in KOREAN:
        write(root, [record(who, emotion) for who in range(persons)], emotion)
        write(root, [record(who, emotion) for who in range(100, 100 + valid)], emotion, valid=True)
    return root


def found(root: Path, path: Path | list[Path], **options: Any) -> dict[str, str]:
    samples, rejects = read(fetch(root, AiHubConfig, path, **options), AiHubConfig, **options)
    assert not rejects
    return {key.split("_")[0].lstrip("0") + key.split("_")[3]: label for key, label in labels(samples, NAMES).items()}


# ------------------------------------------------------------------------------------------------ layout and names


def test_korean_names_are_mapped_by_name() -> None:
    assert {word: named(word) for word in KOREAN} == KOREAN
    decomposed = {named(unicodedata.normalize("NFD", word)) for word in KOREAN}
    assert decomposed == set(DATASET_LABELS["aihub82"]) == set(NAMES)


def test_the_published_layout_is_read_record_for_record(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AiHubConfig, dataset(tmp_path / "set"))
    samples, rejects = read(raw, AiHubConfig)
    assert (len(samples), rejects) == (7 * 6, [])
    for key, one in samples.items():
        who, _, _, emotion, *_ = key.split("_")
        (face,) = one.faces
        assert NAMES[face.label] == KOREAN[emotion]
        assert one.split == ("test" if int(who, 16) >= 100 else "train")
        assert (face.subject, face.box, one.is_crop) == (who, (2, 3, 20, 24), False)
        assert face.distribution == tuple(float(name == KOREAN[emotion]) for name in NAMES)
    assert about(raw)["persons"] == 6
    assert about(raw)["published"] == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "euc-kr", "cp949"])
def test_label_files_in_korean_encodings_and_endings_in_capitals_are_read(tmp_path: Path, encoding: str) -> None:
    root = write(tmp_path / "set", [record(1)], encoding=encoding)
    path = photo(root, 1)
    path.rename(path.with_suffix(".JPG"))
    assert found(tmp_path, root) == {"1기쁨": "train happiness"}


def test_names_unpacked_on_macos_give_the_same_bytes(tmp_path: Path) -> None:
    dataset(tmp_path / "nfc")
    for path in sorted((tmp_path / "nfc").rglob("*.*")):
        relative = unicodedata.normalize("NFD", str(path.relative_to(tmp_path / "nfc")))
        text(tmp_path / "nfd" / relative, path.read_bytes())
    one, other = (fetch(tmp_path / form[:2], AiHubConfig, tmp_path / form) for form in ("nfc", "nfd"))
    for path in one.glob("*.parquet"):
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.parametrize("encoding", ["cp949", "utf-8"])
def test_delivered_archives_are_opened_where_they_are(tmp_path: Path, encoding: str) -> None:
    plain = dataset(tmp_path / "plain")
    for folder in sorted(plain.glob("*/*")):
        archive = tmp_path / "delivered" / folder.parent.name / f"{folder.name}.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        zipped(folder, archive, encoding=encoding)
    expected = found(tmp_path / "again", plain)
    assert found(tmp_path, tmp_path / "delivered") == expected
    assert found(tmp_path / "list", sorted((tmp_path / "delivered").rglob("*.zip"))) == expected


def test_names_that_an_unpacker_garbled_are_restored(tmp_path: Path) -> None:
    name = file_name(1)
    garbled = os.fsdecode(name.encode("cp949"))
    for form in (name.encode("cp949").decode("cp437"), garbled, unicodedata.normalize("NFD", name)):
        assert korean(form) == name
    assert korean("été.jpg") == "été.jpg"
    root = write(tmp_path / "set", [record(1)])
    photo(root, 1).rename(photo(root, 1).with_name(garbled))
    assert found(tmp_path, root) == {"1기쁨": "train happiness"}


# ------------------------------------------------------------------------------------------------ labels and boxes


@pytest.mark.parametrize(
    ("rule", "votes", "expected"),
    [
        ("folder", "불안 불안 불안", "happiness"),
        ("majority", "불안 기쁨 불안", "anxiety"),
        ("majority", "불안 기쁨 상처", "annotators_disagree"),
        ("majority", "불안 알수없음 불안", "anxiety"),
        ("majority", "알수없음 알수없음 불안", "annotators_cannot_tell"),
        ("majority", "불안 알수없음 기쁨", "annotators_disagree"),
        ("unanimous", "상처 상처 상처", "hurt"),
        ("unanimous", "상처 상처 당황", "annotators_disagree"),
        ("unanimous", "상처 상처 알수없음", "annotators_disagree"),
        ("unanimous", "알수없음 알수없음 알수없음", "annotators_cannot_tell"),
    ],
)
def test_the_label_rule_decides_whose_label_counts(tmp_path: Path, rule: str, votes: str, expected: str) -> None:
    root = write(tmp_path / "set", [record(1, votes=votes), record(2)])
    got = found(tmp_path, root, labels=rule)
    kept = {"1기쁨": f"train {expected}"} if expected in NAMES else {}
    assert got == {**kept, "2기쁨": "train happiness"}
    assert about(tmp_path / "data/raw/set")["excluded"] == ({} if kept else {expected: 1})


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ("기쁨 기쁨 슬픔", {"happiness": 2 / 3, "sadness": 1 / 3}),
        ("알수없음 기쁨 슬픔", {"happiness": 1 / 2, "sadness": 1 / 2}),
        ("알수없음 알수없음 알수없음", None),
    ],
)
def test_the_annotators_votes_are_the_distribution(votes: str, expected: dict[str, float] | None) -> None:
    one = parse_record(record(1, votes=votes)).distribution
    assert (one and {name: share for name, share in zip(CLASS_NAMES, one, strict=True) if share}) == expected


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ((BOX, {**BOX, "minX": 4.0}, {**BOX, "minX": 5.0, "maxY": 30.0}), (4, 3, 20, 24)),
        ((BOX, {**BOX, "minX": -8.0, "minY": -1.0}, {**BOX, "maxX": 2.0}), (1, 1.5, 20, 24)),
        ((BOX, {}, None), (2, 3, 20, 24)),
        (({"minX": 5, "minY": 5, "maxX": 5, "maxY": 9}, {**BOX, "maxX": -1}, {"minX": "a"}), None),
        (({**BOX, "minX": float("nan")}, {**BOX, "maxY": float("inf")}, {**BOX, "maxX": 10**400}), None),
        (({name: str(value) for name, value in BOX.items()}, None, None), (2, 3, 20, 24)),
    ],
)
def test_the_box_is_the_median_of_the_valid_ones(boxes: tuple[Any, ...], expected: tuple[float, ...] | None) -> None:
    assert parse_record(record(1, boxes=boxes)).box == expected


@pytest.mark.parametrize("policy", ["drop", "find"])
def test_images_without_a_valid_box_are_dropped_or_left_to_a_detector(tmp_path: Path, policy: str) -> None:
    root = write(tmp_path / "set", [record(0), record(1), record(2, boxes=(None, {}, {"minX": 1}))])
    raw = fetch(tmp_path, AiHubConfig, root, missing_boxes=policy)
    boxes = [one.faces[0].box for one in read(raw, AiHubConfig)[0].values()]
    assert boxes.count(None) == about(raw)["faces_to_find"] == (policy == "find")
    assert about(raw)["excluded"] == ({"no_valid_box": 1} if policy == "drop" else {})


def test_boxes_fit_the_image_after_its_exif_rotation(tmp_path: Path) -> None:
    box = {"minX": 30, "minY": 5, "maxX": 50, "maxY": 25}
    root = write(tmp_path / "set", [record(1, boxes=(box, box, box))])
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[5:25, 30:50] = 250
    rotated = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 2)))
    exif = rotated.getexif()
    exif[274] = 3
    rotated.save(photo(root, 1), exif=exif, quality=95)
    (one,) = read(fetch(tmp_path, AiHubConfig, root), AiHubConfig)[0].values()
    assert isinstance(one.image, bytes)
    x1, y1, x2, y2 = (int(value) for value in one.faces[0].box or ())
    pixels = decode_image(one.image)
    assert pixels[y1:y2, x1:x2].mean() > 230
    assert pixels[y1 + 10 : y2 + 10, x1 - 25 : x2 - 25].mean() < 60


def test_the_keys_of_ai_hub_s_document_are_read_too() -> None:
    raw = {
        "filename": file_name(1, "슬픔"),
        "faceBB_A": {"boxes": {**BOX, "label": "슬픔"}},
        "faceBB_B": {**BOX, "label": "상처"},
    }
    one = parse_record(raw)
    assert one.votes == ("sadness", "hurt")
    assert (one.uploader, one.label("majority"), one.box) == ("sadness", None, (2, 3, 20, 24))


# ------------------------------------------------------------------------------------------------ splits


def test_splits_by_person_share_nobody_and_stay_when_persons_are_added(tmp_path: Path) -> None:
    def split(persons: int) -> dict[str, str]:
        work, options = tmp_path / str(persons), {"split": "person", "test_fraction": 0.4}
        root = write(work / "set", [record(who, shot=shot) for who in range(persons) for shot in range(2)])
        samples, _ = read(fetch(work, AiHubConfig, root, **options), AiHubConfig, **options)
        return {key: one.split for key, one in samples.items()}

    small, large = split(6), split(12)
    assert {key: large[key] for key in small} == small
    assert set(large.values()) == {"train", "test"}
    by_person = defaultdict(set)
    for key, part in large.items():
        by_person[key[:64]].add(part)
    assert all(len(parts) == 1 for parts in by_person.values())


def test_a_person_in_both_published_splits_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "set", [record(1), record(2)])
    write(root, [record(2, "슬픔")], "슬픔", valid=True)
    raw = fetch(tmp_path, AiHubConfig, root)
    assert about(raw)["persons_in_both_published_splits"] == 1
    assert "1 of 2 persons" in caplog.text
    assert person(2) in caplog.text


def test_a_number_per_class_is_chosen_by_hash_and_shares_nobody(tmp_path: Path) -> None:
    root = dataset(tmp_path / "set", persons=6, valid=4)
    write(root, [record(who, shot=1) for who in (0, 100, 101, 102)], valid=True)
    options: dict[str, Any] = {"per_class": [3, 2], "subset": False, "max_bad_fraction": 0.2}
    raw = fetch(tmp_path, AiHubConfig, root, **options)
    samples, _ = read(raw, AiHubConfig, per_class=[3, 2])
    assert about(raw)["counts"] == about(raw)["published"]
    assert set(about(raw)["counts"]["train"].values()) == {3}
    train, test = (
        {one.faces[0].subject for one in samples.values() if one.split == split} for split in ("train", "test")
    )
    assert train
    assert test
    assert not train & test
    assert about(raw)["excluded"]["person_in_test_too"] > 0
    before = (raw / "source.json").stat().st_mtime_ns
    fetch(tmp_path, AiHubConfig, root, **options)
    assert (raw / "source.json").stat().st_mtime_ns == before  # the same request needs no new download
    with pytest.raises(FileError, match=r"(?s)test.*9.*subset: true"):
        fetch(tmp_path / "more", AiHubConfig, root, **{**options, "per_class": [3, 9]})


# ------------------------------------------------------------------------------------------------ broken data


def test_records_and_images_without_their_partner_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [record(who) for who in range(4)])
    photo(root, 2).unlink()
    picture(photo(root, 9))
    raw = fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.5)
    (bad,) = read(raw, AiHubConfig)[1]
    assert (bad.reason, bad.sample_id) == ("no_label", f"aihub/{file_name(9)}")
    assert about(raw)["excluded"] == {"not_in_this_copy": 1}
    with pytest.raises(FileError, match="missing_file 1, no_label 1"):
        fetch(tmp_path / "whole", AiHubConfig, root, subset=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"filename": None}, "bad_record"),
        ({"filename": "holiday.jpg"}, "bad_name"),
        ({"filename": "\ud800.jpg"}, "bad_name"),
        ({"faceExp_uploader": "행복"}, "bad_label"),
        ({"faceExp_uploader": "슬픔"}, "conflicting_labels"),
        ({"annot_B": {"boxes": BOX, "faceExp": "happyish"}}, "bad_label"),
        ({"annot_B": {"boxes": BOX, "faceExp": 3}}, "bad_label"),
    ],
)
def test_a_bad_record_alone_is_refused_with_its_reason_and_place(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    records = [record(who) for who in range(3)]
    root = write(tmp_path / "set", records)
    path = next(root.rglob("*.json"))
    text(path, json.dumps([records[0], records[1] | change, records[2]]))
    photo(root, 1).unlink()
    samples, (bad,) = read(fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.5), AiHubConfig)
    assert bad.reason == reason
    assert bad.origin.endswith("(기쁨).json:1")
    assert len(samples) == 2


def test_records_of_another_emotion_than_their_file_are_conflicts(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [record(who) for who in range(3)])
    write(root, [record(7)], "슬픔")
    _, rejects = read(fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.6), AiHubConfig)
    assert {reject.reason for reject in rejects} == {"conflicting_labels", "no_label"}


def test_a_record_given_twice_counts_once(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AiHubConfig, write(tmp_path / "set", [record(1)] * 2))
    assert about(raw)["excluded"] == {"listed_twice": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"filename": "a', "truncated"),
        (b"3", "no list of records"),
        (b'{"a": 1}', "no list of records"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe[\x00]\x00", "neither UTF-8 nor CP949|not valid JSON"),
        (b"", "empty"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_a_broken_label_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FileError, match=rf"data\.json.*({message})"):
        read_json_records(text(tmp_path / "data.json", content))


def test_a_list_in_an_object_and_a_single_record_are_lists_of_records(tmp_path: Path) -> None:
    one = record(1)
    for content in ([one], {"data": [one]}, one):
        assert read_json_records(text(tmp_path / "a.json", json.dumps(content))) == [one]


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("Training/[원천]EMOIMG_기쁨_TRAIN_01", r"(?s)no label files.*\[라벨\]EMOIMG_기쁨_TRAIN"),
        ("Training/[라벨]EMOIMG_기쁨_TRAIN", r"EMOIMG_기쁨_TRAIN: no images"),
        ("odd", r"data\.json: .*TRAIN or VALID"),
        ("twice", r"기쁨.*TRAIN_01/.*TRAIN_02/"),
    ],
)
def test_an_incomplete_or_ambiguous_layout_is_refused_by_its_folders(tmp_path: Path, inside: str, message: str) -> None:
    root = write(tmp_path / "set", [record(1)])
    text(root / "odd" / "data.json", "[]")
    picture(root / "odd" / "a.jpg")
    for part in ("TRAIN_01", "TRAIN_02"):
        text(root / "twice" / "TRAIN" / "data.json", "[]")
        picture(root / "twice" / part / file_name(1))
    with pytest.raises(FileError, match=message):
        fetch(tmp_path, AiHubConfig, root / inside)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from([*KOREAN])
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))
_ANNOTATION = _JSON | st.fixed_dictionaries(
    {},
    optional={
        "boxes": _JSON | st.fixed_dictionaries({}, optional=dict.fromkeys((*BOX, "label"), _SCALARS)),
        "faceExp": _SCALARS,
        **dict.fromkeys(BOX, _SCALARS),
    },
)
_RECORD = st.fixed_dictionaries(
    {"filename": _SCALARS | st.just(file_name(1))},
    optional=dict.fromkeys(("annot_A", "annot_B", "annot_C", "faceBB_A", "faceExp_uploader"), _ANNOTATION),
)


@settings(max_examples=150, deadline=None)
@example({"filename": "\ud800" * 3})
@example({"filename": file_name(1), "annot_A": {"boxes": {**BOX, "maxX": 10**400}, "faceExp": "기쁨"}})
@given(_RECORD | _JSON)
def test_any_json_is_a_record_or_a_named_error(raw: Any) -> None:
    try:
        one = parse_record(raw)
    except RowError as error:
        assert error.reason in {"bad_record", "bad_name", "bad_label", "conflicting_labels"}  # noqa: PT017
        return
    assert isinstance(one, Record)
    assert one.uploader in NAMES
    assert one.box is None or (0 <= one.box[0] < one.box[2] and 0 <= one.box[1] < one.box[3])
    assert one.distribution is None or abs(sum(one.distribution) - 1) < 1e-9
