"""AI-Hub set 82: whose word counts, which box, who is in which split; Korean names however they were written."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer.config import ConfigError, parse
from fer.io.files import FileError
from fer.io.images import decode_image
from fer.labels import DATASET_LABELS, SPACES, named
from fer.sources.aihub import AiHubConfig, korean
from fer.sources.aihub_records import CLASS_NAMES, Record, RecordError, parse_box, parse_record, read_json_records

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


def file_name(who: int, emotion: str, shot: int = 0) -> str:
    return f"{person(who)}_여_20_{emotion}_숙박 및 거주공간_20210126165538-010-{shot:03d}.jpg"


def record(name: str, emotion: str, votes: str = "", boxes: tuple[Any, ...] = (BOX, BOX, BOX)) -> dict[str, Any]:
    """A record as it is distributed; `votes` are the annotators' words with blanks between, or all the same."""
    words = votes.split() or [emotion] * 3
    raw: dict[str, Any] = {"filename": name, "gender": "여", "age": 20, "faceExp_uploader": emotion}
    for letter, word, box in zip("ABC", words, boxes, strict=True):
        raw[f"annot_{letter}"] = {"boxes": box, "faceExp": word}
    return raw


def write(root: Path, emotion: str, records: list[dict[str, Any]], *, valid: bool = False, encoding: str = "") -> Path:
    """One emotion's label file and its pictures, in the folders that AI-Hub names."""
    where, kind, about_what = ("Validation", "VALID", "validation") if valid else ("Training", "TRAIN", "training")
    part = "" if valid else "_01"
    dumped = json.dumps(records, ensure_ascii=False).encode(encoding or "utf-8")
    text(root / where / f"[라벨]EMOIMG_{emotion}_{kind}" / f"img_emotion_{about_what}_data({emotion}).json", dumped)
    for index, one in enumerate(records):
        picture(root / where / f"[원천]EMOIMG_{emotion}_{kind}{part}" / one["filename"], index, size=30)
    return root


def dataset(root: Path, persons: int = 4, valid: int = 2) -> Path:
    """Every emotion of some persons for training and of others for validation; everybody agrees."""
    for emotion in KOREAN:
        write(root, emotion, [record(file_name(who, emotion), emotion) for who in range(persons)])
        later = [record(file_name(who, emotion), emotion) for who in range(100, 100 + valid)]
        write(root, emotion, later, valid=True)
    return root


def found(root: Path, path: Path | list[Path], **options: Any) -> dict[str, str]:
    samples, rejects = read(fetch(root, AiHubConfig, path, **options), AiHubConfig, **options)
    assert not rejects
    return {key.split("_")[0].lstrip("0") + key.split("_")[3]: label for key, label in labels(samples, NAMES).items()}


def test_korean_names_are_mapped_by_name() -> None:
    assert {word: named(word) for word in KOREAN} == KOREAN
    assert (
        {named(unicodedata.normalize("NFD", word)) for word in KOREAN} == set(DATASET_LABELS["aihub82"]) == set(NAMES)
    )


def test_the_published_layout_is_read_record_for_record(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AiHubConfig, dataset(tmp_path / "set"))
    samples, rejects = read(raw, AiHubConfig)
    assert not rejects
    assert len(samples) == 7 * 6
    for key, one in samples.items():
        who, _, _, emotion, *_ = key.split("_")
        (face,) = one.faces
        assert NAMES[face.label] == KOREAN[emotion]
        assert one.split == ("test" if int(who, 16) >= 100 else "train")
        assert (face.subject, face.box, one.is_crop) == (who, (2, 3, 20, 24), False)
        assert face.distribution == tuple(float(name == KOREAN[emotion]) for name in NAMES)
    assert about(raw)["persons"] == 6
    assert about(raw)["published"] == {}


@pytest.mark.parametrize(
    ("policy", "votes", "meant"),
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
def test_the_policy_says_whose_word_counts(tmp_path: Path, policy: str, votes: str, meant: str) -> None:
    root = write(
        tmp_path / "set", "기쁨", [record(file_name(1, "기쁨"), "기쁨", votes), record(file_name(2, "기쁨"), "기쁨")]
    )
    raw = fetch(tmp_path, AiHubConfig, root, labels=policy)
    samples, _ = read(raw, AiHubConfig, labels=policy)
    told = {key[:64].lstrip("0"): label.split()[1] for key, label in labels(samples, NAMES).items()}
    if meant in NAMES:
        assert told == {"1": meant, "2": "happiness"}
    else:
        assert told == {"2": "happiness"}
        assert about(raw)["excluded"] == {meant: 1}


def test_the_annotators_shares_are_the_distribution(tmp_path: Path) -> None:
    def shares(votes: str) -> dict[str, float] | None:
        one = parse_record(record(file_name(1, "기쁨"), "기쁨", votes)).distribution
        return one and {name: share for name, share in zip(CLASS_NAMES, one, strict=True) if share}

    assert shares("기쁨 기쁨 슬픔") == {"happiness": 2 / 3, "sadness": 1 / 3}
    assert shares("알수없음 기쁨 슬픔") == {"happiness": 1 / 2, "sadness": 1 / 2}
    assert shares("알수없음 알수없음 알수없음") is None


@pytest.mark.parametrize(
    ("boxes", "meant"),
    [
        ((BOX, {**BOX, "minX": 4.0}, {**BOX, "minX": 5.0, "maxY": 30.0}), (4, 3, 20, 24)),
        ((BOX, {**BOX, "minX": -8.0, "minY": -1.0}, {**BOX, "maxX": 2.0}), (1, 1.5, 20, 24)),
        ((BOX, {}, None), (2, 3, 20, 24)),
        (({"minX": 5, "minY": 5, "maxX": 5, "maxY": 9}, {**BOX, "maxX": -1}, {"minX": "a"}), None),
        (({**BOX, "minX": float("nan")}, {**BOX, "maxY": float("inf")}, {**BOX, "maxX": 10**400}), None),
        (({name: str(value) for name, value in BOX.items()}, None, None), (2, 3, 20, 24)),
    ],
)
def test_the_box_is_the_median_of_the_valid_ones(boxes: tuple[Any, ...], meant: tuple[float, ...] | None) -> None:
    assert parse_record(record(file_name(1, "기쁨"), "기쁨", boxes=boxes)).box == meant


@pytest.mark.parametrize("policy", ["drop", "find"])
def test_pictures_without_a_valid_box_are_dropped_or_left_to_a_detector(tmp_path: Path, policy: str) -> None:
    records = [record(file_name(who, "기쁨"), "기쁨") for who in range(2)]
    root = write(
        tmp_path / "set", "기쁨", [*records, record(file_name(2, "기쁨"), "기쁨", boxes=(None, {}, {"minX": 1}))]
    )
    raw = fetch(tmp_path, AiHubConfig, root, missing_boxes=policy)
    boxes = [one.faces[0].box for one in read(raw, AiHubConfig)[0].values()]
    assert boxes.count(None) == about(raw)["faces_to_find"] == (policy == "find")
    assert about(raw)["excluded"] == ({"no_valid_box": 1} if policy == "drop" else {})


def test_endings_in_capitals_match_the_records(tmp_path: Path) -> None:
    name = file_name(1, "기쁨")
    root = write(tmp_path / "set", "기쁨", [record(name, "기쁨")])
    folder = root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01"
    (folder / name).rename(folder / name.replace(".jpg", ".JPG"))
    assert found(tmp_path, root) == {"1기쁨": "train happiness"}


def test_the_names_of_ai_hub_s_document_are_understood_too() -> None:
    raw = {
        "filename": file_name(1, "슬픔"),
        "faceBB_A": {"boxes": {**BOX, "label": "슬픔"}},
        "faceBB_B": {**BOX, "label": "상처"},
    }
    one = parse_record(raw)
    assert one.votes == ("sadness", "hurt")
    assert (one.uploader, one.majority, one.box) == ("sadness", None, (2, 3, 20, 24))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "euc-kr", "cp949"])
def test_label_files_converted_to_korean_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(1, "기쁨"), "기쁨")], encoding=encoding)
    assert found(tmp_path, root) == {"1기쁨": "train happiness"}


def test_names_unpacked_on_macos_match_the_records(tmp_path: Path) -> None:
    dataset(tmp_path / "nfc")
    for path in sorted((tmp_path / "nfc").rglob("*.*")):
        relative = unicodedata.normalize("NFD", str(path.relative_to(tmp_path / "nfc")))
        text(tmp_path / "nfd" / relative, path.read_bytes())
    one = fetch(tmp_path / "a", AiHubConfig, tmp_path / "nfc")
    other = fetch(tmp_path / "b", AiHubConfig, tmp_path / "nfd")
    for path in one.glob("*.parquet"):
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.parametrize("encoding", ["cp949", "utf-8"])
def test_the_archives_as_they_are_delivered_are_opened_where_they_lie(tmp_path: Path, encoding: str) -> None:
    dataset(tmp_path / "plain")
    for folder in sorted((tmp_path / "plain").glob("*/*")):
        archive = tmp_path / "delivered" / folder.parent.name / f"{folder.name}.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        zipped(folder, archive, encoding=encoding)
    assert found(tmp_path, tmp_path / "delivered") == found(tmp_path / "again", tmp_path / "plain")
    parts = sorted((tmp_path / "delivered").rglob("*.zip"))
    assert found(tmp_path / "list", parts) == found(tmp_path / "again", tmp_path / "plain")


def test_names_that_an_unpacker_garbled_are_put_right(tmp_path: Path) -> None:
    name = file_name(1, "기쁨")
    assert korean(name.encode("cp949").decode("cp437")) == name
    assert korean(os.fsdecode(name.encode("cp949"))) == name
    assert korean(unicodedata.normalize("NFD", name)) == name
    assert korean("été.jpg") == "été.jpg"
    root = write(tmp_path / "set", "기쁨", [record(name, "기쁨")])
    folder = root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01"
    os.rename(folder / name, folder / os.fsdecode(name.encode("cp949")))
    assert found(tmp_path, root) == {"1기쁨": "train happiness"}


def test_boxes_fit_the_picture_after_its_exif_rotation(tmp_path: Path) -> None:
    name = file_name(1, "기쁨")
    box = {"minX": 30, "minY": 5, "maxX": 50, "maxY": 25}
    root = write(tmp_path / "set", "기쁨", [record(name, "기쁨", boxes=(box, box, box))])
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[5:25, 30:50] = 250
    rotated = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 2)))
    exif = rotated.getexif()
    exif[274] = 3
    rotated.save(root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01" / name, exif=exif, quality=95)
    (one,) = read(fetch(tmp_path, AiHubConfig, root), AiHubConfig)[0].values()
    assert isinstance(one.image, bytes)
    x1, y1, x2, y2 = (int(value) for value in one.faces[0].box or ())
    pixels = decode_image(one.image)
    assert pixels[y1:y2, x1:x2].mean() > 230
    assert pixels[y1 + 10 : y2 + 10, x1 - 25 : x2 - 25].mean() < 60


def test_splits_by_person_share_nobody_and_stay_when_people_are_added(tmp_path: Path) -> None:
    def split(people: int, name: str) -> dict[str, str]:
        root = tmp_path / name / "set"
        write(
            root, "기쁨", [record(file_name(who, "기쁨", shot), "기쁨") for who in range(people) for shot in range(2)]
        )
        options = {"split": "person", "test_fraction": 0.4}
        samples, _ = read(fetch(tmp_path / name, AiHubConfig, root, **options), AiHubConfig, **options)
        return {key: one.split for key, one in samples.items()}

    small, large = split(6, "small"), split(12, "large")
    assert {key: large[key] for key in small} == small
    assert set(large.values()) == {"train", "test"}
    by_person: dict[str, set[str]] = {}
    for key, part in large.items():
        by_person.setdefault(key[:64], set()).add(part)
    assert all(len(parts) == 1 for parts in by_person.values())


def test_a_person_in_both_published_splits_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(who, "기쁨"), "기쁨") for who in (1, 2)])
    write(root, "슬픔", [record(file_name(2, "슬픔"), "슬픔")], valid=True)
    raw = fetch(tmp_path, AiHubConfig, root)
    assert about(raw)["persons_in_both_published_splits"] == 1
    assert "1 of 2 persons" in caplog.text
    assert person(2) in caplog.text


def test_a_number_for_each_class_is_chosen_by_hash_and_shares_nobody(tmp_path: Path) -> None:
    root = dataset(tmp_path / "set", persons=6, valid=4)
    write(root, "기쁨", [record(file_name(who, "기쁨", 1), "기쁨") for who in (0, 100, 101, 102)], valid=True)
    options = {"per_class": [3, 2], "subset": False}
    raw = fetch(tmp_path, AiHubConfig, root, **options, max_bad_fraction=0.2)
    samples, _ = read(raw, AiHubConfig, per_class=[3, 2])
    counts = about(raw)["counts"]
    assert counts == about(raw)["published"]
    assert set(counts["train"].values()) == {3}
    train = {one.faces[0].subject for one in samples.values() if one.split == "train"}
    test = {one.faces[0].subject for one in samples.values() if one.split == "test"}
    assert not train & test
    assert about(raw)["excluded"]["person_in_test_too"] > 0
    before = (raw / "source.json").stat().st_mtime_ns
    fetch(tmp_path, AiHubConfig, root, **options, max_bad_fraction=0.2)
    assert (raw / "source.json").stat().st_mtime_ns == before  # the same request is answered already
    with pytest.raises(FileError, match=r"(?s)test.*9.*subset: true"):
        fetch(tmp_path / "more", AiHubConfig, root, per_class=[3, 9], subset=False, max_bad_fraction=0.2)


def test_records_and_pictures_without_their_partner_are_named(tmp_path: Path) -> None:
    records = [record(file_name(who, "기쁨"), "기쁨") for who in range(4)]
    root = write(tmp_path / "set", "기쁨", records)
    folder = root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01"
    (folder / file_name(2, "기쁨")).unlink()
    picture(folder / file_name(9, "기쁨"))
    _, (bad,) = read(fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.5), AiHubConfig)
    assert (bad.reason, bad.sample_id) == ("no_label", f"aihub/{file_name(9, '기쁨')}")
    assert about(tmp_path / "data" / "raw" / "set")["excluded"] == {"not_in_this_copy": 1}
    with pytest.raises(FileError, match="missing_file 1, no_label 1"):
        fetch(tmp_path / "whole", AiHubConfig, root, subset=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"filename": None}, "bad_record"),
        ({"filename": "holiday.jpg"}, "bad_name"),
        ({"faceExp_uploader": "행복"}, "bad_label"),
        ({"faceExp_uploader": "슬픔"}, "conflicting_labels"),
        ({"annot_B": {"boxes": BOX, "faceExp": "happyish"}}, "bad_label"),
        ({"annot_B": {"boxes": BOX, "faceExp": 3}}, "bad_label"),
    ],
)
def test_a_bad_record_is_refused_alone_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(who, "기쁨"), "기쁨") for who in range(3)])
    path = next(root.rglob("*.json"))
    records = json.loads(path.read_text())
    records[1] |= change
    text(path, json.dumps(records))
    (root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01" / file_name(1, "기쁨")).unlink()
    samples, (bad,) = read(fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.5), AiHubConfig)
    assert bad.reason == reason
    assert bad.origin.endswith("(기쁨).json:1")
    assert len(samples) == 2


def test_records_of_another_emotion_than_their_file_are_conflicts(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(who, "기쁨"), "기쁨") for who in range(3)])
    write(root, "슬픔", [record(file_name(7, "기쁨"), "기쁨")])
    _, rejects = read(fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.6), AiHubConfig)
    assert {reject.reason for reject in rejects} == {"conflicting_labels", "no_label"}


@pytest.mark.parametrize(
    ("content", "said"),
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
def test_a_label_file_that_is_none_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(FileError, match=rf"data\.json.*({said})"):
        read_json_records(text(tmp_path / "data.json", content))


def test_a_list_wrapped_in_an_object_and_a_single_record_are_lists_of_records(tmp_path: Path) -> None:
    one = record(file_name(1, "기쁨"), "기쁨")
    for content in ([one], {"data": [one]}, one):
        assert read_json_records(text(tmp_path / "a.json", json.dumps(content))) == [one]


def test_folders_without_labels_without_pictures_and_without_a_split_are_told_apart(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(1, "기쁨"), "기쁨")])
    with pytest.raises(FileError, match=r"(?s)no label files.*\[라벨\]EMOIMG_기쁨_TRAIN"):
        fetch(tmp_path, AiHubConfig, root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_01")
    with pytest.raises(FileError, match="no pictures"):
        fetch(tmp_path, AiHubConfig, root / "Training" / "[라벨]EMOIMG_기쁨_TRAIN")
    text(tmp_path / "odd" / "data.json", "[]")
    picture(tmp_path / "odd" / "a.jpg")
    with pytest.raises(FileError, match=r"data\.json: training or validation"):
        fetch(tmp_path, AiHubConfig, tmp_path / "odd")


def test_one_picture_in_two_folders_is_an_error_that_names_both(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(1, "기쁨"), "기쁨")])
    picture(root / "Training" / "[원천]EMOIMG_기쁨_TRAIN_02" / file_name(1, "기쁨"))
    with pytest.raises(FileError, match=r"TRAIN_01/.*TRAIN_02/"):
        fetch(tmp_path, AiHubConfig, root)


def test_a_record_given_twice_counts_once(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "기쁨", [record(file_name(1, "기쁨"), "기쁨")] * 2)
    raw = fetch(tmp_path, AiHubConfig, root)
    assert about(raw)["excluded"] == {"listed_twice": 1}


def test_without_a_path_the_error_draws_the_folders(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"(?s)aihub\.or\.kr.*img_emotion_training_data"):
        fetch(tmp_path, AiHubConfig, None)


@pytest.mark.parametrize(
    ("key", "value"), [("labels", "minority"), ("per_class", [9000]), ("per_class", [0, 1]), ("split", "random")]
)
def test_a_wrong_knob_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(AiHubConfig, {"source": "aihub", key: value}, "params.yaml")


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
    {"filename": _SCALARS | st.just(file_name(1, "기쁨"))},
    optional=dict.fromkeys(("annot_A", "annot_B", "annot_C", "faceBB_A", "faceExp_uploader"), _ANNOTATION),
)


@settings(max_examples=150, deadline=None)
@example({"filename": "\ud800" * 3})
@example({"filename": file_name(1, "기쁨"), "annot_A": {"boxes": {**BOX, "maxX": 10**400}, "faceExp": "기쁨"}})
@given(_RECORD | _JSON)
def test_any_json_is_a_record_or_a_named_error(raw: Any) -> None:
    try:
        one = parse_record(raw)
    except RecordError as error:
        assert error.reason in {"bad_record", "bad_name", "bad_label", "conflicting_labels"}  # noqa: PT017
        return
    assert isinstance(one, Record)
    assert one.uploader in NAMES
    assert one.box is None or (0 <= one.box[0] < one.box[2] and 0 <= one.box[1] < one.box[3])
    assert one.distribution is None or abs(sum(one.distribution) - 1) < 1e-9


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*BOX, "boxes"]), _SCALARS))
def test_any_box_has_an_area_or_is_none(raw: dict[str, Any]) -> None:
    box = parse_box(raw)
    assert box is None or (box[2] > box[0] >= 0 and box[3] > box[1] >= 0)


def test_names_that_no_file_can_carry_do_not_stop_the_others(tmp_path: Path) -> None:
    records = [record(file_name(who, "기쁨"), "기쁨") for who in range(2)]
    root = write(tmp_path / "set", "기쁨", records)
    path = next(root.rglob("*.json"))
    text(path, json.dumps([*records, record("\ud800.jpg", "기쁨")]))
    samples, (bad,) = read(fetch(tmp_path, AiHubConfig, root, max_bad_fraction=0.5), AiHubConfig)
    assert (len(samples), bad.reason) == (2, "bad_name")
