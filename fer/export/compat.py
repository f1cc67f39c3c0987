"""What these packages do unasked, one function each: measure usage, talk."""

from __future__ import annotations

import logging
import sys
from typing import Any


def quiet_openvino() -> Any:
    """The package `openvino`, without its telemetry.

    OpenVINO and NNCF report usage to the network by the package openvino_telemetry, and have no switch for a process.
    They do without it where it cannot be imported, and None in `sys.modules` is Python's way to say so.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def quiet_nncf() -> Any:
    """The package `nncf`, without telemetry, and silent but for errors."""
    quiet_openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def quiet_onnx() -> None:
    """torch's exporter to ONNX says that torchvision is not installed, which no model here needs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
