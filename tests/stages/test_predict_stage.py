"""Batch prediction: every image once, whatever stops it; on a disk and in a store; nothing else is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from builders.places import contents
from builders.scenes import Scenes, draw_scenes, save_weights

from fer.cli import main
from fer.cluster.config import ClusterConfig
from fer.inference.model import Model
from fer.io.files import FileError
from fer.io.storage import Folder, OutageError
from fer.shards.table import read_table
from fer.stages import predict

PHOTOS = 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of folders, one file that is no image, and one with a name that no URL has as it is."""
    drawn: Scenes = draw_scenes(tmp_path_factory.mktemp("scenes"))
    one = next(path for path in sorted(drawn.folder.rglob("*")) if path.is_file())
    root = tmp_path_factory.mktemp("photos")
    (root / "inner").mkdir()
    for number in range(PHOTOS - 2):
        shutil.copy(one, root / ("inner" if number % 2 else "") / f"{number}.png")
    shutil.copy(one, root / "a b#c ü.png")
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("not looked at")
    return root


@pytest.fixture(params=["disk", "store"])
def places(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Where the photos are, and a new folder for the results."""
    if request.param == "disk":
        yield str(photos), str(tmp_path / "out")
        return
    system = fsspec.filesystem("memory")
    system.put(str(photos), "/photos", recursive=True)
    yield "memory://photos", "memory://out"
    system.rm("/", recursive=True)


@pytest.fixture
def run(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    monkeypatch.setattr(predict, "PART", 2)

    def start(source: str, out: str, *, workers: int = 0, **options: str) -> dict[str, int]:
        settings = {"detector": "whole", "detector_weights": None, "tta": "none", **options}
        return predict.run(source, out, weights, **settings, workers=workers, cluster=ClusterConfig(cpus=2))

    return start


def files(out: str, tmp_path: Path) -> dict[str, bytes]:
    """The results; of a store, fetched."""
    if "://" not in out:
        return contents(Path(out))
    return {name: Folder(out).read(name, 1 << 20) for name in Folder(out).names()}


def test_every_image_is_predicted_once_as_the_model_does(
    run: Callable[..., dict[str, int]], places: tuple[str, str], photos: Path, weights: Path, tmp_path: Path
) -> None:
    source, out = places
    assert run(source, out) == {"images": PHOTOS, "unread": 1, "faces": PHOTOS - 1, "refused": 1}
    found = files(out, tmp_path)
    rows: dict[str, dict[str, float]] = {}
    model = Model(weights, detector="whole", threads=1)
    for name in sorted(name for name in found if name.endswith("faces.parquet")):
        (tmp_path / "part").write_bytes(found[name])
        table = read_table(tmp_path / "part")
        for number, file in enumerate(table["file"]):
            assert file not in rows
            rows[file] = {label: table[f"p_{label}"][number] for label in model.labels}
    names = {str(path.relative_to(photos)) for path in photos.rglob("*.png")}
    assert set(rows) == names
    for name in names:
        (face,) = model.predict(photos / name).faces
        assert rows[name] == pytest.approx(face.probabilities, abs=1e-6)
    assert json.loads(found["summary.json"])["images"] == PHOTOS


def test_stopped_run_resumes_with_the_parts_that_are_left(
    run: Callable[..., dict[str, int]],
    places: tuple[str, str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = places
    whole = str(tmp_path / "whole")
    run(str(photos), whole)
    did: list[int] = []
    predict_part = predict.predict_part

    def stopped(job: predict.Job, part: int) -> dict[str, int]:
        did.append(part)
        if len(did) == 3:
            raise OSError("stopped")
        return predict_part(job, part)

    monkeypatch.setattr(predict, "predict_part", stopped)
    with pytest.raises(OSError, match="stopped"):
        run(source, out)
    assert "summary.json" not in Folder(out).names()
    run(source, out)
    assert did == [0, 1, 2, 2, 3]
    parts = [name for name in contents(Path(whole)) if name[0].isdigit()]
    assert {name: files(out, tmp_path)[name] for name in parts} == {name: contents(Path(whole))[name] for name in parts}


def test_predictions_of_something_else_are_refused_and_kept(
    run: Callable[..., dict[str, int]], places: tuple[str, str], tmp_path: Path
) -> None:
    source, out = places
    run(source, out)
    before = files(out, tmp_path)
    with pytest.raises(FileError, match=r"tta none, now flip"):
        run(source, out, tta="flip")
    assert files(out, tmp_path) == before


def test_folder_with_other_files_and_source_without_images_are_refused(
    run: Callable[..., dict[str, int]], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"notes\.txt"):
        run(str(photos), str(tmp_path / "mine"))
    assert list(contents(tmp_path / "mine")) == ["notes.txt"]
    with pytest.raises(FileError, match="ending of an image"):
        run(str(tmp_path / "mine"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_store_that_is_away_refuses_no_image(
    run: Callable[..., dict[str, int]], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Folder.read

    def away(self: Folder, name: str, most: int) -> bytes:
        if name.endswith(".png"):
            raise OutageError(f"{name}: timed out")
        return read(self, name, most)

    fsspec.filesystem("memory").put(str(photos), "/photos", recursive=True)
    monkeypatch.setattr(Folder, "read", away)
    with pytest.raises(OutageError):
        run("memory://photos", str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.done.json"))


def test_command_takes_one_folder_and_says_that_some_were_not_read(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", str(photos), "--cluster", "--workers", "0", "--detector", "whole", "--weights", str(weights)]
    for more, code in ([], 1), (["--out", str(tmp_path / "out")], 3):
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        assert end.value.code == code
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == PHOTOS


@pytest.mark.ray
def test_workers_of_ray_write_the_same_files(run: Callable[..., dict[str, int]], photos: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        run(str(photos), str(tmp_path / str(workers)), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
