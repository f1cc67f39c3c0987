"""Where the weights are that a user names: by a path, a published name, an MLflow URI, or not at all."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from fer.environment import environment
from fer.inference.model import weights_file
from fer.io.files import FileError
from fer.weights import registry
from fer.weights.store import WEIGHTS_NAME

MLFLOW_SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")


def find_model(source: str | os.PathLike[str] | None) -> Path:
    """The weights file of what a user names; see `fer.load`.

    Raises:
        FileError: there is none, or not there yet; it names the command that brings it.
        ValueError: published weights whose classes are in an unknown order.
    """
    if source is None:
        return _shipped()
    name = os.fspath(source)
    if name.startswith(MLFLOW_SCHEMES):
        from fer.tracking.models import fetch_model

        return fetch_model(name)
    path = Path(name).expanduser()
    if not path.exists() and name in registry.register():
        return _imported(name)
    return weights_file(path)


def _shipped() -> Path:
    """The model that comes with the package."""
    path = Path(str(files("fer.inference") / "shipped" / WEIGHTS_NAME))
    if not path.is_file():
        raise FileError(
            f"{path}: this installation ships no model; name one: a .safetensors file, a run's folder such as "
            "trained/DATASET/MODEL, published weights (`fer weights list`), or an MLflow URI (models:/NAME@champion)"
        )
    return path


def _imported(name: str) -> Path:
    """Published weights that were pulled, as a file of this project in the cache."""
    from fer.weights.imports import import_weights

    registry.find(name)  # pulled, or an error with the command
    path = environment().cache.expanduser() / "imported" / f"{name}.safetensors"
    ask = f"Give it: `fer weights import {name} --labels A,B,... --out FILE.safetensors`, and load that file"
    import_weights(name, path, ask=ask)  # each time: a later version may convert otherwise
    return path
