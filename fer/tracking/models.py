"""Models in MLflow: the weights file and this project's own `Model`, so nothing is pickled and nothing is exported.

    mlflow.pyfunc.load_model("models:/faces@champion").predict(["photo.jpg"], params={"detector": "yunet"})
    fer.load("models:/faces@champion").predict("photo.jpg")

Both need this package where the model is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fer.environment import environment
from fer.inference.model import Model
from fer.inference.photos import is_image
from fer.io.files import FileError, open_atomic, sha256
from fer.lineage import redact
from fer.tracking import compat
from fer.tracking.config import TrackingConfig, store_uri
from fer.weights.store import WEIGHTS_NAME


class PhotoModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, path: Path) -> None:
        self._model = lru_cache(maxsize=1)(lambda **options: Model(path, **options))
        self._model(**compat.PARAMS)  # a damaged file fails here

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """A result for each image (`fer.inference.model.Result.to_dict`): faces with labels and probabilities.

        Args:
            model_input: an image as for `Model.predict`, several of them, or a table with one column of them.
            params: options of `Model`: the keys of `compat.PARAMS`.
        """
        model = self._model(**{**compat.PARAMS, **(params or {})})
        return [result.to_dict() for result in model.predict(_images(model_input))]


def _load_pyfunc(path: str) -> PhotoModel:
    """Called by MLflow with the weights file of a logged model."""
    return PhotoModel(Path(path))


def _images(given: Any) -> list[Any]:
    if hasattr(given, "columns"):  # a DataFrame of pandas
        if len(given.columns) != 1:
            columns = ", ".join(map(str, given.columns))
            raise ValueError(f"a table with the columns {columns}: one column of images is expected")
        given = given.iloc[:, 0]
    if isinstance(given, np.ndarray) and (given.ndim == 4 or given.dtype.kind in "OSU"):
        given = list(given.ravel() if given.ndim != 4 else given)
    return [given] if is_image(given) else list(given)


def fetch_model(uri: str, *, root: Path | None = None) -> Path:
    """The weights file of a model in MLflow, in the cache.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION, models:/ID or runs:/RUN/NAME.
        root: folder of a project's local store; None: the working folder. MLFLOW_TRACKING_URI goes before it.

    Raises:
        FileError: no such store or model, or a model without a weights file of this project.
    """
    store = store_uri(TrackingConfig(), root or Path.cwd())
    remedy = "set MLFLOW_TRACKING_URI, or run from the project's folder"
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).is_file():
        raise FileError(f"{uri}: no MLflow store at {store}; {remedy}")
    mlflow = compat.load_mlflow()
    with TemporaryDirectory() as folder:
        try:
            mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=folder, tracking_uri=store, registry_uri=store
            )
        except compat.store_errors() as error:
            reason = str(error).partition("\n")[0]
            raise FileError(f"{uri}: MLflow ({redact(store)}): {redact(reason)}; {remedy}") from None
        found = next(Path(folder).rglob(WEIGHTS_NAME), None)
        if found is None:
            raise FileError(f"{uri}: no {WEIGHTS_NAME} in it: not a model that this project logged")
        path = environment().cache.expanduser() / "mlflow" / f"{sha256(found)}.safetensors"
        if not path.exists():
            with open(found, "rb") as source, open_atomic(path) as target:
                shutil.copyfileobj(source, target)
    return path
