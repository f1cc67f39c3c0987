"""`fer.load` and `Model`: every kind of source and image, the training's own tensors, plain results, clear errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.images import encoded
from builders.scenes import LABELS, Scenes
from builders.shards import write_part, write_set
from flaky_server import Site, serve
from PIL import Image

import fer
from fer import locate
from fer.config import parse
from fer.inference.model import Face, Model, Result, detector_file
from fer.io import remote
from fer.io.files import FileError
from fer.io.images import ImageError, decode_image
from fer.labels import DATASET_LABELS
from fer.models import create_model
from fer.shards.dataset import ShardSet
from fer.shards.manifest import load_manifest
from fer.shards.pixels import ModelInput
from fer.shards.read import EvalBatches, normalize
from fer.weights import imports, registry
from fer.weights.registry import PublishedWeights

NOISE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights."""
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ------------------------------------------------------------------------------------------------ sources


def test_import_of_fer_loads_nothing_heavy() -> None:
    code = "import sys, fer; fer.load; sys.exit(bool({'torch', 'numpy', 'cv2', 'mlflow', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_are_found_by_file_and_by_the_folder_of_a_run(weights: Path) -> None:
    for source in (weights, str(weights), weights / "model.safetensors"):
        assert fer.load(source).path == weights / "model.safetensors"


def test_model_describes_itself(weights: Path, tmp_path: Path) -> None:
    model = fer.load(weights)
    assert model.labels == LABELS == model.info.labels
    assert model.card["dataset"] == "scenes", "without a card, what the maker recorded"
    assert isinstance(model.network, torch.nn.Module)
    (tmp_path / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    (tmp_path / "card.json").write_text('{"name": "tiny"}')
    assert fer.load(tmp_path).card == {"name": "tiny"}


def test_shipped_model_is_the_default(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "files", lambda _: tmp_path)
    with pytest.raises(FileError, match=r"ships no model; name one"):
        fer.load()
    (tmp_path / "shipped").symlink_to(weights)
    assert fer.load().labels == LABELS


def test_published_name_is_imported_once_pulled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name, entry in registry.register().items() if entry.labels == list(DATASET_LABELS["rafdb"]))
    small = registry.entry(name).model_copy(update={"model": "ddamfn_nano"})
    monkeypatch.setattr(registry, "register", lambda: {name: small})
    with pytest.raises(FileError, match=f"fer weights pull {name}"):
        fer.load(name)
    for file in registry.entry(name).files:
        (cache / "weights" / name).mkdir(parents=True, exist_ok=True)
        (cache / "weights" / name / file.name).write_bytes(b"published")
    monkeypatch.setattr(imports, "load_published", lambda *_: create_model("ddamfn_nano", 7))
    model = fer.load(name)
    assert model.labels == DATASET_LABELS["rafdb"]
    assert model.info.extra["published"] == name


def test_source_that_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        fer.load(tmp_path / "gone.safetensors")
    with pytest.raises(FileError, match="ddamfn_nowhere"):
        fer.load("ddamfn_nowhere")


@pytest.mark.parametrize(
    ("option", "words"),
    [({"detector": "yunett"}, "detector = 'yunett' - did you mean 'yunet'"), ({"tta": "flop"}, "tta = 'flop'")],
)
def test_unknown_option_is_refused(weights: Path, option: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fer.load(weights, **option)


# ------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("size", [112, 48])
@pytest.mark.parametrize("gray", [False, True])
def test_normalized_crops_are_the_tensors_of_the_shards_reader(
    weights: Path, tmp_path: Path, size: int, gray: bool
) -> None:
    model = fer.load(weights)
    crops = [NOISE[:size, :size, 0] if gray else np.resize(NOISE, (size, size, 3)) for _ in range(3)]
    stored = [encoded(crop, "PNG") for crop in crops[:2]]
    stored.append(encoded(crops[2], "JPEG", quality=95, subsampling=0))
    write_set(tmp_path)
    manifest = load_manifest(tmp_path)
    part = write_part(tmp_path, "test-0.parquet", "test", dict(enumerate(stored)))
    parts = (*(other for other in manifest.parts if other.file != part.file), part)
    replace(manifest, parts=parts, class_histogram={**manifest.class_histogram, "test": part.class_histogram}).save(
        tmp_path
    )
    split = ShardSet.open(tmp_path).split("test")
    (batch,) = EvalBatches(split, model_input=ModelInput.of(model.network), batch_size=8)
    expected = normalize(batch.images, model.network.mean, model.network.std)
    assert torch.equal(model.normalized(stored), expected)
    assert torch.equal(model.normalized(crops[:2]), expected[:2])


def test_gradients_reach_the_input_of_the_network(weights: Path) -> None:
    model = fer.load(weights)
    x = model.normalized([NOISE]).requires_grad_()
    logits = model.network(x)
    assert np.allclose(logits.detach().numpy(), model.logits([NOISE]), atol=1e-3)
    logits.max().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------ images


def test_every_kind_of_image_has_the_same_faces(model: Model, scenes: Scenes) -> None:
    path = next(path for path in sorted(scenes.folder.iterdir()) if model.predict(path).faces)
    data = path.read_bytes()
    expected = model.predict(path).faces
    kinds = [str(path), data, decode_image(data), Image.open(path), Image.open(io.BytesIO(data))]
    assert [model.predict(kind).faces for kind in kinds] == [expected] * len(kinds)
    with serve(Site(body=data)) as site:
        result = model.predict(f"{site.url}/a.jpg?token=secret")
    assert result.faces == expected
    assert result.name == f"{site.url}/a.jpg"
    assert isinstance(model.predict([path]), list)


def test_gray_array_is_repeated_and_non_contiguous_ones_are_read(weights: Path) -> None:
    model = fer.load(weights, detector="whole")
    gray = NOISE[:, :, 0]
    expected = model.predict(np.repeat(gray[:, :, None], 3, axis=2)).faces
    assert model.predict(gray).faces == expected
    assert model.predict(gray[:, :, None]).faces == expected
    assert model.predict(Image.fromarray(NOISE).transpose(Image.Transpose.FLIP_LEFT_RIGHT)).faces == (
        model.predict(NOISE[:, ::-1]).faces
    )


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), ValueError, "float32.*uint8.*0 .. 255"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"\(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"\(2, 4, 4, 3\).*list"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
        ([3], TypeError, "int: no image"),
    ],
)
def test_what_is_no_image_is_refused(weights: Path, given: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fer.load(weights, detector="whole").predict(given)


def test_unreadable_images_are_results_with_a_reason(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.inference.photos.MAX_BYTES", 1000)
    model = fer.load(weights, detector="whole")
    with serve(Site(body=bytes(2000))) as site:
        results = model.predict([tmp_path / "gone.jpg", b"", site.url, "http://127.0.0.1:9/x.jpg"])
    assert [(one.read, one.refused[0].reason) for one in results] == [
        (False, "not_a_file"), (False, "empty"), (False, "not_fetched"), (False, "not_fetched"),
    ]  # fmt: skip
    assert "at most 1,000" in results[2].refused[0].detail
    with pytest.raises(ImageError, match="not_a_file"):
        model.predict_faces([tmp_path / "gone.jpg"])


def test_remote_file_whose_size_is_not_announced_is_bounded() -> None:
    with serve(Site(body=bytes(3_000_000), faults=["nothing-said"])) as site, pytest.raises(FileError, match="at most"):
        remote.fetch(site.url, 1_500_000)
    with serve(Site(body=b"data")) as site:
        assert remote.fetch(site.url, 4) == b"data"


def test_hostile_files_are_refused_and_never_a_crash(weights: Path, test_data: Path) -> None:
    files = [path for path in sorted((test_data / "bad").iterdir()) if path.is_file() and path.suffix != ".csv"]
    detector = test_data / "weights" / "yunet"
    results = fer.load(weights, detector="yunet", detector_weights=detector).predict(files)
    assert len(results) == len(files) > 40
    assert all(result.faces or result.refused for result in results)
    assert json.loads(json.dumps([result.to_dict() for result in results]))


# ------------------------------------------------------------------------------------------------ results


def test_results_are_plain_and_become_json(model: Model, scenes: Scenes) -> None:
    result = next(result for result in model.predict(sorted(scenes.folder.iterdir())) if result.faces)
    face = result.faces[0]
    assert face.label == max(face.probabilities, key=face.probabilities.__getitem__)
    assert list(face.probabilities) == list(face.logits) == list(LABELS)
    assert sum(face.probabilities.values()) == pytest.approx(1)
    written = json.loads(json.dumps(result.to_dict()))
    assert written["file"] == result.name
    assert written["faces"][0]["face"] == 1
    assert written["faces"][0]["box"] == list(face.box)
    assert (type(result), type(face)) == (Result, Face)


def test_given_crops_have_no_box(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(encoded(NOISE, "PNG"))
    one, other = fer.load(weights).predict_faces([NOISE, tmp_path / "face.png"])
    assert one == other
    assert (one.box, one.score) == (None, None)
    assert fer.load(weights).predict_faces([]) == []


# ------------------------------------------------------------------------------------------------ detector


def offer(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A register that fetches YuNet from there."""
    known = registry.entry("yunet_2023mar").model_dump()
    (file,) = known["files"]
    entry = parse(PublishedWeights, known | {"files": [file | {"url": f"{url}/yunet.onnx"}]}, "test")
    monkeypatch.setattr(registry, "register", lambda: {"yunet_2023mar": entry})


def test_detector_is_fetched_once_and_checked(
    weights: Path, test_data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = test_data / "photos" / "deepface_couple.jpg"
    body = (test_data / "weights" / "yunet" / "face_detection_yunet_2023mar.onnx").read_bytes()
    with serve(Site(body=body)) as site:
        offer(monkeypatch, site.url)
        model = fer.load(weights, detector="yunet")
        assert site.asked == [], "at the first need, not before"
        assert len(model.predict(photo).faces) >= 2
        assert len(fer.load(weights, detector="yunet").predict(photo).faces) >= 2
        assert len(site.asked) == 1
    assert (cache / "weights" / "yunet_2023mar" / "face_detection_yunet_2023mar.onnx").read_bytes() == body


def test_detector_that_cannot_be_fetched_names_every_other_way(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with serve(Site(body=b"another file", faults=[404])) as site:
        offer(monkeypatch, site.url)
        for problem in ("404", "sha256"):
            with pytest.raises(FileError, match=problem) as error:
                detector_file("yunet", None)
            for way in ("--from FOLDER", "--detector-weights", "--detector ", "whole"):
                assert way in str(error.value)
    assert not list(cache.rglob("*.onnx"))
