"""Drawn faces in the published layouts: what the readers find in them is what was drawn."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml_text

from fer import cli
from fer.config import parse
from fer.io.files import FileError
from fer.sources.base import DRAWN, RawSample, describe
from fer.sources.drawn import LAYOUTS, draw, write
from fer.sources.registry import READERS, get_source
from fer.stages.download import download_dataset

KINDS = {kind.model_fields["source"].annotation.__args__[0]: kind for kind in READERS}  # type: ignore[union-attr]
KOREAN = {"surprise": "panic", "fear": "anxiety", "disgust": "hurt"}


def read(root: Path, entry: dict[str, Any]) -> tuple[list[RawSample], tuple[str, ...], dict[str, Any]]:
    """The samples that the download stage finds, the names of their labels, and source.json."""
    config: Any = parse(KINDS[entry["source"]], entry, "params.yaml")
    raw = download_dataset("set", config, seed=0, root=root)
    source = get_source(config, 0)
    found = [sample for block in source.blocks(raw) for sample in source.read(raw, block)]
    assert all(isinstance(one, RawSample) for one in found)
    return found, source.label_space.labels, describe(raw)  # type: ignore[return-value]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_drawn_layout_is_read_with_the_labels_that_were_drawn(tmp_path: Path, layout: str) -> None:
    classes, _ = LAYOUTS[layout]
    images = 8 * classes
    samples, names, about = read(tmp_path, write(layout, tmp_path / "drawn", images=images))
    expected = Counter((one.test, one.name) for one in draw(images, classes, 0))
    if layout == "aihub":
        expected = Counter({(test, KOREAN.get(name, name)): count for (test, name), count in expected.items()})
    assert Counter((one.split != "train", names[one.faces[0].label]) for one in samples) == expected
    assert about["generator"] == f"synthetic/{layout}"
    assert about["rejects" if "rejects" in about else "bad_rows"] == {}


def test_fer2013_has_every_class_in_all_three_usages(tmp_path: Path) -> None:
    for layout in ("fer2013", "ferplus"):
        samples, names, _ = read(tmp_path / layout, write(layout, tmp_path / f"{layout}-drawn", images=64))
        found = {(one.split, names[one.faces[0].label]) for one in samples}
        classes = names[: LAYOUTS[layout][0]]
        assert found == {(split, name) for split in ("train", "validation", "test") for name in classes}


@pytest.mark.parametrize(
    ("layout", "options"), [("rafdb", {"images": "original"}), ("caers", {"missing_boxes": "find"}), ("aihub", {})]
)
def test_faces_of_whole_images_lie_within_them(tmp_path: Path, layout: str, options: dict[str, Any]) -> None:
    samples, _, _ = read(tmp_path, write(layout, tmp_path / "drawn", images=56) | options)
    for one in samples:
        (face,) = one.faces
        assert face.box is not None
        assert 0 <= face.box[0] < face.box[2] <= 160
        assert 0 <= face.box[1] < face.box[3] <= 160
        assert not one.is_crop


def test_landmarks_of_affectnet_lie_in_the_order_of_five(tmp_path: Path) -> None:
    samples, _, _ = read(tmp_path, write("affectnet", tmp_path / "drawn", images=64))
    frontal = [one.faces[0].landmarks for one in samples if one.faces[0].landmarks]
    assert len(frontal) == 64
    right, left, _, right_mouth, _ = map(list, zip(*frontal, strict=True))
    assert sum(r[0] < other[0] for r, other in zip(right, left, strict=True)) == 64  # the person's right is at the left
    assert sum(eye[1] < mouth[1] for eye, mouth in zip(right, right_mouth, strict=True)) == 64


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_seed_alone_decides_the_bytes(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for out, seed in ((one, 3), (same, 3), (other, 4)):
        write("fer2013", out, images=56, seed=seed)
    assert digests(one) == digests(same)
    assert {name for name, digest in digests(one).items() if digests(other)[name] == digest} == {DRAWN}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="mine"):
        write("rafdb", tmp_path / "mine")
    assert digests(tmp_path / "mine").keys() == {"notes.txt"}
    with pytest.raises(ValueError, match=r"55 images: rafdb needs at least 56"):
        write("rafdb", tmp_path / "new", images=55)
    assert not (tmp_path / "new").exists()


def test_the_command_prints_the_entry_that_reads_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli._main(["synth", "dataset", "--layout", "caers", "--out", str(tmp_path / "drawn"), "--images", "56"])
    printed = yaml_text.load(capsys.readouterr().out.partition("\n\n")[2])
    samples, _, _ = read(tmp_path, printed["datasets"]["caers"])
    assert len(samples) == 56
