"""The crop stage over real photographs and hostile files: every image is a face or a counted reject, in order."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders.limits import patience
from builders.places import contents
from builders.store import s3_server

from fer.cluster.config import ClusterConfig
from fer.faces.blocks import crop_block
from fer.faces.config import CropConfig
from fer.faces.select import REASONS
from fer.io.files import FileError, read_json
from fer.shards.table import read_table
from fer.sources.folders import FoldersConfig
from fer.sources.registry import get_source
from fer.stages.crop import crop_dataset
from fer.stages.download import download_dataset

HERE = ClusterConfig(crop_workers=0)
PHOTOS = (
    "ageitgey_examples_two_people.jpg",  # two faces
    "ageitgey_tests_test_images_obama_partial_face.jpg",  # one, half beyond the image
    "deepface_img12.jpg",  # one
    "pyfeat_free-mountain-vector-01.jpg",  # none
    "pyfeat_multi_face.jpg",  # five
)
BAD = (
    "animated.gif", "blank_20000x20000_1bit.png", "cmyk.jpg", "exif_orientation_6.jpg", "gray16.png", "one_pixel.png",
    "html_renamed.jpg", "palette_transparent.png", "strip_4000x3.png", "tiny_12x12.jpg", "truncated_60pct.jpg",
    "truncated_header.jpg", "zero_bytes.jpg",
)  # fmt: skip


def dataset(root: Path) -> FoldersConfig:
    return FoldersConfig(
        source="folders", path=str(root / "given"), crops=False, test_fraction=0.0, max_bad_fraction=1.0
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Path:
    """A downloaded dataset of whole images: photographs, and hostile files of every kind."""
    root = tmp_path_factory.mktemp("project")
    for folder, files in (
        ("happy", [test_data / "photos" / name for name in PHOTOS]),
        ("sad", [test_data / "bad" / name for name in BAD]),
    ):
        (root / "given" / folder).mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, root / "given" / folder / file.name)
    download_dataset("photos", dataset(root), seed=0, root=root)
    return root


def crop(root: Path, test_data: Path, **settings: object) -> Path:
    config = CropConfig.model_validate(
        {"detector": "yunet", "detector_weights": str(test_data / "weights"), "max_bad_fraction": 1.0, **settings}
    )
    return crop_dataset("photos", dataset(root), config, HERE, seed=0, root=root)


@pytest.fixture(scope="module")
def cropped(project: Path, test_data: Path) -> dict[str, bytes]:
    """The files of the stage with the default policies."""
    return contents(crop(project, test_data))


def test_workers_that_see_no_folder_crop_from_a_store_to_the_same_bytes(
    project: Path, cropped: dict[str, bytes], test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, weights = tmp_path / "project", tmp_path / "weights"
    shutil.copytree(project / "data", root / "data")
    shutil.copytree(test_data / "weights" / "yunet", weights / "yunet")
    hidden = [root / "data" / "raw", weights]

    def elsewhere(task: Any, work: Any, **_: object) -> Iterator[Any]:
        for folder in hidden:
            folder.rename(f"{folder}-hidden")
        yield from [pickle.loads(pickle.dumps(task))(unit) for unit in work]
        for folder in hidden:
            Path(f"{folder}-hidden").rename(folder)

    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fer.cluster.map.map_blocks", elsewhere)
    config = CropConfig.model_validate({"detector": "yunet", "detector_weights": str(weights), "max_bad_fraction": 1.0})
    with s3_server() as store:
        made = crop_dataset(
            "photos", dataset(project), config, ClusterConfig(), seed=0, root=root, storage=f"{store.url}/team"
        )
        sent = [path for method, path in store.asked if method == "PUT" and "/raw/" in path]
    assert contents(made) == cropped
    assert sent[-1].endswith("/source.json"), "written last"
    assert not list((root / ".work").glob("crop/*/faces-*"))


def images(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Ids of the faces in their order, and the reason of every reject by id."""
    about = read_json(folder / "faces.json")
    faces = [one for entry in about["files"] for one in read_table(folder / entry["file"])["sample_id"]]
    rejects = read_table(folder / "rejects.parquet")
    return faces, dict(zip(rejects["sample_id"], rejects["reason"], strict=True))


def test_every_image_is_a_face_or_a_counted_reject_in_order(project: Path, test_data: Path) -> None:
    folder = crop(project, test_data, faces="all")
    about = read_json(folder / "faces.json")
    faces, rejects = images(folder)
    described = read_json(project / "data" / "raw" / "photos" / "source.json")
    in_order = [
        f"folders/{key}"
        for file, _ in described["blocks"]
        for key in read_table(project / "data" / "raw" / "photos" / file)["key"]
    ]
    seen = {name.partition("#")[0] for name in (*faces, *rejects)}
    assert seen == set(in_order)
    positions = [in_order.index(name.partition("#")[0]) for name in faces]
    assert positions == sorted(positions)
    of = {photo: [name for name in faces if photo in name] for photo in PHOTOS}
    assert [len(of[photo]) for photo in PHOTOS] == [2, 1, 1, 0, 5]
    assert rejects[f"folders/happy/{PHOTOS[3]}"] == "no_face"
    assert about["rejects"] == {
        reason: list(rejects.values()).count(reason) for reason in sorted(set(rejects.values()))
    }
    assert set(about["reject_examples"]) == set(about["rejects"])
    unreadable = {"empty", "not_an_image", "truncated", "too_large"}
    assert unreadable < set(rejects.values())
    assert about["crop"]["detector_sha256"]
    assert str(test_data) not in (folder / "faces.json").read_text()


def test_rows_of_an_image_depend_neither_on_its_neighbors_nor_on_threads(
    project: Path, cropped: dict[str, bytes], test_data: Path, tmp_path: Path
) -> None:
    config = CropConfig(detector="yunet", max_bad_fraction=1.0)
    raw = project / "data" / "raw" / "photos"
    source = get_source(dataset(project), 0)
    weights = test_data / "weights" / "yunet" / "face_detection_yunet_2023mar.onnx"
    for block in source.blocks(raw):
        done = crop_block(source, config, str(weights), 1, str(raw), str(tmp_path), block)
        assert (tmp_path / done.file).read_bytes() == cropped[done.file]


@pytest.mark.parametrize(("policy", "several", "refused"), [("largest", 2, set()), ("single", 0, {"several_faces"})])
def test_policies_for_several_faces_are_applied_and_counted(
    project: Path, test_data: Path, policy: str, several: int, refused: set[str]
) -> None:
    faces, rejects = images(crop(project, test_data, faces=policy, min_face_size=40))
    assert len([name for name in faces if PHOTOS[0] in name or PHOTOS[4] in name]) == several
    assert not [name for name in faces if "#" in name]
    assert {reason for reason in rejects.values() if reason == "several_faces"} == refused
    assert {"no_face"} <= set(rejects.values()) & set(REASONS)


def test_labels_without_a_box_need_a_detector_before_any_work(project: Path, test_data: Path) -> None:
    before = list((project / ".work").rglob("*"))
    with pytest.raises(FileError, match=r"labels of the dataset 'photos' come without a box.*crop\.detector to retina"):
        crop(project, test_data, detector="annotated")
    assert list((project / ".work").rglob("*")) == before


def test_missing_weights_name_the_command_that_pulls_them(project: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="fer weights pull yunet_2023mar"):
        crop(project, tmp_path)


def test_too_many_broken_images_fail_the_stage_with_examples_and_keep_the_last_result(
    project: Path, cropped: dict[str, bytes], test_data: Path
) -> None:
    folder = crop(project, test_data)
    assert contents(folder) == cropped, "again the same bytes"
    with pytest.raises(FileError, match=r"images cannot be decoded \(.*truncated.*\):\n  folders/sad/") as failure:
        crop(project, test_data, max_bad_fraction=0.05)
    assert "crop.max_bad_fraction = 0.05" in str(failure.value)
    assert contents(folder) == cropped


@pytest.mark.slow
def test_all_hostile_files_and_photographs_are_cropped_within_a_gigabyte(
    test_data: Path, tmp_path: Path, repo_root: Path
) -> None:
    for folder, files in (("happy", test_data / "photos"), ("sad", test_data / "bad")):
        (tmp_path / "given" / folder).mkdir(parents=True)
        for file in files.iterdir():
            if file.is_file() and file.suffix != ".csv":
                shutil.copyfile(file, tmp_path / "given" / folder / file.name)
    script = (
        "import resource, sys; from pathlib import Path; from test_crop_stage import crop, dataset, download_dataset\n"
        "root, data = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "download_dataset('photos', dataset(root), seed=0, root=root)\n"
        "crop(root, data, detector=sys.argv[3], faces='all')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    here = Path(__file__).parent
    for detector in ("yunet", "retinaface"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(test_data), detector],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, repo_root)))},
            capture_output=True,
            text=True,
            timeout=patience(250),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) < 1 << 20, "KiB"
