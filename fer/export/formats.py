"""The formats: how each is written, and how its runtime runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

from fer.export.compat import openvino_core, quiet_onnx, quiet_openvino
from fer.export.graph import INPUT, OUTPUT, quietly

FormatName = Literal["onnx", "openvino", "torch-export"]
Run = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""The graph's input -> logits float32 (B, classes)."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        runtime: that runs it here.
        files: that it consists of; the first one is what the runtime opens.
        packages: that it needs, beside torch.
        write: (program, path of the first file).
        load: (path of the first file, threads, bf16) -> the function that runs it.
    """

    runtime: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path], None]
    load: Callable[[Path, int, bool], Run]

    def check_packages(self) -> None:
        """Raises ValueError where a package is not installed."""
        require(*self.packages)


def require(*packages: str) -> None:
    """Raises ValueError, with the command that installs them, where packages are missing."""
    if missing := [package for package in packages if find_spec(package) is None]:
        install = "pip install -c constraints.txt -e '.[export]'"
        raise ValueError(f"{', '.join(missing)}: not installed; run `{install}` in the project")


# ------------------------------------------------------------------------------------------------ ONNX


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    quiet_onnx()
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    with quietly():
        exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
    assert exported is not None
    exported.save(path, external_data=False)


def _load_onnx(path: Path, threads: int, bf16: bool) -> Run:
    import onnxruntime

    if bf16:
        raise ValueError(f"{path}: bfloat16 is for OpenVINO: export with --format openvino")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run(None, {INPUT: images})[0]
        return logits

    return run


# ------------------------------------------------------------------------------------------------ OpenVINO


def to_openvino(program: ExportedProgram) -> Any:
    """The program as an `openvino.Model`, its shape known but for the number of images."""
    with quietly():
        model = quiet_openvino().convert_model(program)
    (images,), (logits,) = model.inputs, model.outputs
    images.get_tensor().set_names({INPUT})
    logits.get_tensor().set_names({OUTPUT})
    (shape,) = (node.meta["val"].shape for node in program.graph.nodes if node.name == INPUT)
    model.reshape([-1, *map(int, shape[1:])])  # fewer operations on shapes, faster
    return model


def save_openvino(model: Any, path: Path) -> None:
    """Writes the model as it is: OpenVINO's own default rounds weights to float16."""
    quiet_openvino().save_model(model, path, compress_to_fp16=False)


def _write_openvino(program: ExportedProgram, path: Path) -> None:
    save_openvino(to_openvino(program), path)


def _load_openvino(path: Path, threads: int, bf16: bool) -> Run:
    if bf16 and not computes_bfloat16():
        raise ValueError(f"{path}: this processor does not compute in bfloat16 itself, and is slower with it")
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # the default is bfloat16 wherever there is any
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino_core().compile_model(path, "CPU", options)

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = compiled(images)[0]
        return logits

    return run


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, as far as Linux tells."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return False
    flags = next((line for line in listing.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


# ------------------------------------------------------------------------------------------------ torch


def _write_torch(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def _load_torch(path: Path, threads: int, bf16: bool) -> Run:
    if bf16:
        raise ValueError(f"{path}: bfloat16 is for OpenVINO: export with --format openvino")
    torch.set_num_threads(threads)
    with quietly():
        module = torch.export.load(path).module()

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return logits

    return run


FORMATS: dict[str, Format] = {
    "onnx": Format(
        runtime="onnxruntime",
        files=("model.onnx",),
        packages=("onnx", "onnxscript", "onnxruntime"),
        write=_write_onnx,
        load=_load_onnx,
    ),
    "openvino": Format(
        runtime="openvino",
        files=("model.xml", "model.bin"),
        packages=("openvino",),
        write=_write_openvino,
        load=_load_openvino,
    ),
    "torch-export": Format(
        runtime="torch-export",
        files=("model.pt2",),
        packages=(),
        write=_write_torch,
        load=_load_torch,
    ),
}
"""By name."""
