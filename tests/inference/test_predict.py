"""`fer predict`: the faces, pixels and logits of training, exact outputs, and no file that was not asked for."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from builders.images import encoded
from builders.scenes import CROP, LABELS, Scenes
from builders.shards import write_part, write_set
from flaky_server import Site, serve

from fer import cli, console
from fer.config import ConfigError
from fer.evaluation.predict import PredictJob, predict_share
from fer.faces.config import CropConfig
from fer.faces.crop import FaceCrop, crop_samples
from fer.faces.detection import Image
from fer.inference.model import Model, crop_config
from fer.inference.output import SYNTHETIC, annotated, as_csv, columns_of, lines, place_labels, rows_of
from fer.inference.photos import find_photos
from fer.io.files import FileError
from fer.io.images import decode_image
from fer.models import create_model
from fer.shards.manifest import load_manifest
from fer.sources.base import AnnotatedFace, RawSample
from fer.training.publish import publish
from fer.training.recipe import load_recipe
from fer.weights.store import WeightsInfo, load_model, save_model


def photos_in(folder: Path) -> list[tuple[str, Path | bytes]]:
    return [(str(path), path) for path in find_photos([folder])]


def shards_of(folder: Path, crops: list[bytes]) -> Path:
    """Shards whose test split holds these crops."""
    write_set(folder)
    manifest = load_manifest(folder)
    part = write_part(folder, "test-0.parquet", "test", dict(enumerate(crops)))
    parts = (*(other for other in manifest.parts if other.file != part.file), part)
    histogram = {**manifest.class_histogram, "test": part.class_histogram}
    replace(manifest, parts=parts, class_histogram=histogram).save(folder)
    return folder


# ------------------------------------------------------------------------------------------------ parity


def test_images_of_a_dataset_get_the_logits_of_evaluate(
    model: Model, weights: Path, scenes: Scenes, tmp_path: Path
) -> None:
    """The crop stage, shards and `evaluate` on one side, `fer predict` on the other."""
    folder, finder, count = scenes
    face = AnnotatedFace(box=None, landmarks=None, label=1, clean_label=1)
    samples = [
        RawSample(key=path.name, image=path.read_bytes(), split="test", faces=(face,), is_crop=False, origin=path.name)
        for path in find_photos([folder])
    ]
    config = CROP.model_copy(update={"faces": "all"})
    crops = [one for found in crop_samples(samples, config, finder) for one in found if isinstance(one, FaceCrop)]
    assert 8 < len(crops) <= count
    shards = shards_of(tmp_path / "scenes", [crop.image for crop in crops])
    job = PredictJob(
        shards=str(shards), weights=str(weights / "model.safetensors"), split="test", batch_size=16, threads=1
    )
    evaluated = predict_share(job).logits
    assert np.ptp(evaluated, axis=0).max() > 0.1, "the weights distinguish faces"

    for batch, threads in ((1, 1), (5, 3), (100, 1)):
        found = list(Model(weights, threads=threads).results(photos_in(folder), batch=batch))
        predicted = np.array([list(face.logits.values()) for result in found for face in result.faces])
        assert np.abs(predicted - evaluated).max() < 1e-5 * max(1.0, np.abs(evaluated).max())
        assert [result.name for result in found] == [name for name, _ in photos_in(folder)]


def test_flip_is_the_mean_over_the_face_and_its_mirror_image(weights: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    face, mirrored = encoded(noise, "PNG"), encoded(noise[:, ::-1], "PNG")
    alone = Model(weights).logits([face, mirrored])
    assert Model(weights, tta="flip").logits([face])[0] == pytest.approx(alone.mean(axis=0), abs=1e-5)


# ------------------------------------------------------------------------------------------------ configuration


def info(**extra: object) -> WeightsInfo:
    return WeightsInfo(
        model="m", options={}, labels=LABELS, label_space="basic7", input_size=112, mean=(0, 0, 0), std=(1, 1, 1),
        resize={}, extra=extra,
    )  # fmt: skip


def test_faces_are_cropped_like_the_training_data(caplog: pytest.LogCaptureFixture) -> None:
    trained = CropConfig(detector="yunet", align="square", size=224, min_score=0.7, faces="central").model_dump()
    own = crop_config(info(crop=trained), None)
    assert (own.detector, own.align, own.size, own.min_score, own.faces) == ("yunet", "square", 224, 0.7, "all")
    other = crop_config(info(crop=trained), "retinaface")
    assert (other.detector, other.align, other.min_score) == ("retinaface", "square", None)
    assert "detected by yunet, not by retinaface" in caplog.text


def test_default_detector_replaces_annotated_boxes(caplog: pytest.LogCaptureFixture) -> None:
    config = crop_config(info(crop=CropConfig(border="reflect").model_dump()), None)
    assert (config.detector, config.border) == ("yunet", "reflect")
    assert caplog.text == ""


def test_weights_without_a_crop_configuration_get_the_defaults_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert crop_config(info(), "yunet") == CropConfig(detector="yunet", faces="all")
    assert "do not say how" in caplog.text


def test_unknown_crop_value_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"crop\.border = 'wrap'"):
        crop_config(info(crop=CropConfig().model_dump() | {"border": "wrap"}), "yunet")


def published_run(folder: Path, **facts: object) -> WeightsInfo:
    """The description in the weights that a run publishes."""
    model = create_model("ddamfn_nano", len(LABELS))
    recipe = load_recipe({"recipe": "ddamfn/nano"}, Path(), "test")
    job = SimpleNamespace(labels=LABELS, fingerprint="f", recipe=recipe)
    history = [{"epoch": 1, "stage": 1, "val_accuracy": 0.5}]
    state = SimpleNamespace(best_epoch=1, first_epoch=0, chosen=[], best_model=model.state_dict(), history=history)
    publish(folder, model, job, state, {"dataset": "d", "label_space": "basic7", "crop": {}, **facts}, {})
    return Model(folder).info


def test_run_writes_its_crop_configuration_into_the_weights(tmp_path: Path) -> None:
    written = published_run(tmp_path / "run", synthetic=False, crop=CROP.model_dump(exclude={"detector_weights"}))
    assert crop_config(written, None) == CROP.model_copy(update={"faces": "all"})


def test_published_weights_are_refused_with_the_import_command(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileError, match="fer weights import"):
        Model(tmp_path / "model.pth")
    with pytest.raises(FileError, match="no such file"):
        Model(tmp_path)


# ------------------------------------------------------------------------------------------------ photos


def test_images_below_folders_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/notes.txt", ".hidden/x.jpg", "a/.x.jpg", "no_ending"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_photos([tmp_path, tmp_path / "no_ending"])]
    assert found == ["b.JPG", "a/z.png", "no_ending"]


def test_unreadable_photos_are_named_with_the_reason_and_skipped(model: Model, scenes: Scenes, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    blank = encoded(np.full((90, 90, 3), 200, np.uint8), "PNG")
    given = [
        ("page", tmp_path / "page.jpg"),
        ("gone", tmp_path / "gone.jpg"),
        ("blank", blank),
        *photos_in(scenes.folder),
    ]
    found = list(model.results(given))
    assert [photo.read for photo in found[:4]] == [False, False, True, True]
    assert [next(lines(photo)) for photo in found[:3]] == [
        "page  not read: not_an_image: no known image format in 6 bytes",
        "gone  not read: not_a_file: no such file",
        "blank  no face: the detector finds no face in this image",
    ]
    assert sum(len(photo.faces) for photo in found) > 8


def test_whole_photo_is_one_face(weights: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    model = Model(weights, detector="whole")
    (face,) = model.predict(noise).faces
    assert (face.box, face.score) == ((0, 0, 112, 112), None)
    assert list(face.logits.values()) == model.logits([encoded(noise, "PNG")])[0].tolist()


def test_tables_have_every_face_with_all_probabilities_in_the_order_of_the_weights(
    model: Model, scenes: Scenes
) -> None:
    photos = list(model.results(photos_in(scenes.folder)))
    rows = list(csv.DictReader(as_csv(rows_of(photos), LABELS).splitlines()))
    written = json.loads(json.dumps([photo.to_dict() for photo in photos]))
    faces = [(photo, face) for photo in photos for face in photo.faces]
    assert [row["face"] for row in rows if row["face"]] == [
        str(number) for photo in photos for number, _ in enumerate(photo.faces, 1)
    ]
    assert list(written[0]["faces"][0]["probabilities"]) == list(LABELS)
    for (photo, face), row in zip(faces, [row for row in rows if row["face"]], strict=True):
        probabilities = [float(row[f"p_{label}"]) for label in LABELS]
        assert row["file"] == photo.name
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(face.logits, key=face.logits.__getitem__) == face.label
        assert float(row["confidence"]) == max(probabilities)
    assert len(rows) == len(faces) + sum(not photo.faces for photo in photos)


def test_drawing_does_not_change_the_photo(model: Model, scenes: Scenes) -> None:
    photo = next(photo for photo in model.results(photos_in(scenes.folder)) if photo.faces)
    image = decode_image(Path(photo.name).read_bytes())
    before = image.copy()
    drawn = annotated(image, photo.faces)
    assert np.array_equal(image, before)
    assert drawn.shape == image.shape
    assert (drawn != image).any()


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def predict(model: Model, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs `fer predict` in an empty folder, with the known faces instead of a detector."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int | None:
        return cli._main(["predict", "--weights", str(weights), *arguments, "--threads", "1"])

    return run


def test_command_prints_one_line_per_face_and_writes_nothing(
    predict, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(str(scenes.folder)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(line.startswith(str(scenes.folder)) for line in printed)
    assert sum("  face " in line for line in printed) > 8
    assert not list(tmp_path.iterdir())


def test_command_writes_the_requested_files(predict, scenes: Scenes, tmp_path: Path) -> None:
    assert (
        predict(str(scenes.folder), "--json", "faces.json", "--csv", "faces.csv", "--annotate", "--out", "drawn") == 0
    )
    about = json.loads((tmp_path / "faces.json").read_text())
    with_faces = [photo for photo in about["photos"] if photo["faces"]]
    assert about["labels"] == list(LABELS)
    assert len(about["photos"]) == 12
    assert (tmp_path / "faces.csv").read_text().startswith("file,face,x1,")
    assert len(list((tmp_path / "drawn").rglob("*.faces.jpg"))) == len(with_faces)


def test_unreadable_photos_have_their_own_exit_code_and_are_counted_last(
    predict, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.log, "handlers", [])
    monkeypatch.setattr(console.log, "propagate", False)
    console.set_up()
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    assert predict("page.jpg", str(scenes.folder / "00.jpg"), "--json", "f.json", "--csv", "f.csv") == 3
    assert capsys.readouterr().out.splitlines()[-1] == "warning: 1 of 2 photos could not be read"
    assert [photo["read"] for photo in json.loads((tmp_path / "f.json").read_text())["photos"]] == [False, True]
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 3
    assert predict("page.jpg", "gone.jpg") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "warning: 2 of 2 photos could not be read"
    assert predict(str(scenes.folder / "00.jpg")) == 0
    assert "could not be read" not in capsys.readouterr().out


def test_parquet_holds_the_table_of_csv(predict, scenes: Scenes, tmp_path: Path) -> None:
    assert predict(str(scenes.folder), "--csv", "f.csv", "--parquet", "f.parquet") == 0
    rows = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))
    stored = pq.read_table(tmp_path / "f.parquet").to_pylist()
    assert list(stored[0]) == list(rows[0]) == list(columns_of(LABELS))
    assert [row["label"] or "" for row in stored] == [row["label"] for row in rows]
    assert [row["p_anger"] for row in stored if row["face"]] == [float(row["p_anger"]) for row in rows if row["face"]]


def test_json_on_standard_output_is_nothing_else(
    predict, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.log, "handlers", [])
    monkeypatch.setattr(console.log, "propagate", False)
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    assert predict(str(scenes.folder / "00.jpg"), "page.jpg", "--json", "-") == 3
    assert len(json.loads(capsys.readouterr().out)["photos"]) == 2
    assert not (tmp_path / "-").exists()


def test_patterns_and_urls_are_photos(
    predict, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(Site(body=(scenes.folder / "00.jpg").read_bytes())) as site:
        url = f"{site.url}/a/b.jpg"
        assert predict(str(scenes.folder / "*.jpg"), f"{url}?key=secret", "--json", "f.json") == 0
    files = [photo["file"] for photo in json.loads((tmp_path / "f.json").read_text())["photos"]]
    assert files == [*map(str, sorted(scenes.folder.iterdir())), url]
    assert "secret" not in capsys.readouterr().out


def test_weights_before_the_photos_still_work_with_a_warning(
    model, weights: Path, scenes: Scenes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for old in (str(weights), str(weights / "model.safetensors")):
        assert cli._main(["predict", old, str(scenes.folder / "00.jpg")]) == 0
        assert f"--weights {old}" in caplog.text
    with pytest.raises(ValueError, match="and --weights"):
        cli._main(["predict", str(weights), str(scenes.folder), "--weights", str(weights)])
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="holds weights and images"):
        cli._main(["predict", str(tmp_path), str(scenes.folder)])


def test_labels_of_a_crowd_do_not_overlap() -> None:
    random = np.random.default_rng(0)
    boxes = [(x, y, x + 30, y + 30) for x, y in random.integers(0, 570, (40, 2)).tolist()] + [(300, 300, 330, 330)] * 5
    sizes = [(80, 12)] * len(boxes)
    places = place_labels(boxes, sizes, (600, 600))
    taken = np.zeros((600, 600), int)
    for (left, top), (width, height) in zip(places, sizes, strict=True):
        assert 0 <= left <= 600 - width
        assert 0 <= top <= 600 - height
        taken[top : top + height, left : left + width] += 1
    assert taken.max() == 1
    assert place_labels([(10, 50, 60, 90)], [(40, 12)], (100, 100)) == [(10, 38)], "above its face"
    assert place_labels([(0, 0, 8, 8)] * 9, [(40, 12)] * 9, (10, 10)) == [(0, 0)] * 9, "no room"


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._main(["predict", "--help"])
    assert "3 where some could not" in " ".join(capsys.readouterr().out.split())


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def photos(scenes: Scenes, tmp_path: Path) -> Path:
    """Photos with faces: a.jpg, in/b.jpg and in/side/a.jpg."""
    with_faces = [
        path for path in sorted(scenes.folder.iterdir()) if scenes.finder.detector.detect([pixels_of(path)])[0]
    ]
    for name, path in zip(("a.jpg", "in/b.jpg", "in/side/a.jpg"), with_faces, strict=False):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(path.read_bytes())
    return tmp_path / "photos"


def pixels_of(path: Path) -> Image:
    return decode_image(path.read_bytes())


def test_drawings_mirror_the_tree_below_each_given_folder(predict, photos: Path, tmp_path: Path) -> None:
    before = tree(photos)
    assert predict(str(photos), "--annotate", "--out", "o1") == 0  # an absolute path
    assert set(tree(tmp_path / "o1")) == {"a.jpg.faces.jpg", "in/b.jpg.faces.jpg", "in/side/a.jpg.faces.jpg"}
    assert predict("photos/in/", "photos/a.jpg", "--annotate", "--out", "o2") == 0
    assert set(tree(tmp_path / "o2")) == {"b.jpg.faces.jpg", "side/a.jpg.faces.jpg", "a.jpg.faces.jpg"}
    assert predict("photos/../photos/in", "--annotate", "--out", "o3") == 0
    assert set(tree(tmp_path / "o3")) == {"b.jpg.faces.jpg", "side/a.jpg.faces.jpg"}
    assert tree(photos) == before


def test_two_photos_for_one_drawing_are_refused_before_anything_is_written(predict, photos: Path) -> None:
    before = tree(photos.parent)
    with pytest.raises(
        ValueError, match=r"photos/a\.jpg and photos/in/side/a\.jpg: both would be written to o/a\.jpg\.faces"
    ):
        predict("photos/a.jpg", "photos/in/side", "--annotate", "--out", "o", "--json", "f.json")
    assert tree(photos.parent) == before
    assert predict("photos/a.jpg", "photos/../photos/a.jpg", "--annotate", "--out", "o") == 0, "the same photo twice"


def test_drawing_never_overwrites_a_file(predict, photos: Path) -> None:
    (photos / "in" / "b.jpg.faces.jpg").write_bytes(b"mine")
    before = tree(photos.parent)
    with pytest.raises(ValueError, match=r"photos/in/b\.jpg\.faces\.jpg: exists already"):
        predict(str(photos), "--annotate", "--out", str(photos))
    (photos / "in" / "b.jpg.faces.jpg").unlink()
    (photos / "in" / "b.jpg.faces.jpg").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"b\.jpg\.faces\.jpg: exists already"):
        predict("photos/in/b.jpg", "--annotate", "--out", "photos/in")
    (photos / "in" / "b.jpg.faces.jpg").unlink()
    assert tree(photos.parent) == {name: data for name, data in before.items() if data != b"mine"}


def test_drawings_beside_the_photos_do_not_change_these(predict, photos: Path) -> None:
    before = tree(photos)
    assert predict(str(photos), "--annotate", "--out", str(photos)) == 0
    after = tree(photos)
    assert {name: data for name, data in after.items() if not name.endswith(".faces.jpg")} == before
    assert len(after) == 2 * len(before), "drawings are not photos of the same run"


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_table_never_replaces_an_input(predict, photos: Path, weights: Path, option: str) -> None:
    before = tree(photos.parent) | tree(weights)
    for path in ("photos/a.jpg", "photos/in", str(weights / "model.safetensors"), "same.txt"):
        other = ["--csv" if option == "--json" else "--json", "same.txt"]
        with pytest.raises(ValueError, match=r"--(json|csv) .*: is a folder, or a file that is used already"):
            predict("photos/a.jpg", option, path, *other)
    assert tree(photos.parent) | tree(weights) == before


@pytest.mark.parametrize("option", ["--json", "--csv", "--parquet"])
def test_table_replaces_an_earlier_one_and_no_other_file(predict, photos: Path, option: str) -> None:
    for _ in range(2):
        assert predict("photos/a.jpg", option, "table") == 0
    for name, content in (("notes.txt", b"file,face,mine\n"), ("photo.jpg", photos.joinpath("a.jpg").read_bytes())):
        Path(name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{option} {name}: holds no predictions; remove it"):
            predict("photos/a.jpg", option, name)
        assert Path(name).read_bytes() == content


def test_any_file_name_is_printed_on_one_line(predict, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"a\nb \xff \x1b[31m.jpg")
    Path(odd).write_bytes(b"<html>")
    assert predict(odd, "--json", "f.json") == 1
    assert capsys.readouterr().out.startswith(r"a\nb \udcff \x1b[31m.jpg  not read")


# ------------------------------------------------------------------------------------------------ synthetic faces


def resaved(weights: Path, folder: Path, extra: dict[str, object]) -> Path:
    """The same weights with another description."""
    model, info = load_model(weights / "model.safetensors")
    extra = {"crop": info.extra["crop"], **extra}
    save_model(model, folder / "model.safetensors", LABELS, "basic7", extra, name="ddamfn_nano")
    return folder


@pytest.mark.parametrize(
    ("extra", "synthetic"),
    [({"dataset": "drawn", "synthetic": True}, True), ({"dataset": "synthetic_noise10"}, True),
     ({"dataset": "synthetic", "synthetic": False}, False), ({"dataset": "fer2013"}, False), ({}, False)],
)  # fmt: skip
def test_every_output_of_a_synthetic_model_says_so(
    weights: Path, photos: Path, predict, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    extra: dict[str, object], synthetic: bool,
) -> None:  # fmt: skip
    folder = resaved(weights, tmp_path / "trained", extra)
    out = ["--json", "f.json", "--csv", "f.csv", "--annotate", "--out", "o", "--threads", "1"]
    assert cli._main(["predict", "--weights", str(folder), "photos", *out]) == 0
    printed = capsys.readouterr()
    warning = f"warning: {folder}/model.safetensors: trained on synthetic faces: says nothing about people\n"
    assert printed.err == (warning if synthetic else "")
    assert "synthetic" not in printed.out
    assert json.loads((tmp_path / "f.json").read_text())["trained_on_synthetic"] is synthetic
    rows = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))
    assert {row["trained_on_synthetic"] for row in rows} == {str(synthetic).lower()}
    drawn, photo = pixels_of(tmp_path / "o" / "a.jpg.faces.jpg"), pixels_of(photos / "a.jpg")
    assert drawn.shape[1] == photo.shape[1]
    assert (drawn.shape[0] > photo.shape[0]) == synthetic, "a band below the photo"


@pytest.mark.parametrize("shape", [(48, 48), (500, 300), (300, 3000)])
def test_note_fits_below_an_image_of_any_size(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 255, np.uint8)
    drawn = annotated(image, (), SYNTHETIC)
    assert (drawn[: shape[0]] == image).all()
    band = drawn[shape[0] :]
    ink = (band == 255).all(axis=2)
    assert ink.any()
    assert not ink[:, -1].any(), "no letter is cut off"
    assert not ink[-1].any()
    assert np.array_equal(annotated(image, ()), image)


@pytest.mark.parametrize("synthetic", [True, False])
def test_run_writes_whether_its_data_is_synthetic_into_the_weights(tmp_path: Path, synthetic: bool) -> None:
    assert published_run(tmp_path / "run", synthetic=synthetic).synthetic is synthetic


def test_weights_with_nan_are_refused(
    weights: Path, photos: Path, predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, info = load_model(weights / "model.safetensors")
    state = model.state_dict()
    state["fc.bias"] = torch.full_like(state["fc.bias"], float("nan"))
    save_model(model, tmp_path / "m.safetensors", LABELS, "basic7", info.extra, name="ddamfn_nano", weights=state)
    with pytest.raises(FileError, match=r"m\.safetensors: 1 of .* NaN or infinity: fc\.bias; restore the file"):
        cli._main(["predict", "--weights", str(tmp_path / "m.safetensors"), "photos", "--json", "f.json"])
    shards, weights = str(shards_of(tmp_path / "s", [])), str(tmp_path / "m.safetensors")
    job = PredictJob(shards=shards, weights=weights, split="test", batch_size=1, threads=1)
    with pytest.raises(FileError, match=r"m\.safetensors: 1 of .* NaN or infinity: fc\.bias; restore the file"):
        predict_share(job)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "f.json").exists()


def test_image_is_read_from_standard_input(
    predict, scenes: Scenes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (scenes.folder / "00.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
    assert predict("-", "--detector", "whole") == 0
    assert capsys.readouterr().out.startswith("-  face 1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["x.jpg", "--annotate"], "belong together"), (["x.jpg", "--out", "o"], "belong together"),
     (["x.jpg", "--batch", "0"], "--batch 0"), (["."], "no photo")],
)  # fmt: skip
def test_inconsistent_arguments_are_refused(predict, arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        predict(*arguments)


def test_faces_of_real_photos_are_found_by_yunet(
    weights: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [str(test_data / "photos" / name) for name in ("pyfeat_multi_face.jpg", "deepface_couple.jpg")]
    upright = [str(test_data / "bad" / f"exif_orientation_{tag}.jpg") for tag in (1, 6)]
    yunet = ["--detector", "yunet", "--detector-weights", str(test_data / "weights" / "yunet"), "--threads", "1"]
    assert (
        cli._main(
            ["predict", "--weights", str(weights), *photos, *upright, "--json", str(tmp_path / "faces.json"), *yunet]
        )
        == 0
    )
    found = json.loads((tmp_path / "faces.json").read_text())["photos"]
    assert [len(photo["faces"]) for photo in found] == [5, 2, 1, 1]
    one, turned = (photo["faces"][0] for photo in found[2:])
    assert np.abs(np.array(one["box"]) - turned["box"]).max() < 8, "the same person, once turned by the tag"
