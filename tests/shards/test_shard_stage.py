"""The shard stage: split and fold assignment, the same bytes every time, statistics, and faces that are rejected."""

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.places import contents
from builders.projects import write_params
from builders.shards import LABELS, picture
from builders.shards import png as encoded

from fer.io.files import FileError, read_json, write_json
from fer.io.images import decode_image
from fer.params import Params, load
from fer.shards.manifest import Manifest, load_manifest
from fer.shards.schema import SCHEMA_VERSION, SPLITS, ShardError, face_schema
from fer.shards.table import TableReader, read_table, write_table
from fer.shards.verify import verify
from fer.stages import shard

Row = dict[str, Any]


def png(seed: int, gray: bool = False) -> bytes:
    return encoded(picture(seed, 8, gray=gray))


def face(index: int, **changes: object) -> Row:
    row: Row = {
        "sample_id": f"set/{index:05d}",
        "image": png(index),
        "label": index % 7,
        "clean_label": index % 7,
        "subject": f"s{index // 3}",
        "pose": [1.0, 2.0, 3.0] if index % 2 else None,
        "distribution": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0] if index % 3 == 0 else None,
        "height": 8,
        "width": 8,
        "channels": 3,
        "split": "test" if index % 5 == 0 else "train",
        "box": [0.0, 0.0, 8.0, 8.0],
        "landmarks": None,
        "score": None,
        "origin": f"file:{index}",
    }
    return row | changes


def project(root: Path, rows: list[Row], *, seed: int = 0, **config: object) -> Params:
    """data/faces/set of these rows, and params.yaml with this configuration of the stage."""
    folder = root / "data" / "faces" / "set"
    files = []
    for number in range(0, len(rows), 100):
        path = folder / f"faces-{number:05d}.parquet"
        write_table(path, rows[number : number + 100], face_schema())
        files.append({"file": path.name})
    about = {"faces": len(rows), "files": files, "labels": list(LABELS), "label_space": "basic7"}
    about |= {"generator": "synthetic/1", "source_digest": "0" * 64, "rejects": {"no_face": 2}}
    write_json(folder / "faces.json", about | {"crop": {"align": "arcface", "size": 112}})
    config = {"folds": 4, "rows_per_group": 256} | config
    write_params(root, "set", {"nano": {"recipe": "ddamfn/nano"}}, seed=seed, shard=config)
    return load(root / "params.yaml")


def make(root: Path, rows: list[Row], **config: object) -> tuple[Path, Manifest]:
    folder = shard.run(project(root, rows, **config), "set")
    return folder, load_manifest(folder)


def ids_of(folder: Path, files: tuple[str, ...]) -> list[str]:
    return [sample for file in files for sample in read_table(folder / file, ["sample_id"])["sample_id"]]


def fold_of_each(folder: Path, manifest: Manifest) -> dict[str, int | None]:
    return {sample: part.fold for part in manifest.parts for sample in ids_of(folder, (part.file,))}


ROWS = [face(index) for index in range(330)]
TWINS = [face(500, image=png(1), split="test"), face(501, image=png(3), label=0), face(502, image=png(3), label=1)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stage has run on ROWS and TWINS."""
    root = tmp_path_factory.mktemp("project")
    make(root, [*ROWS, *TWINS])
    return root


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "data" / "shards" / "set"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return load_manifest(folder)


# ------------------------------------------------------------------------------------------------ assignment


def test_every_face_is_in_one_part_unchanged_and_keeps_its_published_split(folder: Path, manifest: Manifest) -> None:
    assert verify(folder) == manifest
    by_id = {row["sample_id"]: row for row in [*ROWS, *TWINS]}
    ids = {split: ids_of(folder, manifest.splits[split]) for split in SPLITS}
    assert sorted(sample for names in ids.values() for sample in names) == sorted(by_id)
    assert set(ids["test"]) == {sample for sample, row in by_id.items() if row["split"] == "test"}
    assert {split: len(ids[split]) for split in SPLITS} == {split: manifest.rows(split) for split in SPLITS}
    assert manifest.validation_source == "fold 0"
    assert {part.fold for part in manifest.parts if part.split == "validation"} == {0}
    for part in manifest.parts:
        for row in TableReader(folder / part.file):
            assert row == {name: by_id[row["sample_id"]][name] for name in row}


def test_no_subject_is_in_two_folds(folder: Path, manifest: Manifest) -> None:
    folds = defaultdict(set)
    for part in manifest.parts:
        if part.fold is not None:
            for subject in read_table(folder / part.file, ["subject"])["subject"]:
                folds[subject].add(part.fold)
    assert all(len(found) == 1 for found in folds.values())


def test_pixel_equal_images_share_a_fold_even_across_subjects_and_encodings(tmp_path: Path) -> None:
    rows = [face(index, subject=None, split="train") for index in range(60)]
    pixels = cv2.cvtColor(picture(0, 8), cv2.COLOR_RGB2BGR)
    again = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FIXED])[1].tobytes()
    assert again != png(0)
    rows += [face(100 + index, image=again, subject=f"t{index}", split="train") for index in range(8)]
    fold_of = fold_of_each(*make(tmp_path, [*rows, face(200, split="test")]))
    assert len({fold_of["set/00000"], *(fold_of[f"set/{100 + index:05d}"] for index in range(8))}) == 1
    assert len({fold_of[f"set/{index:05d}"] for index in range(60)}) == 4


def test_images_shared_between_splits_are_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    twins = [face(900, image=png(1), split="test"), face(901, image=png(1), split="test")]
    rows = [row | {"label": 0} if row["label"] == 6 else row for row in [*ROWS, *twins]]
    _, manifest = make(tmp_path, rows)
    leaks = manifest.shared_pictures
    assert leaks["test~train"] + leaks["test~validation"] == 2
    assert "2 test images are pixel-equal" in caplog.text
    assert "train split has no sample of anger" in caplog.text


def test_published_validation_split_is_kept_and_all_folds_train(tmp_path: Path) -> None:
    rows = [face(index, split=("train", "validation", "test")[index % 3]) for index in range(120)]
    folder, manifest = make(tmp_path, rows)
    assert manifest.validation_source == "published"
    assert set(ids_of(folder, manifest.splits["validation"])) == {f"set/{i:05d}" for i in range(1, 120, 3)}
    assert {part.fold for part in manifest.parts if part.split == "train"} == {0, 1, 2, 3}


def test_parts_without_new_faces_keep_their_bytes_when_a_twentieth_more_faces_arrive(tmp_path: Path) -> None:
    rows = [face(index) for index in range(600)]
    new = [face(index) for index in range(1000, 1030)]
    folder, _ = make(tmp_path / "a", rows, parts_per_fold=10)
    before = contents(folder)
    more, manifest = make(tmp_path / "b", [*new[:7], *rows, *new[7:]], parts_per_fold=10)
    after = contents(more)
    new_ids = {row["sample_id"] for row in new}
    touched = {part.file for part in manifest.parts if new_ids & set(ids_of(more, (part.file,)))}
    parts = [name for name in before if name.endswith(".parquet")]
    assert {name for name in parts if before[name] != after[name]} == touched & set(parts)
    assert len(touched) < len(parts) * 0.7


def test_new_face_that_joins_two_groups_moves_only_those(tmp_path: Path) -> None:
    rows = [face(index, split="train", subject=f"s{index // 10:02d}") for index in range(200)]
    rows += [face(999, split="test")]
    before = fold_of_each(*make(tmp_path / "a", rows))
    joint = [face(500 + n, split="train", subject=subject, image=png(3)) for n, subject in enumerate(("s03", "s17"))]
    after = fold_of_each(*make(tmp_path / "b", [*rows, *joint]))
    moved = {sample for sample, fold in before.items() if after[sample] != fold}
    subjects = {row["subject"] for row in rows if row["sample_id"] in moved}
    assert subjects <= {"s17", "s03", "s00"}, "nobody else: s00 has the image, s03 and s17 its copies"
    assert len({after[f"set/{index:05d}"] for index in (3, 30, 170, 500, 501)}) == 1


def spots(seed: int, brighter: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(30, 200, (8, 8), dtype=np.uint8)
    return encoded(cv2.resize(coarse, (40, 40), interpolation=cv2.INTER_CUBIC) // 2 + 20 + brighter)


def test_near_duplicates_are_searched_for_and_grouped_as_configured(tmp_path: Path) -> None:
    rows = [face(index, split="train", subject=None, image=spots(index)) for index in range(60)]
    rows += [face(100 + index, split="train", subject=None, image=spots(index, brighter=20)) for index in range(30)]
    rows += [face(200, split="test")]
    folds, near = {}, {}
    for how in ("off", "report", "group"):
        folder, manifest = make(tmp_path / how, rows, duplicates=how)
        fold_of, near[how] = fold_of_each(folder, manifest), manifest.near_pictures
        folds[how] = [fold_of[f"set/{index:05d}"] == fold_of[f"set/{100 + index:05d}"] for index in range(30)]
        assert manifest.duplicates == how
    assert set(near["off"].values()) == {0}
    assert near["report"]["train~train"] + 2 * near["report"]["validation~train"] >= 45
    assert not all(folds["report"])
    assert all(folds["group"])
    assert near["group"]["validation~train"] == 0


def test_dropped_duplicates_are_listed_with_the_rows_that_stay(tmp_path: Path) -> None:
    rows = [*ROWS, face(500, image=png(1), split="test"), face(501, image=png(3), split="train")]
    _, manifest = make(tmp_path, rows, duplicates="drop")
    assert table(tmp_path / "data/statistics/set/dropped.csv") == [
        {"sample_id": "set/00001", "reason": "duplicate_of_test", "kept": "set/00500"},
        {"sample_id": "set/00501", "reason": "duplicate", "kept": "set/00003"},
    ]
    assert manifest.rejects == {"no_face": 2, "duplicate_of_test": 1, "duplicate": 1}
    assert sum(manifest.rows(split) for split in SPLITS) == len(rows) - 2
    assert set(manifest.shared_pictures.values()) == {0}


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("environment", "cwd"),
    [
        ({"TZ": "Asia/Seoul", "LANG": "C", "LC_ALL": "C", "PYTHONHASHSEED": "1"}, "/"),
        ({"TZ": "America/Lima", "LANG": "ko_KR.UTF-8", "LC_ALL": "", "PYTHONHASHSEED": "77"}, "/tmp"),
    ],
)
def test_bytes_do_not_depend_on_time_zone_locale_hash_seed_or_working_folder(
    root: Path, folder: Path, repo_root: Path, environment: dict[str, str], cwd: str
) -> None:
    outputs = (folder, root / "data/statistics/set")
    before = [contents(one) for one in outputs]
    code = "import sys; from pathlib import Path; from fer import params; from fer.stages import shard; "
    code += "shard.run(params.load(Path(sys.argv[1])), 'set')"
    env = {**os.environ, **environment, "PYTHONPATH": str(repo_root)}
    subprocess.run([sys.executable, "-c", code, str(root / "params.yaml")], env=env, cwd=cwd, check=True, timeout=60)
    assert [contents(one) for one in outputs] == before
    assert set(before[1]) == {"classes.csv", "statistics.json", "duplicates.csv", "dropped.csv", "samples.png"}


def test_mean_and_std_are_exactly_those_of_the_train_split(tmp_path: Path) -> None:
    rows = [*ROWS, *(face(400 + index, image=png(400 + index, gray=True), channels=1) for index in range(20))]
    folder, manifest = make(tmp_path, rows)
    train = [image for file in manifest.splits["train"] for image in read_table(folder / file, ["image"])["image"]]
    values = np.concatenate([decode_image(image).reshape(-1, 3).astype(np.float64) / 255 for image in train])
    assert manifest.mean == pytest.approx(values.mean(axis=0), abs=1e-12)
    assert manifest.std == pytest.approx(values.std(axis=0), abs=1e-12)


def test_row_groups_histograms_and_metadata_are_as_the_manifest_says(tmp_path: Path) -> None:
    rows = [face(index, split="train", subject=None) for index in range(1500)] + [face(9999, split="test")]
    folder, manifest = make(tmp_path, rows, folds=2)
    for part in manifest.parts:
        reader = TableReader(folder / part.file)
        assert tuple(reader.row_groups) == part.row_groups
        assert all(size == 256 for size in part.row_groups[:-1])
        labels = read_table(folder / part.file, ["label"])["label"]
        assert [labels.count(label) for label in range(7)] == list(part.class_histogram)
        said = reader.metadata
        assert json.loads(said["fer.labels"]) == list(LABELS)
        assert (said["fer.schema"], said["fer.color"], said["fer.dataset"]) == (str(SCHEMA_VERSION), "RGB", "set")
    assert (manifest.image_size, manifest.synthetic, manifest.rejects) == ((8, 8), True, {"no_face": 2})
    assert manifest.crop == {"align": "arcface", "size": 112}


# ------------------------------------------------------------------------------------------------ rejected faces


def stored(faces: pa.Table, change: str) -> pa.Table:
    """The faces with other columns."""
    if change == "renamed":
        return faces.rename_columns({"image": "picture"})
    if change == "missing":
        return faces.drop_columns(["label"])
    if change == "twice":
        return faces.append_column("image", faces["image"])
    if change == "type":
        return faces.set_column(faces.column_names.index("image"), "image", faces["sample_id"])
    return pa.table({"a": [1]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("renamed", "no column 'image'.* picture, "),
        ("missing", "no column 'label'"),
        ("twice", "2 column 'image'"),
        ("type", "'image' is string, expected binary"),
        ("all", "no column 'sample_id'.* a"),
    ],
)
def test_faces_with_other_columns_are_rejected_by_file_and_column_and_no_output_changes(
    change: str, reason: str, tmp_path: Path
) -> None:
    folder, _ = make(tmp_path, ROWS)
    before = contents(folder)
    path = tmp_path / "data" / "faces" / "set" / "faces-00100.parquet"
    pq.write_table(stored(pq.read_table(path), change), path)
    with pytest.raises(FileError, match=rf"{path}: .*{reason}.*`dvc repro -f crop@set`"):
        shard.run(load(tmp_path / "params.yaml"), "set")
    assert contents(folder) == before


@pytest.mark.parametrize("key", ["faces", "files", "generator", "label_space", "labels", "rejects", "source_digest"])
def test_faces_json_with_a_wrong_key_is_rejected_by_file_and_key(key: str, tmp_path: Path) -> None:
    params, path = project(tmp_path, ROWS[:7]), tmp_path / "data" / "faces" / "set" / "faces.json"
    about = json.loads(path.read_text())
    for changed in ({name: value for name, value in about.items() if name != key}, about | {key: None}):
        write_json(path, changed)
        with pytest.raises(FileError, match=rf"faces\.json: .*{key}.*; run `dvc repro -f crop@set`"):
            shard.run(params, "set")
    assert not (tmp_path / "data" / "shards").exists()


def test_split_without_rows_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    params = project(tmp_path, [face(index, split="train") for index in range(50)])
    with pytest.raises(ShardError, match="no rows for the test split"):
        shard.run(params, "set")
    assert not list((tmp_path / "data" / "shards").iterdir())


def test_missing_and_damaged_faces_are_errors_with_the_stage_or_file(tmp_path: Path) -> None:
    params, path = project(tmp_path, ROWS), tmp_path / "data" / "faces" / "set" / "faces-00100.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FileError, match=r"faces-00100\.parquet"):
        shard.run(params, "set")
    (path.parent / "faces.json").unlink()
    with pytest.raises(FileError, match="crop@set"):
        shard.run(params, "set")


# ------------------------------------------------------------------------------------------------ statistics


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_rows_of_each_class_and_split_add_up(root: Path, manifest: Manifest) -> None:
    rows = table(root / "data/statistics/set/classes.csv")
    assert [(row["split"], row["label"]) for row in rows] == [(split, label) for split in SPLITS for label in LABELS]
    assert [int(row["rows"]) for row in rows] == [n for split in SPLITS for n in manifest.class_histogram[split]]
    for split in SPLITS:
        assert sum(float(row["share"]) for row in rows if row["split"] == split) == pytest.approx(1, abs=1e-3)
    assert rows[0]["class"] == "train: neutral"


def test_sizes_subjects_poses_and_scores_are_summarized_where_known(root: Path, tmp_path: Path) -> None:
    found = read_json(root / "data/statistics/set/statistics.json")
    train = found["splits"]["train"]
    assert train["height"] == {"lowest": 8, "median": 8, "highest": 8}
    assert train["grey"] == 0
    assert train["yaw"] == {"lowest": 1, "median": 1, "highest": 1}
    assert "score" not in train
    assert 0 < train["subjects"] <= 111
    assert found["rejects"] == {"no_face": 2}
    assert found["splits"]["test"]["rows"] == 67
    assert all(0.4 < value < 0.6 for value in train["mean"].values())
    make(tmp_path, [face(i, image=png(i, i % 2 == 1), score=i / 400, pose=None, subject=None) for i in range(400)])
    test = read_json(tmp_path / "data/statistics/set/statistics.json")["splits"]["test"]
    assert test["score"] == {"lowest": 0.0, "median": 0.4938, "highest": 0.9875}
    assert test["grey"] == 0.5
    assert not {"yaw", "subjects"} & set(test)


def test_duplicates_are_listed_with_their_splits_and_labels(root: Path) -> None:
    rows = table(root / "data/statistics/set/duplicates.csv")
    assert [(row["first"], row["second"], row["kind"]) for row in rows] == [
        ("set/00001", "set/00500", "exact"),
        ("set/00003", "set/00501", "exact"),
        ("set/00003", "set/00502", "exact"),
    ]
    assert (rows[0]["first_split"], rows[0]["second_split"]) == ("train", "test")
    assert (rows[1]["first_label"], rows[1]["second_label"]) == ("surprise", "neutral")
    assert table(root / "data/statistics/set/dropped.csv") == []


def test_sheet_has_a_row_a_class_and_the_faces_of_each_split_side_by_side(root: Path) -> None:
    sheet = cv2.imread(str(root / "data/statistics/set/samples.png"))
    assert sheet.shape == (7 * 64 + 24, 104 + 3 * (6 * 64 + 8), 3)
    cells = sheet[24:, 104 : 104 + 6 * 64].reshape(7, 64, 6, 64, 3)
    assert (cells.std(axis=(1, 3, 4)) > 10).all(), "each class of train has six faces"
