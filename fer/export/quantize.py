"""Static int8: weights and activations in 8 bits, their ranges from faces that the model was trained on.

By NNCF, for OpenVINO: it corrects biases, and keeps what loses most by 8 bits (softmax, normalization of tokens).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch.export import ExportedProgram

from fer.export.compat import quiet_nncf
from fer.export.formats import save_openvino, to_openvino

CALIBRATION_FACES = 300
"""As NNCF's own default: ranges need no more."""


def quantize(program: ExportedProgram, images: Iterable[npt.NDArray[Any]], path: Path) -> None:
    """Writes the int8 graph of a program.

    Args:
        images: batches of the graph's input, for the ranges.
        path: of the .xml file.
    """
    nncf = quiet_nncf()
    batches = list(images)
    attends = any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)
    bars = sys.stderr if sys.stderr.isatty() else StringIO()  # NNCF draws its own, on standard output
    with redirect_stdout(bars):
        model = nncf.quantize(
            to_openvino(program),
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,  # PReLU and GELU: a range that is not symmetric about 0
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
            subset_size=len(batches),
        )
    save_openvino(model, path)
