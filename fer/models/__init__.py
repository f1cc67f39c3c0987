"""The model zoo: every architecture behind one interface (`FerModel`) and one factory (`create_model`)."""

from fer.models import (  # noqa: F401 - importing a model file registers its names
    arcface,
    btn,
    ddamfn,
    dynamic_vit,
    ir,
    lhc_net,
    mfn,
    mobilefacenet,
    poster_v1,
    poster_v2,
    resnet34v2,
    resnet50,
    vit,
)
from fer.models.base import FerModel, Resize, TrainOutput
from fer.models.registry import create_model, list_models, model_loss, model_options, register

__all__ = [
    "FerModel",
    "Resize",
    "TrainOutput",
    "create_model",
    "list_models",
    "model_loss",
    "model_options",
    "register",
]
