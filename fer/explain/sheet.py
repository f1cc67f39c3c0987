"""Maps drawn: over a face, and many faces on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from fer.evaluation.figures import INK, MUTED, blank, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = "inferno"
WRONG = "#b3261e"
STRENGTH = 0.7
"""How much of the image the most important place covers."""
TILE, LINE = 112, 134
"""Side of a face on a sheet, and height of a face with the line below it, in pixels."""

Pixels = npt.NDArray[np.uint8]


def overlay(image: Pixels, heat: npt.NDArray[np.float32]) -> Pixels:
    """The image (H,W,3) RGB, in color the more, the higher the map (h,w), from 0 to 1; where it is 0 unchanged."""
    import matplotlib

    heat = cv2.resize(heat, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR).clip(0, 1)[..., None]
    colors = 255 * matplotlib.colormaps[COLORS](heat[..., 0])[..., :3]
    return (image + STRENGTH * heat * (colors - image)).round().astype(np.uint8)


@dataclass(frozen=True)
class Row:
    """One face on a sheet: the image (H,W,3), its maps by what they show, and a line about it."""

    image: Pixels
    maps: dict[str, npt.NDArray[np.float32]]
    text: str
    is_right: bool


@styled
def sheet(rows: Sequence[Row], title: str, *, columns: int = 2) -> Figure:
    """Each face beside its maps, `columns` faces side by side; a wrong prediction in a strong color.

    All rows have maps of the same names.
    """
    names = ["face", *rows[0].maps]
    lines = -(-len(rows) // columns)
    width = columns * len(names)
    canvas = np.full((lines * LINE, width * TILE, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        for place, name in enumerate(names):
            tile = row.image if name == "face" else overlay(row.image, row.maps[name])
            x, y = (column * len(names) + place) * TILE, line * LINE
            canvas[y : y + TILE, x : x + TILE] = cv2.resize(tile, (TILE, TILE), interpolation=cv2.INTER_AREA)
    figure, axes = blank(width * 1.2, lines * 1.2 * LINE / TILE + 0.8)
    axes.imshow(canvas)
    axes.set_axis_off()
    axes.set_title(title, pad=18)
    for column in range(width):
        name = names[column % len(names)].replace("_", " ")
        axes.text((column + 0.5) * TILE, -4, name, ha="center", fontsize=8, color=INK)
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        axes.text(
            column * len(names) * TILE + 2, line * LINE + TILE + 10, row.text, fontsize=8, va="center",
            color=MUTED if row.is_right else WRONG, fontweight="normal" if row.is_right else "bold",
        )  # fmt: skip
    return figure
