"""Figures: drawn for any result, without a display, the same bytes for the same numbers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fer.evaluation import figures, metrics
from fer.evaluation.config import EvaluateConfig

NAMES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


@pytest.fixture(scope="module")
def summary() -> dict:
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 300)  # anger has no rows
    logits = random.normal(size=(300, 7))
    logits[np.arange(300), labels] += 2
    return metrics.summarise(labels, logits, NAMES, EvaluateConfig(bootstrap_samples=100), seed=0)


def draw_all(summary: dict, folder: Path) -> list[Path]:
    matrix = np.array(summary["confusion"])
    history = {
        "epoch": [1, 2, 3],
        "train_loss": [2.0, 1.0, 0.5],
        "val_loss": [2.1, 1.5, 1.6],
        "val_accuracy": [0.2, 0.5, 0.4],
    }
    drawn = {
        "confusion": figures.confusion(matrix, NAMES, "toy", normalized=False),
        "confusion_normalized": figures.confusion(matrix, NAMES, "toy", normalized=True),
        "reliability": figures.reliability(summary["calibration"], summary["ece"], "toy"),
        "recall": figures.recalls(summary["per_class"], summary["balanced_accuracy"], "toy"),
        "learning": figures.learning_curves(history, 2, "toy"),
    }
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.svg")
    return sorted(folder.glob("*.svg"))


def test_the_same_numbers_give_the_same_bytes(summary: dict, tmp_path: Path) -> None:
    first, second = (draw_all(summary, tmp_path / name) for name in ("a", "b"))
    assert len(first) == 5
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        assert b"<svg" in one.read_bytes()


def test_drawing_loads_no_display_and_needs_no_writable_home(summary: dict, tmp_path: Path) -> None:
    code = (
        "import sys; from fer.evaluation import figures; from pathlib import Path; "
        "figure = figures.learning_curves({'epoch': [1], 'val_loss': [1.0]}, None, 't'); "
        "figures.save(figure, Path(sys.argv[1]) / 'a.svg'); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    # A home that cannot be written to, as in a container: no error, nothing printed.
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"HOME": str(home), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
