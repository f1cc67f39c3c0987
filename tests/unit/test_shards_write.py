"""The shard stage: who stands where, the same bytes every time, and every change on disk noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.shards import change_manifest

from fer.io.files import FileError, write_json
from fer.io.images import decode_image
from fer.shards.manifest import Manifest, load_manifest
from fer.shards.schema import SCHEMA_VERSION, SPLITS, ShardConfig, ShardError, face_schema
from fer.shards.table import TableReader, read_table, write_table
from fer.shards.verify import verify
from fer.shards.write import shard_dataset

LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
CONFIG = ShardConfig(folds=4, rows_per_group=256)


def png(seed: int, colour: bool = True) -> bytes:
    random = np.random.default_rng(seed)
    return cv2.imencode(".png", random.integers(0, 256, (8, 8, 3) if colour else (8, 8), dtype=np.uint8))[1].tobytes()


def face(index: int, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
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


def faces_folder(
    root: Path, rows: list[dict[str, object]], name: str = "set", labels: tuple[str, ...] = LABELS
) -> None:
    folder = root / "data" / "faces" / name
    files = []
    for number in range(0, len(rows), 100):
        path = folder / f"faces-{number:05d}.parquet"
        write_table(path, rows[number : number + 100], face_schema())
        files.append({"file": path.name})
    write_json(
        folder / "faces.json",
        {
            "faces": len(rows),
            "files": files,
            "labels": list(labels),
            "label_space": "basic7",
            "generator": "synthetic/1",
            "source_digest": "0" * 64,
            "rejects": {"no_face": 2},
        },
    )


def make(
    root: Path, rows: list[dict[str, object]], config: ShardConfig = CONFIG, seed: int = 0
) -> tuple[Path, Manifest]:
    faces_folder(root, rows)
    folder = shard_dataset("set", config, seed=seed, root=root)
    return folder, load_manifest(folder)


def ids_of(folder: Path, files: tuple[str, ...]) -> list[str]:
    return [sample for file in files for sample in read_table(folder / file, ["sample_id"])["sample_id"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


ROWS = [face(index) for index in range(330)]


def test_every_face_stands_in_exactly_one_part_and_keeps_its_published_split(tmp_path: Path) -> None:
    folder, manifest = make(tmp_path, ROWS)
    ids = {split: ids_of(folder, manifest.splits[split]) for split in SPLITS}
    assert sorted(sample for names in ids.values() for sample in names) == [row["sample_id"] for row in ROWS]
    assert set(ids["test"]) == {row["sample_id"] for row in ROWS if row["split"] == "test"}
    assert {split: len(ids[split]) for split in SPLITS} == {split: manifest.rows(split) for split in SPLITS}
    assert manifest.validation_source == "fold 0"
    assert {part.fold for part in manifest.parts if part.split == "validation"} == {0}


def test_rows_keep_picture_label_subject_pose_and_distribution(tmp_path: Path) -> None:
    folder, manifest = make(tmp_path, ROWS)
    by_id = {row["sample_id"]: row for row in ROWS}
    for part in manifest.parts:
        for row in TableReader(folder / part.file):
            assert row == {name: by_id[row["sample_id"]][name] for name in row}


def test_no_subject_is_in_two_folds(tmp_path: Path) -> None:
    folder, manifest = make(tmp_path, ROWS)
    folds = defaultdict(set)
    for part in manifest.parts:
        if part.fold is not None:
            for subject in read_table(folder / part.file, ["subject"])["subject"]:
                folds[subject].add(part.fold)
    assert all(len(found) == 1 for found in folds.values())


def test_pixel_equal_pictures_share_a_fold_even_across_subjects_and_encodings(tmp_path: Path) -> None:
    rows = [face(index, subject=None, split="train") for index in range(60)]
    pixels = cv2.imdecode(np.frombuffer(png(0), np.uint8), cv2.IMREAD_COLOR)
    again = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    rows += [face(100 + index, image=again, subject=f"t{index}", split="train") for index in range(8)]
    rows += [face(200, split="test")]
    folder, manifest = make(tmp_path, rows)
    fold_of = {
        sample: part.fold
        for part in manifest.parts
        for sample in read_table(folder / part.file, ["sample_id"])["sample_id"]
    }
    assert len({fold_of["set/00000"], *(fold_of[f"set/{100 + index:05d}"] for index in range(8))}) == 1
    assert len({fold_of[f"set/{index:05d}"] for index in range(60)}) == CONFIG.folds


def test_pictures_shared_between_splits_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    rows = [*ROWS, face(900, image=png(1), split="test"), face(901, image=png(1), split="test")]
    _, manifest = make(tmp_path, rows)
    leaks = manifest.shared_pictures
    assert leaks["test~train"] + leaks["test~validation"] == 2
    assert "2 test pictures are pixel-equal" in caplog.text


def test_a_published_validation_split_is_kept_and_all_folds_train(tmp_path: Path) -> None:
    rows = [face(index, split=("train", "validation", "test")[index % 3]) for index in range(120)]
    folder, manifest = make(tmp_path, rows)
    assert manifest.validation_source == "published"
    assert set(ids_of(folder, manifest.splits["validation"])) == {f"set/{i:05d}" for i in range(1, 120, 3)}
    assert {part.fold for part in manifest.parts if part.split == "train"} == {0, 1, 2, 3}


def test_a_part_without_a_new_face_is_the_same_bytes_when_a_twentieth_more_faces_arrive(tmp_path: Path) -> None:
    config = ShardConfig(folds=4, parts_per_fold=10, rows_per_group=256)
    rows = [face(index, subject=f"s{index // 3}") for index in range(600)]
    new = [face(index, subject=f"s{index // 3}") for index in range(1000, 1030)]
    folder, _ = make(tmp_path / "a", rows, config)
    before = contents(folder)
    more, manifest = make(tmp_path / "b", [*new[:7], *rows, *new[7:]], config)
    after = contents(more)
    new_ids = {row["sample_id"] for row in new}
    touched = {part.file for part in manifest.parts if new_ids & set(ids_of(more, (part.file,)))}
    parts = [name for name in before if name.endswith(".parquet")]
    assert {name for name in parts if before[name] != after[name]} == touched & set(parts)
    assert len(touched) < len(parts) * 0.7


def test_a_new_face_that_joins_two_groups_moves_one_of_them_alone(tmp_path: Path) -> None:
    rows = [face(index, split="train", subject=f"s{index // 10:02d}") for index in range(200)] + [
        face(999, split="test")
    ]
    folder, before = make(tmp_path / "a", rows)
    joint = [
        face(500, split="train", subject="s03", image=png(3)),
        face(501, split="train", subject="s17", image=png(3)),
    ]
    more, after = make(tmp_path / "b", [*rows, *joint])
    fold_before, fold_after = fold_of_each(folder, before), fold_of_each(more, after)
    moved = {sample for sample, fold in fold_before.items() if fold_after[sample] != fold}
    subjects = {row["subject"] for row in rows if row["sample_id"] in moved}
    assert subjects <= {"s17", "s03", "s00"}, "nobody else: s00 holds the picture, s03 and s17 its doubles"
    assert len({fold_after[f"set/{index:05d}"] for index in (3, 30, 170, 500, 501)}) == 1


def fold_of_each(folder: Path, manifest: Manifest) -> dict[str, int | None]:
    return {sample: part.fold for part in manifest.parts for sample in ids_of(folder, (part.file,))}


def test_grouped_near_duplicates_fall_in_one_fold(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        face(index, split="train", subject=None, image=spots(index)) for index in range(60)
    ]
    rows += [face(100 + index, split="train", subject=None, image=spots(index, brighter=20)) for index in range(30)]
    rows += [face(200, split="test")]
    apart, manifest = make(tmp_path / "report", rows)
    assert manifest.near_pictures["train~train"] + 2 * manifest.near_pictures["validation~train"] >= 45
    split = fold_of_each(apart, manifest)
    assert any(split[f"set/{index:05d}"] != split[f"set/{100 + index:05d}"] for index in range(30))
    config = ShardConfig(folds=4, rows_per_group=256, duplicates="group")
    folder, manifest = make(tmp_path / "group", rows, config)
    split = fold_of_each(folder, manifest)
    assert all(split[f"set/{index:05d}"] == split[f"set/{100 + index:05d}"] for index in range(30))
    assert manifest.near_pictures["validation~train"] == 0
    assert manifest.duplicates == "group"


def spots(seed: int, brighter: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(30, 200, (8, 8), dtype=np.uint8)
    image = cv2.resize(coarse, (40, 40), interpolation=cv2.INTER_CUBIC) // 2 + 20 + brighter
    return cv2.imencode(".png", image)[1].tobytes()


def test_with_duplicates_off_near_ones_are_not_looked_for(tmp_path: Path) -> None:
    _, manifest = make(tmp_path, ROWS, ShardConfig(folds=4, rows_per_group=256, duplicates="off"))
    assert set(manifest.near_pictures.values()) == {0}
    assert set(manifest.shared_pictures.values()) == {0}


def test_the_manifest_knows_how_the_faces_were_cropped(tmp_path: Path) -> None:
    faces_folder(tmp_path, ROWS)
    path = tmp_path / "data" / "faces" / "set" / "faces.json"
    write_json(path, json.loads(path.read_text()) | {"crop": {"align": "arcface", "size": 112}})
    folder = shard_dataset("set", CONFIG, seed=0, root=tmp_path)
    assert load_manifest(folder).crop == {"align": "arcface", "size": 112}


def stored(table: pa.Table, change: str) -> pa.Table:
    """The faces with other columns."""
    if change == "renamed":
        return table.rename_columns({"image": "picture"})
    if change == "gone":
        return table.drop_columns(["label"])
    if change == "twice":
        return table.append_column("image", table["image"])
    if change == "type":
        return table.set_column(table.column_names.index("image"), "image", table["sample_id"])
    return pa.table({"a": [1]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("renamed", "has no column 'image'; found sample_id, picture, "),
        ("gone", "has no column 'label'"),
        ("twice", "has 2 column 'image'"),
        ("type", "column 'image' is string, expected binary"),
        ("all", "has no column 'sample_id'; found a"),
    ],
)
def test_faces_with_other_columns_are_refused_by_file_and_column_and_no_output_changes(
    change: str, words: str, tmp_path: Path
) -> None:
    folder, _ = make(tmp_path, ROWS)
    before = contents(folder)
    path = tmp_path / "data" / "faces" / "set" / "faces-00100.parquet"
    pq.write_table(stored(pq.read_table(path), change), path)
    with pytest.raises(FileError) as caught:
        shard_dataset("set", CONFIG, seed=1, root=tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: {words}")
    assert line.endswith("; run `dvc repro -f crop@set`")
    assert contents(folder) == before


@pytest.mark.parametrize("key", ["faces", "files", "generator", "label_space", "labels", "rejects", "source_digest"])
def test_a_faces_json_that_crop_did_not_write_is_refused_by_file_and_key(key: str, tmp_path: Path) -> None:
    faces_folder(tmp_path, ROWS)
    path = tmp_path / "data" / "faces" / "set" / "faces.json"
    about = json.loads(path.read_text())
    for changed in ({name: value for name, value in about.items() if name != key}, about | {key: None}):
        write_json(path, changed)
        with pytest.raises(FileError, match=rf"faces\.json: .*{key}.*; run `dvc repro -f crop@set`"):
            shard_dataset("set", CONFIG, seed=0, root=tmp_path)
    assert not (tmp_path / "data" / "shards").exists()


@pytest.mark.parametrize(
    ("environment", "cwd"),
    [
        ({"TZ": "Asia/Seoul", "LANG": "C", "LC_ALL": "C", "PYTHONHASHSEED": "1"}, "/"),
        ({"TZ": "America/Lima", "LANG": "ko_KR.UTF-8", "LC_ALL": "", "PYTHONHASHSEED": "77"}, "/tmp"),
    ],
)
def test_the_bytes_do_not_depend_on_the_machine_s_mood(
    tmp_path: Path, repo_root: Path, environment: dict[str, str], cwd: str
) -> None:
    folder, _ = make(tmp_path, ROWS)
    before = contents(folder)
    code = (
        "from pathlib import Path; from fer.shards.write import shard_dataset;"
        "from fer.shards.schema import ShardConfig;"
        f"shard_dataset('set', ShardConfig(folds=4, rows_per_group=256), seed=0, root=Path({str(tmp_path)!r}))"
    )
    env = {**os.environ, **environment, "PYTHONPATH": str(repo_root)}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, check=True, timeout=60)
    assert contents(folder) == before


def test_mean_and_std_are_those_of_the_train_split_exactly(tmp_path: Path) -> None:
    rows = [*ROWS, *(face(400 + index, image=png(400 + index, colour=False), channels=1) for index in range(20))]
    folder, manifest = make(tmp_path, rows)
    values = np.concatenate(
        [
            decode_image(image).reshape(-1, 3).astype(np.float64) / 255
            for file in manifest.splits["train"]
            for image in read_table(folder / file, ["image"])["image"]
        ]
    )
    assert manifest.mean == pytest.approx(values.mean(axis=0), abs=1e-12)
    assert manifest.std == pytest.approx(values.std(axis=0), abs=1e-12)


def test_row_groups_and_histograms_are_as_the_manifest_says(tmp_path: Path) -> None:
    rows = [face(index, split="train", subject=None) for index in range(1500)] + [face(9999, split="test")]
    folder, manifest = make(tmp_path, rows, ShardConfig(folds=2, rows_per_group=256))
    for part in manifest.parts:
        reader = TableReader(folder / part.file)
        assert tuple(reader.row_groups) == part.row_groups
        assert all(size == 256 for size in part.row_groups[:-1])
        labels = read_table(folder / part.file, ["label"])["label"]
        assert [labels.count(label) for label in range(7)] == list(part.class_histogram)
        said = reader.metadata
        assert json.loads(said["fer.labels"]) == list(LABELS)
        assert (said["fer.schema"], said["fer.color"], said["fer.dataset"]) == (str(SCHEMA_VERSION), "RGB", "set")
    assert manifest.image_size == (8, 8)
    assert manifest.synthetic
    assert manifest.rejects == {"no_face": 2}


def test_a_class_without_samples_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    make(tmp_path, [face(index, label=index % 6, clean_label=index % 6) for index in range(200)])
    assert "train split has no sample of anger" in caplog.text


def test_no_rows_for_a_split_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    faces_folder(tmp_path, [face(index, split="train") for index in range(50)])
    with pytest.raises(ShardError, match="no rows for the test split"):
        shard_dataset("set", CONFIG, seed=0, root=tmp_path)
    assert not list((tmp_path / "data" / "shards").iterdir())


def test_without_faces_the_error_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="crop@set"):
        shard_dataset("set", CONFIG, seed=0, root=tmp_path)


def test_damaged_faces_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    faces_folder(tmp_path, ROWS)
    path = tmp_path / "data" / "faces" / "set" / "faces-00100.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"faces-00100\.parquet"):
        shard_dataset("set", CONFIG, seed=0, root=tmp_path)


# ------------------------------------------------------------------------------------------------ verification


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_verify_accepts_what_was_written(tmp_path: Path) -> None:
    folder, manifest = make(tmp_path, ROWS)
    assert verify(folder) == manifest


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: flip(f / "train-f01-000.parquet"), r"train-f01-000\.parquet.*sha256"),
        (lambda f: (f / "train-f01-000.parquet").write_bytes(b"PAR1"), r"train-f01-000\.parquet.*truncated"),
        (lambda f: (f / "test-000.parquet").unlink(), r"test-000\.parquet: missing"),
        (lambda f: (f / "test-999.parquet").write_bytes(b""), r"test-999\.parquet: not in manifest"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: no such file"),
        (lambda f: (f / "manifest.json").write_text("{}"), r"manifest\.json: not a manifest"),
        (lambda f: change_manifest(f, schema_version=99), "schema version 99"),
        (lambda f: change_manifest(f, labels=list(reversed(LABELS))), "label"),
        (lambda f: change_manifest(f, splits={"train": [], "validation": [], "test": []}), "splits"),
    ],
)
def test_verify_names_the_file_and_the_repairing_command(tmp_path: Path, damage: object, said: str) -> None:
    folder, _ = make(tmp_path, ROWS)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(ShardError, match=said) as error:
        verify(folder)
    assert "dvc repro -f shard@set" in str(error.value)


def test_a_flipped_byte_is_found_by_the_page_checksum_without_the_manifest(tmp_path: Path) -> None:
    folder, _ = make(tmp_path, ROWS)
    path = folder / "train-f01-000.parquet"
    flip(path)
    with pytest.raises(ValueError, match=r"train-f01-000\.parquet: damaged"):
        read_table(path)
