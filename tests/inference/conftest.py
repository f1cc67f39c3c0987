"""A model on drawn scenes, whose faces are known instead of detected."""

from pathlib import Path

import pytest
from builders.scenes import Scenes, draw_scenes, save_weights

from fer.inference import model as model_module
from fer.inference.model import Model


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    return save_weights(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """A folder of photos."""
    return draw_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def model(weights: Path, scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> Model:
    """That of `weights`; it and all that are made later in the test know the faces."""
    monkeypatch.setattr(model_module, "detector_file", lambda *_: Path("detector"))
    monkeypatch.setattr(model_module, "finder", lambda *_: scenes.finder)
    return Model(weights)
