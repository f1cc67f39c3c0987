"""The model zoo: every architecture behind one contract (`FerModel`) and one door (`create_model`)."""

from fer.models import ddamfn, mfn  # noqa: F401 - importing a model file registers its names
from fer.models.base import FerModel, Resize, TrainOutput
from fer.models.registry import create_model, list_models, model_options, register

__all__ = ["FerModel", "Resize", "TrainOutput", "create_model", "list_models", "model_options", "register"]
