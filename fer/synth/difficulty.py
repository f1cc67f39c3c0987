"""How hard the dataset is: `fer synth difficulty`.

Three classifiers learn from train scenes and are scored on faces of unseen identities: a linear one on pixels (should
fail), a small convolutional network (should do well, not perfectly), and a forest that is told the action units (the
ceiling). The scores describe the drawings and their options; they say nothing about accuracy on people.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.align import aligned_crop, misplaced
from fer.synth.config import DEFAULT, SceneConfig
from fer.synth.scene import render


@dataclass(frozen=True)
class Faces:
    """Aligned faces of one split."""

    pixels: NDArray[np.uint8]
    """(n, side, side) gray."""
    aus: NDArray[np.float64]
    """(n, action units)."""
    labels: NDArray[np.int64]
    """(n,) as annotated, so that label noise is learned from; equal to the clean labels in the test split."""


def collect(seed: int, config: SceneConfig, split: str, count: int, side: int, landmark_error: float = 1.0) -> Faces:
    """The first `count` faces of a split, aligned by their landmarks and reduced to `side` px.

    Landmarks are a detector's, as `landmark_error` of the dataset: see `fer.synth.align.misplaced`.
    """
    pixels: list[NDArray[np.uint8]] = []
    aus: list[tuple[float, ...]] = []
    labels: list[int] = []
    # One split at a time: the split is a draw of the scene, so asking for a fraction of 0 or 1 changes nothing else.
    config = config.model_copy(update={"test_fraction": 1.0 if split == "test" else 0.0})
    index = 0
    while len(labels) < count:
        scene = render(seed, index, config)
        index += 1
        for number, face in enumerate(scene.faces):
            landmarks = np.array(face.landmarks)
            found = misplaced(landmarks, landmark_error, seed=seed, index=scene.index, number=number)
            crop = aligned_crop(scene.image, found)
            crop = np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8)
            pixels.append(np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), np.uint8))
            aus.append(face.aus)
            labels.append(face.label)
        if index > 100 * count:
            raise ValueError(f"no_face_probability = {config.no_face_probability!r}: too few faces in {index} scenes")
    return Faces(np.array(pixels[:count], np.uint8), np.array(aus[:count]), np.array(labels[:count]))


def measure(
    config: SceneConfig = DEFAULT,
    seed: int = 0,
    train: int = 6000,
    test: int = 2000,
    *,
    side: int = 32,
    epochs: int = 12,
    landmark_error: float = 1.0,
    network: bool = True,
) -> dict[str, float]:
    """Accuracies on `test` faces of unseen identities after learning from `train` faces, and the time each part took.

    Keys: "linear", "network" (absent unless asked for), "oracle", each 0 .. 1, and the seconds spent under
    "<name>_seconds" and "render_seconds".
    """
    result: dict[str, float] = {}
    start = time.perf_counter()
    seen = collect(seed, config, "train", train, side, landmark_error)
    unseen = collect(seed, config, "test", test, side, landmark_error)
    result["render_seconds"] = time.perf_counter() - start
    scorers: dict[str, Callable[[Faces, Faces], float]] = {"linear": linear_accuracy, "oracle": oracle_accuracy}
    if network:
        scorers["network"] = lambda train, test: network_accuracy(train, test, config.num_classes, epochs, seed)
    for name, scorer in scorers.items():
        start = time.perf_counter()
        result[name] = scorer(seen, unseen)
        result[f"{name}_seconds"] = time.perf_counter() - start
    return {name: round(value, 4) for name, value in result.items()}


def linear_accuracy(train: Faces, test: Faces) -> float:
    """Multinomial logistic regression on standardized pixels, the penalty chosen in its favour among three."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    x, x_test = scaler.fit_transform(_flat(train)), scaler.transform(_flat(test))
    best = 0.0
    for penalty in (1e-5, 1e-4, 1e-3):
        model = LogisticRegression(C=penalty, max_iter=200).fit(x, train.labels)
        best = max(best, float(model.score(x_test, test.labels)))
    return best


def oracle_accuracy(train: Faces, test: Faces) -> float:
    """A forest on the true action units."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(300, min_samples_leaf=2, random_state=0).fit(train.aus, train.labels)
    return float(forest.score(test.aus, test.labels))


def network_accuracy(train: Faces, test: Faces, classes: int, epochs: int, seed: int) -> float:
    """Four convolutions (0.2 M parameters), mirrored and shifted faces, one cosine of AdamW."""
    import torch
    from torch import nn

    torch.manual_seed(seed)

    def block(inputs: int, outputs: int) -> list[Any]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    model = nn.Sequential(
        *block(1, 24), *block(24, 48), *block(48, 96), *block(96, 160), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(640, classes),
    )  # fmt: skip

    def prepare(faces: Faces) -> Any:
        x_b1hw = torch.from_numpy(faces.pixels).float()[:, None] / 255
        return (x_b1hw - x_b1hw.mean((2, 3), keepdim=True)) / (x_b1hw.std((2, 3), keepdim=True) + 0.05)

    x, y = prepare(train), torch.from_numpy(train.labels)
    batch, pad = 64, 3
    steps = epochs * (len(y) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(steps, 1))
    side = x.shape[-1]
    for _ in range(epochs):
        order = torch.randperm(len(y))
        for at in range(0, len(y) - batch + 1, batch):
            rows = order[at : at + batch]
            down, right = (int(torch.randint(2 * pad + 1, ())) for _ in range(2))
            faces = nn.functional.pad(x[rows], (pad,) * 4, mode="replicate")[
                ..., down : down + side, right : right + side
            ]
            mirrored = torch.rand(batch) < 0.5
            faces = torch.where(mirrored[:, None, None, None], faces.flip(-1), faces)
            loss = nn.functional.cross_entropy(model(faces), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(chunk).argmax(1) for chunk in prepare(test).split(256)])
    return float((predicted.numpy() == test.labels).mean())


def _flat(faces: Faces) -> NDArray[np.float64]:
    return faces.pixels.reshape(len(faces.pixels), -1).astype(np.float64)
