"""fer: train, compare and use facial expression recognition models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from fer.inference.model import Model, Tta

__version__ = "0.1.0"


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    detector: str | None = None,
    detector_weights: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    tta: Tta = "none",
) -> Model:
    """A trained model, ready for photos: `fer.load().predict("photo.jpg")`.

    Args:
        source: None is the model that comes with the package; else a weights file of this project (.safetensors), the
            folder of a run that holds one, the name of published weights that were pulled (`fer weights list`), or an
            MLflow URI ("models:/name@champion", "models:/m-...", "runs:/RUN/dataset-model"). A path goes before a name.
        detector, detector_weights, threads, tta: see `fer.inference.model.Model`.

    Raises:
        FileError: there are no such weights, or they are not there yet; it names the command that brings them.
        ValueError: published weights whose classes are in an unknown order, or an unknown option.
    """
    from fer.inference.model import Model
    from fer.locate import find_model

    path = find_model(source)
    return Model(path, detector=detector, detector_weights=detector_weights, threads=threads, tta=tta)
