"""People as a dataset: folders of subjects, and InsightFace's train.rec, of which nothing is trusted unchecked."""

import pickle
import struct
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from builders.layouts import about, fetch, picture, read, text, zipped

from fer.config import parse
from fer.io.files import FileError
from fer.sources import identities, recordio
from fer.sources.base import RawSample
from fer.sources.identities import IdentitiesConfig, IdentitiesSource
from fer.sources.synthetic import SyntheticConfig, SyntheticSource

MARK = 0xCED7230A


def people(root: Path, names: int = 40, pictures: int = 6) -> Path:
    for name in range(names):
        for number in range(pictures):
            picture(root / f"person {name}" / f"{number}.jpg", 7 * name + number)
    return root


def record(data: bytes) -> bytes:
    """As dmlc's writer cuts it: in front of every aligned mark, which it leaves out."""
    cuts = [at for at in range(0, len(data) - 3, 4) if data[at : at + 4] == struct.pack("<I", MARK)]
    starts, stops = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
    kinds = [0] if not cuts else [1, *[2] * (len(cuts) - 1), 3]
    out = b""
    for kind, start, stop in zip(kinds, starts, stops, strict=True):
        part = data[start:stop]
        out += struct.pack("<II", MARK, kind << 29 | len(part)) + part + b"\0" * (-len(part) % 4)
    return out


def packed(*labels: float, data: bytes = b"", many: bool = False) -> bytes:
    if len(labels) == 1 and not many:
        return struct.pack("<IfQQ", 0, labels[0], 1, 0) + data
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, 1, 0, *labels) + data


def write_rec(folder: Path, shown: list[tuple[float, bytes]], *, head: bool = True, many: bool = False) -> Path:
    """A dataset of (person, image); `head`: with the records that InsightFace adds for the people."""
    folder.mkdir(parents=True, exist_ok=True)
    persons = sorted({person for person, _ in shown})
    records = [packed(len(shown) + 1, len(shown) + 1 + len(persons))] if head else []
    records += [packed(person, data=data, many=many) for person, data in shown]
    records += [packed(1, 2) for _ in persons] if head else []
    offset, lines, out = 0, [], b""
    for key, one in enumerate(map(record, records)):
        lines.append(f"{key}\t{offset}\n")
        out, offset = out + one, offset + len(one)
    (folder / "train.rec").write_bytes(out)
    (folder / "train.idx").write_text("".join(lines))
    (folder / "property").write_text(f"{len(persons)},112,112")
    return folder


def jpegs(folder: Path, persons: int = 30, pictures: int = 4) -> list[tuple[float, bytes]]:
    return [
        (float(person), picture(folder / f"{person}-{number}.jpg", 5 * person + number).read_bytes())
        for person in range(persons)
        for number in range(pictures)
    ]


def splits(samples: dict[str, RawSample]) -> dict[str, set[str]]:
    """The splits in which each person is."""
    found: dict[str, set[str]] = {}
    for key, sample in samples.items():
        found.setdefault(key.partition("/")[0], set()).add(sample.split)
    return found


# ------------------------------------------------------------------------------------------------ folders


def test_every_person_is_in_training_or_in_test_alone(tmp_path: Path) -> None:
    options = {"test_fraction": 0.2, "validation_fraction": 0.25}
    raw = fetch(tmp_path, IdentitiesConfig, people(tmp_path / "in"), **options)
    samples, rejects = read(raw, IdentitiesConfig, **options)
    assert not rejects
    assert len(samples) == 240
    found = splits(samples)
    unseen = {name for name, places in found.items() if "test" in places}
    assert 2 <= len(unseen) <= 16
    assert all(found[name] == {"test"} for name in unseen)
    assert all("train" in found[name] for name in found.keys() - unseen)
    counts = Counter(sample.split for sample in samples.values())
    assert counts["validation"] == (240 - counts["test"]) // 4
    assert all(sample.is_crop and sample.faces[0].subject is None for sample in samples.values())


def test_a_label_is_the_person_and_the_label_space_names_nobody(tmp_path: Path) -> None:
    raw = fetch(tmp_path, IdentitiesConfig, people(tmp_path / "in"))
    samples, _ = read(raw, IdentitiesConfig)
    names = about(raw)["people"]
    assert names == sorted(f"person {number}" for number in range(40))
    assert all(names[sample.faces[0].label] == key.partition("/")[0] for key, sample in samples.items())
    source = IdentitiesSource(parse(IdentitiesConfig, {"source": "identities"}, "params.yaml"))
    for block in source.blocks(raw):
        elsewhere = pickle.loads(pickle.dumps(IdentitiesSource(source.config)))  # as a worker gets it
        assert len(list(elsewhere.read(raw, block))) == block.stop
        assert elsewhere.label_space == source.label_space
    assert source.label_space.name.startswith("identities-40-")
    assert len(source.label_space) == 40
    assert not any("person" in label for label in source.label_space.labels)


def test_test_people_stay_in_test_when_others_are_added(tmp_path: Path) -> None:
    options = {"test_fraction": 0.3}
    first, _ = read(fetch(tmp_path / "1", IdentitiesConfig, people(tmp_path / "in"), **options), IdentitiesConfig)
    more = people(tmp_path / "in", names=60)
    second, _ = read(fetch(tmp_path / "2", IdentitiesConfig, more, **options), IdentitiesConfig)
    unseen = {name for name, places in splits(first).items() if places == {"test"}}
    assert unseen == {name for name, places in splits(second).items() if places == {"test"}} & splits(first).keys()


def test_people_with_few_images_are_left_out_and_counted(tmp_path: Path) -> None:
    source = people(tmp_path / "in")
    picture(source / "stranger" / "1.jpg")
    (source / "nobody").mkdir()
    raw = fetch(tmp_path, IdentitiesConfig, source, min_pictures=3)
    assert about(raw)["excluded"] == {"pictures of people with too few": 1}
    assert about(raw)["people_left_out"] == 2
    assert "stranger" not in about(raw)["people"]


def test_validation_has_at_most_the_images_whose_logits_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "MOST_VALIDATION", 7)
    raw = fetch(tmp_path, IdentitiesConfig, people(tmp_path / "in"), validation_fraction=0.5)
    assert about(raw)["counts"]["validation"] == {"pictures": 7}


def test_names_are_normalized_and_images_may_be_deeper_or_in_archives(tmp_path: Path) -> None:
    source = people(tmp_path / "in" / "set" / "images", names=4)
    picture(source / unicodedata.normalize("NFD", "김") / "deep" / "a.jpg")
    picture(source / unicodedata.normalize("NFD", "김") / "b.jpg")
    one, _ = read(fetch(tmp_path / "1", IdentitiesConfig, tmp_path / "in"), IdentitiesConfig)
    other, _ = read(
        fetch(tmp_path / "2", IdentitiesConfig, zipped(tmp_path / "in", tmp_path / "in.zip")), IdentitiesConfig
    )
    assert {"김/deep/a.jpg", "김/b.jpg"} <= one.keys()
    assert {key: sample.faces for key, sample in one.items()} == {key: sample.faces for key, sample in other.items()}


def test_a_folder_without_people_is_refused_with_the_layout(tmp_path: Path) -> None:
    text(tmp_path / "in" / "notes" / "a.txt", "x")
    with pytest.raises(FileError, match=r"in: .*found notes.*a folder of images for each person"):
        fetch(tmp_path, IdentitiesConfig, tmp_path / "in")


# ------------------------------------------------------------------------------------------------ RecordIO


@pytest.mark.parametrize(("head", "many"), [(True, False), (True, True), (False, False)])
def test_a_rec_file_gives_every_image_byte_for_byte(tmp_path: Path, head: bool, many: bool) -> None:
    shown = jpegs(tmp_path / "jpg")
    raw = fetch(tmp_path, IdentitiesConfig, write_rec(tmp_path / "in" / "faces_emore", shown, head=head, many=many))
    samples, rejects = read(raw, IdentitiesConfig)
    assert not rejects
    assert about(raw)["form"] == "train.rec"
    want = {f"{int(person):06d}/{index + head:08d}": data for index, (person, data) in enumerate(shown)}
    assert {key: sample.image for key, sample in samples.items()} == want
    assert {key: sample.faces[0].label for key, sample in samples.items()} == {key: int(key[:6]) for key in want}


def test_an_image_that_holds_the_record_mark_is_joined_again(tmp_path: Path) -> None:
    data = b"abcd" + struct.pack("<I", MARK) * 2 + b"efg"
    folder = write_rec(tmp_path, [(0.0, data), (1.0, b"xyz" + struct.pack("<I", MARK))], head=False)
    assert (folder / "train.rec").read_bytes().count(struct.pack("<I", MARK)) == 5  # of four parts, and one not aligned
    with (folder / "train.rec").open("rb") as handle:
        found = [recordio.read_image(handle, offset) for _, offset in recordio.read_index(folder)]
    assert found == [data, b"xyz" + struct.pack("<I", MARK)]


def test_damaged_records_are_rejected_one_by_one(tmp_path: Path) -> None:
    shown = jpegs(tmp_path / "jpg")
    shown[5] = (float("nan"), shown[5][1])
    shown[50] = (0.5, shown[50][1])
    shown[90] = (-1.0, shown[90][1])
    folder = write_rec(tmp_path / "in", shown, head=False)
    offsets = [offset for _, offset in recordio.read_index(folder)]
    data = bytearray((folder / "train.rec").read_bytes())
    data[offsets[20]] ^= 1
    data[offsets[40] + 4 : offsets[40] + 8] = struct.pack("<I", (1 << 29) - 1)  # longer than the file
    data[offsets[60] + 8 : offsets[60] + 12] = struct.pack("<I", 1 << 31)  # that many labels
    (folder / "train.rec").write_bytes(data)
    raw = fetch(tmp_path, IdentitiesConfig, folder, max_bad_fraction=0.1)
    samples, rejects = read(raw, IdentitiesConfig)
    assert len(samples) == len(shown) - 6
    assert sorted(one.sample_id.rpartition("/")[2] for one in rejects) == [f"{n:08d}" for n in (5, 20, 40, 50, 60, 90)]
    assert {one.reason for one in rejects} == {"damaged_record", "unreadable_file"}
    with pytest.raises(FileError, match="6 of 120 "):
        fetch(tmp_path / "again", IdentitiesConfig, folder)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("train.idx", None, "train.idx: no such file"),
        ("train.idx", "0\t0\n1 40\n", r"train\.idx: line 2: b'1 40\\n'"),
        ("train.idx", "0\t0\n0\t8\n", r"train\.idx: line 2: key 0"),
        ("train.idx", "0\t999999999\n", r"train\.idx: line 1: offset 999999999"),
        ("train.idx", "0\t" + "9" * 500, r"train\.idx: line 1"),
        ("train.idx", "version https://git-lfs.github.com/spec/v1", r"train\.idx: .*Git LFS"),
        ("property", "many", "property: 'many'"),
        ("property", "31,112,112", "30 people, and `property` says 31"),
    ],
)
def test_inconsistent_record_files_are_refused_by_name(
    tmp_path: Path, file: str, content: str | None, told: str
) -> None:
    folder = write_rec(tmp_path / "in", jpegs(tmp_path / "jpg"))
    (folder / file).unlink()
    if content is not None:
        text(folder / file, content)
    with pytest.raises(FileError, match=told):
        fetch(tmp_path, IdentitiesConfig, folder, subset=False)


def test_a_first_record_that_contradicts_the_index_is_refused(tmp_path: Path) -> None:
    folder = write_rec(tmp_path / "in", jpegs(tmp_path / "jpg"))
    data = bytearray((folder / "train.rec").read_bytes())
    data[32:36] = struct.pack("<f", 1e9)
    (folder / "train.rec").write_bytes(data)
    with pytest.raises(FileError, match=r"train\.rec: record 0 .* key 1e\+09"):
        fetch(tmp_path, IdentitiesConfig, folder)


# ------------------------------------------------------------------------------------------------ synthetic people


def test_synthetic_subjects_are_labels_and_differ_from_those_of_expressions(tmp_path: Path) -> None:
    config = {"source": "synthetic", "scenes": 24, "scene_size": 64, "face_size": [30, 50], "train_subjects": 5}
    config |= {"test_subjects": 3, "test_fraction": 0.5, "no_face_probability": 0.0}
    found = {}
    for labels in ("expression", "subject"):
        source = SyntheticSource(parse(SyntheticConfig, {**config, "labels": labels}, "params.yaml"), seed=4)
        raw = tmp_path / labels
        raw.mkdir()
        source.download(raw, tmp_path)
        found[labels] = [sample for block in source.blocks(raw) for sample in source.read(raw, block)]
    assert len(source.label_space) == 8
    for sample in found["subject"]:
        assert isinstance(sample, RawSample)
        assert all(face.subject is None and (face.label < 5) == (sample.split == "train") for face in sample.faces)
    images = [{sample.image for sample in samples if isinstance(sample, RawSample)} for samples in found.values()]
    assert not images[0] & images[1]
