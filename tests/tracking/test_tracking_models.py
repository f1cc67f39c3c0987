"""A logged model is the weights file; MLflow and `fer.load` both read it back, and it names expressions in photos."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.images import encoded
from builders.mlflow_runs import client, recorded, start
from builders.scenes import LABELS, save_weights

import fer
from fer.io.files import FileError
from fer.tracking.models import fetch_model
from fer.tracking.store import MODEL_TAG

NOISE = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
WHOLE = {"detector": "whole"}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("trained")) / "model.safetensors"


@pytest.fixture
def logged(root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a model in the project's store, which is the one in use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    with start(root, "photos", join=True) as run:
        run.log_model(weights)
        run.log_model(weights)
    assert not os.environ.get("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    return str(client(root).get_run(run.run_id).data.tags[MODEL_TAG])


def test_model_is_logged_once_and_is_the_weights_file(root: Path, logged: str, weights: Path, tmp_path: Path) -> None:
    import mlflow

    assert [status for status, _ in recorded(root, "photos")] == ["FINISHED"]
    assert not list(tmp_path.iterdir()), "nothing is written to the working folder"
    files = [path for path in (root / "mlartifacts" / "models").rglob("*") if path.is_file()]
    assert [path.read_bytes() == weights.read_bytes() for path in files if path.suffix == ".safetensors"] == [True]
    assert not [path for path in files if path.suffix in (".pkl", ".pth", ".pt2", ".pickle")]
    info = mlflow.models.get_model_info(logged)
    assert (info.metadata["labels"], info.metadata["model"]) == (list(LABELS), "ddamfn_nano")
    requirements = next(path for path in files if path.name == "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "\nfer" not in f"\n{requirements}", "another package has that name on PyPI"


def test_mlflow_s_own_loader_gives_the_results_of_fer_load(logged: str, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    loaded = mlflow.pyfunc.load_model(logged)
    model = fer.load(logged, detector="whole")
    (tmp_path / "a.png").write_bytes(data := encoded(NOISE, "PNG"))
    path = str(tmp_path / "a.png")
    expected = model.predict(path).to_dict()
    (found,) = loaded.predict([path], params=WHOLE)
    assert found == expected
    assert list(found["faces"][0]["probabilities"]) == list(LABELS)
    faces = expected["faces"]
    for given in (path, data, NOISE, NOISE[None], [NOISE], pd.DataFrame({"image": [path]}), pd.DataFrame({0: [data]})):
        assert [one["faces"] for one in loaded.predict(given, params=WHOLE)] == [faces]
    with pytest.raises(ValueError, match="columns a, b"):
        loaded.predict(pd.DataFrame({"a": [path], "b": [path]}), params=WHOLE)


def test_model_is_found_by_run_and_by_alias(root: Path, logged: str, weights: Path) -> None:
    store = client(root)
    run = store.get_logged_model(logged.removeprefix("models:/")).source_run_id
    store.create_registered_model("faces")
    store.create_model_version("faces", logged, run_id=run, model_id=logged.removeprefix("models:/"))
    store.set_registered_model_alias("faces", "champion", "1")
    for uri in ("models:/faces@champion", "models:/faces/1", f"runs:/{run}/model"):
        assert fer.load(uri).path.read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/m-0", "runs:/0/model"])
def test_unknown_model_is_named(logged: str, uri: str) -> None:
    with pytest.raises(FileError, match=f"{uri}: MLflow"):
        fer.load(uri)


def test_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="MLFLOW_TRACKING_URI"):
        fetch_model("models:/faces/1", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_model_of_another_project_is_refused(root: Path, logged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def other(dst_path: str, **_: Any) -> None:
        Path(dst_path, "model.pkl").touch()

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", other)
    with pytest.raises(FileError, match="not a model that this project logged"):
        fer.load(logged)
