"""Contact sheets: crops of many faces side by side."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.config import SceneConfig
from fer.synth.expressions import EXPRESSIONS
from fer.synth.scene import Face, Scene, render

_BEYOND = (200, 200, 200)
_BAR = 18  # px of the bar with the name of a class
_LIMIT = 10_000  # scenes to search before giving up on a class

Image = NDArray[np.uint8]


def contact_sheet(seed: int, config: SceneConfig, rows: int, columns: int, labelled: bool, cell: int = 128) -> Image:
    """A sheet (rows * cell, columns * cell, 3) RGB of face crops.

    Labeled: row r shows class r (modulo the classes) and a bar names it. Unlabeled: faces in their own order.
    """
    return sheet_and_faces(seed, config, rows, columns, labelled, cell)[0]


def sheet_and_faces(
    seed: int, config: SceneConfig, rows: int, columns: int, labelled: bool, cell: int
) -> tuple[Image, list[Face]]:
    """As `contact_sheet`, and the faces row by row."""
    labels = [row % config.num_classes for row in range(rows)]
    chosen = _find(seed, config, [label if labelled else None for label in labels for _ in range(columns)])
    cells = [_portrait(scene, face, cell) for scene, face in chosen]
    lines = [np.concatenate(cells[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    if labelled:
        lines = [_name_bar(line, EXPRESSIONS[label]) for line, label in zip(lines, labels, strict=True)]
    return np.concatenate(lines), [face for _, face in chosen]


def _find(seed: int, config: SceneConfig, labels: list[int | None]) -> list[tuple[Scene, Face]]:
    """The first faces of these classes, one each; None stands for any class."""
    open_cells: dict[int | None, list[int]] = {}
    for cell, label in enumerate(labels):
        open_cells.setdefault(label, []).append(cell)
    found: dict[int, tuple[Scene, Face]] = {}
    for index in range(_LIMIT):
        scene = render(seed, index, config)
        for face in scene.faces:
            if cells := open_cells.get(None) or open_cells.get(face.clean_label):
                found[cells.pop(0)] = scene, face
        if len(found) == len(labels):
            return [found[cell] for cell in range(len(labels))]
    raise ValueError(f"{_LIMIT} scenes hold only {len(found)} of the {len(labels)} faces of the sheet")


def _portrait(scene: Scene, face: Face, cell: int) -> Image:
    """A square of the scene about the face, (cell, cell, 3), gray beyond the scene."""
    left, top, right, bottom = face.box
    side = 1.45 * max(right - left, bottom - top)
    zoom = cell / side
    x, y = (left + right - side) / 2, (top + bottom - 1.08 * side) / 2  # hair takes more room than the neck
    matrix = np.array([[zoom, 0, -zoom * x], [0, zoom, -zoom * y]])
    crop = cv2.warpAffine(scene.image, matrix, (cell, cell), flags=cv2.INTER_CUBIC, borderValue=_BEYOND)
    return np.asarray(crop, np.uint8)


def _name_bar(line: Image, name: str) -> Image:
    bar = np.full((_BAR, line.shape[1], 3), 245, np.uint8)
    cv2.putText(bar, name, (6, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
    return np.concatenate([bar, line])
