"""What these packages do unasked, one function each: measure usage, talk, take signals' stack."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Any


def quiet_openvino() -> Any:
    """The package `openvino`, without its telemetry.

    OpenVINO and NNCF report usage to the network by the package openvino_telemetry, and have no switch for a process.
    They do without it where it cannot be imported, and None in `sys.modules` is Python's way to say so.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@cache
def openvino_core() -> Any:
    """OpenVINO's one runtime of this process, which never ends.

    Each has a stack of its own for signals from the first look at the processor to its end, and then puts back the one
    before. Where that one's runtime has ended meanwhile, its memory is gone, and the next signal, Ctrl-C among them, is
    a segmentation fault.
    """
    core = quiet_openvino().Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def quiet_nncf() -> Any:
    """The package `nncf`, without telemetry, and silent but for errors."""
    openvino_core()  # the first, so that NNCF's own put its stack back
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def quiet_onnx() -> None:
    """torch's exporter to ONNX says that torchvision is not installed, which no model here needs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
