"""data/statistics: what a dataset looks like, counted and shown."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import pytest
from test_shards_write import CONFIG, LABELS, ROWS, contents, face, faces_folder, make, png

from fer.io.files import read_json
from fer.shards.schema import SPLITS, ShardConfig
from fer.shards.write import shard_dataset


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    twins = [face(500, image=png(1), split="test"), face(501, image=png(3), label=0), face(502, image=png(3), label=1)]
    make(root, [*ROWS, *twins])
    return root


def test_rows_of_each_class_and_split_add_up(root: Path) -> None:
    manifest = read_json(root / "data/shards/set/manifest.json")
    rows = table(root / "data/statistics/set/classes.csv")
    assert [(row["split"], row["label"]) for row in rows] == [(split, label) for split in SPLITS for label in LABELS]
    assert [int(row["rows"]) for row in rows] == [
        count for split in SPLITS for count in manifest["class_histogram"][split]
    ]
    for split in SPLITS:
        assert sum(float(row["share"]) for row in rows if row["split"] == split) == pytest.approx(1, abs=1e-3)
    assert rows[0]["class"] == "train: neutral"


def test_sizes_subjects_and_poses_are_told_where_they_are_known(root: Path) -> None:
    told = read_json(root / "data/statistics/set/statistics.json")
    train = told["splits"]["train"]
    assert train["height"] == {"lowest": 8, "median": 8, "highest": 8}
    assert train["grey"] == 0
    assert train["yaw"] == {"lowest": 1, "median": 1, "highest": 1}
    assert "score" not in train
    assert 0 < train["subjects"] <= 111
    assert told["rejects"] == {"no_face": 2}
    assert told["splits"]["test"]["rows"] == 67
    assert all(0.4 < value < 0.6 for value in train["mean"].values())


def test_pairs_of_one_photograph_are_listed_with_their_splits_and_labels(root: Path) -> None:
    rows = table(root / "data/statistics/set/duplicates.csv")
    assert [(row["first"], row["second"], row["kind"]) for row in rows] == [
        ("set/00001", "set/00500", "exact"),
        ("set/00003", "set/00501", "exact"),
        ("set/00003", "set/00502", "exact"),
    ]
    assert (rows[0]["first_split"], rows[0]["second_split"]) == ("train", "test")
    assert (rows[1]["first_label"], rows[1]["second_label"]) == ("surprise", "neutral")
    assert table(root / "data/statistics/set/dropped.csv") == []


def test_the_sheet_has_a_row_a_class_and_the_faces_of_each_split_side_by_side(root: Path) -> None:
    sheet = cv2.imread(str(root / "data/statistics/set/samples.png"))
    assert sheet is not None
    assert sheet.shape == (7 * 64 + 24, 104 + 3 * (6 * 64 + 8), 3)
    cells = sheet[24:, 104 : 104 + 6 * 64].reshape(7, 64, 6, 64, 3)
    assert (cells.std(axis=(1, 3, 4)) > 10).all(), "each class of train has six faces"


def test_statistics_are_the_same_bytes_again(root: Path) -> None:
    before = contents(root / "data/statistics/set")
    shard_dataset("set", CONFIG, seed=0, root=root)
    assert contents(root / "data/statistics/set") == before
    assert set(before) == {"classes.csv", "statistics.json", "duplicates.csv", "dropped.csv", "samples.png"}


def test_dropped_rows_are_listed_with_the_row_that_stays_in_their_place(tmp_path: Path) -> None:
    rows = [*ROWS, face(500, image=png(1), split="test"), face(501, image=png(3), split="train")]
    config = ShardConfig(folds=4, rows_per_group=256, duplicates="drop")
    _, manifest = make(tmp_path, rows, config)
    assert table(tmp_path / "data/statistics/set/dropped.csv") == [
        {"sample_id": "set/00001", "reason": "duplicate_of_test", "kept": "set/00500"},
        {"sample_id": "set/00501", "reason": "duplicate", "kept": "set/00003"},
    ]
    assert manifest.rejects == {"no_face": 2, "duplicate_of_test": 1, "duplicate": 1}
    assert sum(manifest.rows(split) for split in SPLITS) == len(rows) - 2
    assert set(manifest.shared_pictures.values()) == {0}


def test_scores_and_grey_pictures_are_told(tmp_path: Path) -> None:
    faces_folder(
        tmp_path,
        [face(i, image=png(i, colour=i % 2 == 0), score=i / 400, pose=None, subject=None) for i in range(400)],
    )
    shard_dataset("set", CONFIG, seed=0, root=tmp_path)
    told = read_json(tmp_path / "data/statistics/set/statistics.json")["splits"]["test"]
    assert told["score"] == {"lowest": 0.0, "median": 0.4938, "highest": 0.9875}
    assert told["grey"] == 0.5
    assert not {"yaw", "subjects"} & set(told)
