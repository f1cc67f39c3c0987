"""The synthetic dataset: rendered once, the same bytes on any number of cores, wrong options refused by name."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders.places import contents

from fer.io.files import FileError, read_json
from fer.sources import synthetic
from fer.sources.base import RawSample
from fer.sources.registry import get_source
from fer.sources.synthetic import SyntheticConfig
from fer.stages import download
from fer.stages.download import download_dataset
from fer.synth import render

SMALL = {"source": "synthetic", "scenes": 6, "scene_size": 64, "face_size": (30.0, 50.0), "multi_face_probability": 0.5}


def small(**options: object) -> SyntheticConfig:
    return SyntheticConfig(**{**SMALL, **options})  # type: ignore[arg-type]


def read(raw: Path, **options: object) -> list[RawSample]:
    source = get_source(small(**options), 3)
    samples = [sample for block in source.blocks(raw) for sample in source.read(raw, block)]
    return [sample for sample in samples if isinstance(sample, RawSample)]


def test_the_same_request_gives_the_same_bytes_on_one_core_and_on_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 2)
    many = download_dataset("set", small(), seed=3, root=tmp_path / "many")
    monkeypatch.setattr(synthetic.processes, "cpus", lambda: 1)
    one = download_dataset("set", small(), seed=3, root=tmp_path / "one")
    assert len(contents(one)) == 4
    assert contents(one) == contents(many)
    other = download_dataset("set", small(), seed=4, root=tmp_path / "other")
    assert contents(one)["scenes-00000.parquet"] != contents(other)["scenes-00000.parquet"]


def test_a_second_entry_of_the_same_data_is_linked_while_the_code_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = download_dataset("one", small(), seed=3, root=tmp_path)

    def is_linked(name: str, **options: object) -> bool:
        other = download_dataset(name, small(**options), seed=3, root=tmp_path)
        same = (other / "scenes-00000.parquet").samefile(one / "scenes-00000.parquet")
        assert not same or contents(other) == contents(one)
        return same

    assert is_linked("crop_of_it")
    assert is_linked("crop_of_that")
    assert not is_linked("harder", strength=0.5)
    monkeypatch.setattr(download, "code", lambda: SimpleNamespace(digest=lambda *_, **__: "of another version"))
    assert not is_linked("after_an_edit"), "what another version made may differ"


def test_the_scenes_read_back_as_samples_with_annotated_faces(tmp_path: Path) -> None:
    raw = download_dataset("set", small(), seed=3, root=tmp_path)
    samples = read(raw)
    assert [sample.key for sample in samples] == [f"synthetic/{index:08d}" for index in range(6)]
    faces = [face for sample in samples for face in sample.faces]
    assert all(face.landmarks and len(face.landmarks) == 5 and face.subject and face.pose for face in faces)
    assert all(face.label == face.clean_label for face in faces)
    counts = read_json(raw / "source.json")["counts"]
    assert sum(sum(split.values()) for split in counts.values()) == len(faces)


def test_scenes_with_other_columns_are_refused_by_file_and_column(tmp_path: Path) -> None:
    raw = download_dataset("set", small(), seed=3, root=tmp_path)
    source, path = get_source(small(), 3), raw / "scenes-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["faces"]), path)
    expected = r"scenes-00000\.parquet: has no column 'faces'.*; run `dvc repro -f download@set`"
    with pytest.raises(FileError, match=expected):
        list(source.read(raw, source.blocks(raw)[0]))


def test_landmarks_have_a_detectors_error_or_none(tmp_path: Path) -> None:
    raw = download_dataset("set", small(), seed=3, root=tmp_path)

    def landmarks(**options: float) -> np.ndarray:
        return np.array([face.landmarks for sample in read(raw, **options) for face in sample.faces])

    true = [face.landmarks for index in range(6) for face in render(3, index, small().scene_config()).faces]
    exact, off = landmarks(landmark_error=0.0), landmarks()
    np.testing.assert_allclose(exact, np.array(true), atol=1e-3)
    assert np.array_equal(off, landmarks())
    distance = np.linalg.norm(off - exact, axis=-1).mean() / np.linalg.norm(exact[:, 0] - exact[:, 1], axis=-1).mean()
    assert 0.02 < distance < 0.3


def test_a_second_download_renders_nothing_and_another_request_renders_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = download_dataset("set", small(scenes=2), seed=3, root=tmp_path)
    before = contents(raw)
    download_dataset("set", small(scenes=2, strength=0.5), seed=3, root=tmp_path)
    assert contents(raw) != before
    monkeypatch.setattr(synthetic, "render_block", None)
    download_dataset("set", small(scenes=2, strength=0.5), seed=3, root=tmp_path)


def test_a_failed_renderer_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, int]:
        raise FileError("disk full")

    monkeypatch.setattr(synthetic.processes, "cpus", lambda: 1)
    monkeypatch.setattr(synthetic, "render_block", fail)
    with pytest.raises(FileError):
        download_dataset("set", small(), seed=3, root=tmp_path)
    assert not list((tmp_path / "data" / "raw").iterdir())
