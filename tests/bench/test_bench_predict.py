"""`fer bench predict` measures a photo and its parts, model by model."""

from pathlib import Path

import pytest

from benchmarks.__main__ import parse
from benchmarks.predict import run


def words(photos: Path, weights: Path) -> list[str]:
    given = ["--photos", str(photos), "--detector-weights", str(weights), "--models", "ddamfn_small", "--rounds", "1"]
    return ["predict", *given]


def test_a_photo_and_its_parts_are_measured_for_each_model(test_data: Path) -> None:
    photo, weights = test_data / "photos" / "deepface_couple.jpg", test_data / "weights" / "yunet"
    result = run(parse(words(photo, weights)))
    assert [(row["model"], row["px"], row["part"]) for row in result.rows] == [
        ("ddamfn_small", 48, part) for part in ("whole", "decode", "detect", "model")
    ]
    assert all(row["cpu ms"] > 0 for row in result.rows)
    assert "1 with 2 faces" in result.title


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: no photo there"):
        run(parse(words(tmp_path, tmp_path)))
