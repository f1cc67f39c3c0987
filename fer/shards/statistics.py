"""What a dataset looks like: data/statistics/<dataset>, for people and for DVC's plots and metrics.

classes.csv: rows of each class and split. statistics.json: sizes, subjects, brightness, poses, scores, leaks.
samples.png: some faces of each class and split. duplicates.csv: pairs of rows found to show one photograph; rows of the
same pixels are each paired with the first of them, which stands for all of them in the other pairs.
dropped.csv: rows that `shard.duplicates: drop` left out.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer.hashing import stable_hash
from fer.io.files import open_atomic, write_atomic, write_json
from fer.shards.duplicates import Pair
from fer.shards.leakage import Dropped, Duplicates
from fer.shards.manifest import Manifest
from fer.shards.schema import SPLITS, Split
from fer.shards.survey import Face, mean_std

ReadImages = Callable[[Sequence[int]], list[bytes]]

_SAMPLES = 6  # faces of a class and split on the sheet
_CLASSES = 64  # classes on the sheet, the first ones: of people there are tens of thousands
_CELL = 64  # px
_TEXT = 104  # px, for the class's name
_GAP = 8  # px between the splits


def write_statistics(
    folder: Path,
    manifest: Manifest,
    faces: Sequence[Face],
    split_of: Mapping[int, Split],
    duplicates: Duplicates,
    dropped: Mapping[int, Dropped],
    read_images: ReadImages,
) -> None:
    """Writes the files named above into a folder.

    Args:
        faces: all that were surveyed; the mappings speak of them by number.
        split_of: the split that a face stands in; dropped ones stand in none.
        read_images: the encoded images of some faces, by their numbers.
    """
    classes = [
        (f"{split}: {label}", split, label, rows, f"{rows / manifest.rows(split):.4f}")
        for split in SPLITS
        for label, rows in zip(manifest.labels, manifest.class_histogram[split], strict=True)
    ]
    _write_csv(folder / "classes.csv", ("class", "split", "label", "rows", "share"), classes)
    members = {split: [row for row in split_of if split_of[row] == split] for split in SPLITS}
    summary = {
        "splits": {split: _summarize([faces[row] for row in members[split]]) for split in SPLITS},
        "rejects": manifest.rejects,
        "shared_pictures": manifest.shared_pictures,
        "near_pictures": manifest.near_pictures,
        "label_conflicts": manifest.label_conflicts,
    }
    write_json(folder / "statistics.json", summary)
    _write_csv(folder / "duplicates.csv", _PAIRS, sorted(_pair(manifest, faces, pair) for pair in duplicates.pairs()))
    _write_csv(
        folder / "dropped.csv",
        ("sample_id", "reason", "kept"),
        sorted((faces[row].sample_id, why.reason, faces[why.kept].sample_id) for row, why in dropped.items()),
    )
    write_atomic(folder / "samples.png", _sheet(manifest, faces, members, read_images))


_PAIRS = ("first", "second", "first_split", "second_split", "first_label", "second_label", "kind", "agreement")


def _pair(manifest: Manifest, faces: Sequence[Face], pair: Pair) -> tuple[str | float, ...]:
    one, other = sorted((faces[pair.first], faces[pair.second]), key=lambda face: face.sample_id)
    labels = manifest.labels[one.label], manifest.labels[other.label]
    return (one.sample_id, other.sample_id, one.split, other.split, *labels, pair.kind, pair.agreement)


def _summarize(faces: Sequence[Face]) -> dict[str, Any]:
    """Numbers of some faces; what is not known of any of them is left out.

    rows; subjects; "grey", the fraction of images with one channel; height, width in px; mean, std of red, green and
    blue, 0 .. 1; yaw in degrees; score of the detector. Ranges are given as lowest, median and highest.
    """
    mean, std = mean_std(faces)
    summary: dict[str, Any] = {
        "rows": len(faces),
        "grey": round(sum(face.gray for face in faces) / len(faces), 4),
        "height": _range([face.size[0] for face in faces]),
        "width": _range([face.size[1] for face in faces]),
        "mean": dict(zip(("red", "green", "blue"), (round(value, 4) for value in mean), strict=True)),
        "std": dict(zip(("red", "green", "blue"), (round(value, 4) for value in std), strict=True)),
    }
    if subjects := {face.subject for face in faces} - {None}:
        summary["subjects"] = len(subjects)
    if yaw := [face.yaw for face in faces if face.yaw is not None]:
        summary["yaw"] = _range(yaw)
    if scores := [face.score for face in faces if face.score is not None]:
        summary["score"] = _range(scores)
    return summary


def _range(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return {"lowest": round(float(low), 4), "median": round(float(middle), 4), "highest": round(float(high), 4)}


def _sheet(
    manifest: Manifest, faces: Sequence[Face], members: Mapping[Split, Sequence[int]], read_images: ReadImages
) -> bytes:
    """A PNG: one row a class, six faces of each split side by side; the same faces for the same rows and seed.

    Of many classes the first 64.

    Args:
        members: numbers of the faces of each split.
    """
    shown = manifest.labels[:_CLASSES]
    cells: dict[tuple[Split, int], list[int]] = {(split, label): [] for split in SPLITS for label in range(len(shown))}
    for split in SPLITS:
        some = [row for row in members[split] if faces[row].label < len(shown)]
        for row in sorted(some, key=lambda row: stable_hash("sample", manifest.seed, faces[row].sample_id)):
            if len(cell := cells[split, faces[row].label]) < _SAMPLES:
                cell.append(row)
    shown_rows = sorted(row for rows in cells.values() for row in rows)
    image_of = dict(zip(shown_rows, read_images(shown_rows), strict=True))
    wide = _SAMPLES * _CELL + _GAP
    page = np.full((len(shown) * _CELL + 24, _TEXT + wide * len(SPLITS), 3), 255, np.uint8)
    for column, split in enumerate(SPLITS):
        left = _TEXT + column * wide
        _write(page, f"{split} ({manifest.rows(split)})", left, 16)
        for label, name in enumerate(shown):
            top = 24 + label * _CELL
            _write(page, name, 4, top + _CELL // 2 + 4)
            for place, row in enumerate(cells[split, label]):
                x = left + place * _CELL
                page[top : top + _CELL, x : x + _CELL] = _cell(image_of[row])
    return cv2.imencode(".png", page)[1].tobytes()


def _cell(data: bytes) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None  # the survey has decoded it
    kernel = cv2.INTER_AREA if max(image.shape[:2]) > _CELL else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (_CELL, _CELL), interpolation=kernel), np.uint8)


def _write(page: npt.NDArray[np.uint8], text: str, x: int, y: int) -> None:
    cv2.putText(page, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (60, 60, 60), 1, cv2.LINE_AA)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open_atomic(path, "w") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
