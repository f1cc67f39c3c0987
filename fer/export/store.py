"""A finished export on disk: the graph's files, and export.json with all that a caller must know.

exported = ExportedModel(Path("ddamfn-openvino"))
logits = exported.logits(crops)  # uint8 (B,S,S,3), RGB, S = exported.card.model.input_size
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fer.config import Config, parse
from fer.export.check import Parity
from fer.export.formats import FORMATS, FormatName, Run
from fer.io.files import FileError, read_object, sha256
from fer.models.base import Resize
from fer.shards.pixels import Levels, ModelInput, normalize
from fer.weights.store import WeightsInfo

CARD_NAME = "export.json"
"""Written last, into a folder that takes its name when all is there."""

_AGAIN = "run `fer export` again"


class InputCard(Config):
    """The graph's input.

    Attributes:
        layout: BHWC (images, rows, columns, RGB) or BCHW.
        dtype: of its elements.
        steps: what makes it from a photo, in order.
        truncate: `fer.models.FerModel.truncate`.
    """

    name: str
    layout: Literal["BHWC", "BCHW"]
    dtype: Literal["uint8", "float32"]
    steps: tuple[str, ...]
    truncate: bool


class Int8Card(Config):
    """How an int8 graph was calibrated, and what it lost: shares 0 .. 1 of validation faces that are named right."""

    dataset: str
    data_digest: str
    calibration_faces: int
    validation_faces: int
    accuracy_float32: float
    accuracy_int8: float


class ExportCard(Config):
    """export.json.

    Attributes:
        model: the weights' own description: labels in the order of the logits, size, mean, std, resize; in its
            `extra`, how the faces were cropped and aligned.
        files: sha256 by name.
        parity: of the float32 graph with torch.
        latency_ms: milliseconds an image, by runtime and batch size, with `threads` on `machine`.
    """

    schema_version: Literal[1] = 1
    format: FormatName
    precision: Literal["float32", "int8"]
    input: InputCard
    output: str
    model: WeightsInfo
    weights_sha256: str
    files: dict[str, str]
    versions: dict[str, str]
    parity: Parity
    int8: Int8Card | None
    latency_ms: dict[str, dict[str, float]]
    threads: int
    machine: str


class ExportedModel:
    """An export, loaded into its runtime.

    Args:
        folder: as `fer export` wrote it.
        threads: of the runtime; None: as many as torch uses.
        bf16: compute in bfloat16; for OpenVINO, on processors that have it.

    Attributes:
        card: its export.json.
        input: the size and kind of resize that make its levels from a crop.

    Raises:
        FileError: no export, one that did not finish, or files that were altered.
        ValueError: its runtime is not installed, or has no bfloat16 here.
    """

    def __init__(self, folder: Path, *, threads: int | None = None, bf16: bool = False) -> None:
        where = folder / CARD_NAME
        self.card = parse(ExportCard, read_object(where, {}, f"no finished export; {_AGAIN}"), str(where))
        format = FORMATS[self.card.format]
        format.check_packages()
        for name in format.files:
            path = folder / name
            if not path.is_file() or sha256(path) != self.card.files.get(name):
                raise FileError(f"{path}: missing, or not the file that {CARD_NAME} describes; {_AGAIN}")
        self._run = format.load(folder / format.files[0], threads or torch.get_num_threads(), bf16)
        info = self.card.model
        self.input = ModelInput(info.input_size, Resize(**info.resize), self.card.input.truncate)
        self._on_levels = on_levels(self._run, info, raw=self.card.input.layout == "BCHW")

    def logits(self, levels: Levels) -> npt.NDArray[np.float32]:
        """float32 (B, classes) of levels (B,S,S,3), RGB 0 to 255 at the model's size; normalized here where need be.

        Raises:
            ValueError: another shape or dtype.
        """
        size, dtype = self.input.size, self.input.dtype(training=False)
        if levels.ndim != 4 or levels.shape[1:] != (size, size, 3) or levels.dtype != dtype:
            raise ValueError(f"images {levels.dtype} {levels.shape}: expected {dtype} (B, {size}, {size}, 3), RGB")
        if not len(levels):
            return np.empty((0, len(self.card.model.labels)), np.float32)
        return self._on_levels(np.ascontiguousarray(levels))


def on_levels(run: Run, info: WeightsInfo, *, raw: bool) -> Run:
    """A graph as a function of levels (B,S,S,3), whatever its own input is."""
    return (lambda levels: run(graph_input(levels, info, raw=raw))) if raw else run


def graph_input(levels: Levels, info: WeightsInfo, *, raw: bool) -> npt.NDArray[Any]:
    """Levels as the graph takes them: normalized (B,3,S,S) for a raw one."""
    return normalize(torch.from_numpy(levels), info.mean, info.std).numpy() if raw else levels
