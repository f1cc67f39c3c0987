"""Where the answer is known, a trained model's maps are right, and those of random weights are right by chance."""

import torch
from torch import nn

from benchmarks.explain import CLASSES, SIDE, SQUARE, measure, planted, train
from fer.models import FerModel, TrainOutput


class Tiny(FerModel):
    """Three convolutions; each place of the map sees 29 px."""

    def __init__(self) -> None:
        super().__init__(CLASSES, input_size=SIDE)
        layers = [[nn.Conv2d(i, o, 5, 2, 2), nn.BatchNorm2d(o), nn.ReLU()] for i, o in ((3, 8), (8, 16), (16, 24))]
        self.features = nn.Sequential(*(layer for each in layers for layer in each))
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor | TrainOutput:
        logits = self.fc(self.features(x).mean((2, 3)))
        return TrainOutput(logits, {}) if self.training else logits


def test_planted_evidence_is_found_by_the_trained_model_alone() -> None:
    torch.manual_seed(0)
    test = planted(150, seed=10**6)
    found, _ = measure(train(Tiny(), steps=60), "grad_cam", "features", test)
    assert found["accuracy_percent"] > 95
    assert found["pointing_percent"] > 90
    assert found["insertion"] > found["deletion"] + 0.2
    torch.manual_seed(1)
    random, _ = measure(Tiny().eval(), "grad_cam", "features", test)
    assert abs(random["pointing_percent"] - random["chance_percent"]) < 10


def test_the_evidence_lies_where_the_box_says_and_has_the_contrast_of_the_rest() -> None:
    test = planted(64, seed=3)
    for image, (x1, y1, x2, y2) in zip(test.images, test.boxes.tolist(), strict=True):
        assert (x2 - x1, y2 - y1) == (SQUARE, SQUARE)
        assert set(image.unique().tolist()) == {-1.0, 1.0}
        assert abs(image[:, y1:y2, x1:x2].mean()) < 0.15
    horizontal = int((test.labels == 0).nonzero()[0])
    x1, y1, x2, y2 = test.boxes[horizontal].tolist()
    square = test.images[horizontal, 0, y1:y2, x1:x2]
    assert (square == square[:, :1]).all(), "each row is of one color"
