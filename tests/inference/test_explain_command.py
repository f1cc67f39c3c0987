"""`fer explain`: an image a face, with the maps of several models; nothing is overwritten."""

from pathlib import Path

import cv2
import pytest
from builders.scenes import LABELS, Scenes

from fer.cli import main
from fer.inference.model import Model


def explain(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["explain", *map(str, words)])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.usefixtures("model")
def test_every_face_has_an_image_with_its_map(
    weights: Path, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next(path for path in sorted(scenes.folder.rglob("*")) if path.is_file())
    faces = Model(weights).predict(photo).faces
    out = tmp_path / "maps"
    words = (photo, "--weights", weights, "--out", out, "--target", LABELS[0], "--beside", weights)
    assert explain(*words) == 0
    assert len(list(out.iterdir())) == len(faces) > 0
    for path in out.iterdir():
        height, width, _ = cv2.imread(str(path)).shape
        assert width == 3 * height, "the crop and two maps"
    assert capsys.readouterr().out.count(LABELS[0]) == 2 * len(faces)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert explain(*words) == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.usefixtures("model")
def test_photos_without_a_face_and_of_one_name_are_named(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    assert explain(broken, "--weights", weights, "--out", tmp_path / "maps") == 1
    assert "broken.jpg: not read: " in capsys.readouterr().out
    assert explain(tmp_path, "--weights", weights, "--out", tmp_path / "maps") == 1
    assert f"{tmp_path}: is a folder; name images" in capsys.readouterr().out
    assert explain(broken, tmp_path / "other" / "broken.jpg", "--weights", weights, "--out", tmp_path / "maps") == 1
    assert not (tmp_path / "maps").exists()
