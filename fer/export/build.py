"""`fer export`: from a weights file to a folder that holds a checked graph."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch

from fer.console import log, progress
from fer.export.check import TOLERANCE, accuracies, latencies, parity
from fer.export.faces import drawn_faces, stored_faces
from fer.export.formats import FORMATS, FormatName, Run, computes_bfloat16, require
from fer.export.graph import INPUT, OUTPUT, Graph, explained, trace
from fer.export.quantize import CALIBRATION_FACES, quantize
from fer.export.store import CARD_NAME, ExportCard, InputCard, Int8Card, graph_input, on_levels
from fer.io.files import FileError, publish_directory, sha256, write_json
from fer.lineage import hardware, installed_version, versions
from fer.models import FerModel
from fer.models.inference import for_inference
from fer.shards.dataset import ShardSet
from fer.shards.pixels import ModelInput, normalize
from fer.weights.store import WeightsInfo, load_model

CHECK_FACES = 64
VALIDATION_FACES = 4000
_PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def export(
    weights: Path,
    out: Path,
    *,
    format: FormatName,
    raw: bool = False,
    calibrate: ShardSet | None = None,
    check: ShardSet | None = None,
    threads: int = 1,
) -> ExportCard:
    """Writes a model as a graph into a new folder, after comparing it with the model.

    Args:
        weights: a weights file of this project.
        out: a folder that is not there; it appears complete, or not at all.
        raw: the graph takes normalized images; see `fer.export.graph.Graph`.
        calibrate: quantize to int8, with training faces of these shards, whose validation faces give the loss.
        check: whose validation faces are compared; None: drawn ones.
        threads: of torch and of the runtime.

    Raises:
        FileError: a weights file that cannot be used, or weights without a classifier.
        ValueError: `out` exists, packages are missing, the format cannot take the model or int8, the data has other
            labels, or the logits differ by more than `TOLERANCE` of the largest.
    """
    chosen = FORMATS[format]
    if os.path.lexists(out):
        raise ValueError(f"{out}: exists already, and is not overwritten; give another --out")
    if calibrate is not None and format != "openvino":
        raise ValueError(f"--int8 with --format {format}: int8 is for --format openvino")
    chosen.check_packages()
    require(*(["nncf"] if calibrate is not None else []))
    model, info = load_model(weights, labels=None if calibrate is None else calibrate.labels)
    if not info.labels:
        raise FileError(f"{weights}: weights without a classifier, for pretraining only")
    torch.set_num_threads(threads)
    folded, model_input = for_inference(model), ModelInput.of(model)
    model_input.check()
    if check is None:
        levels, of = drawn_faces(model_input, CHECK_FACES), "drawn faces"
    else:
        faces = stored_faces(check.split("validation"), model_input, CHECK_FACES)
        levels, of = np.concatenate([part.levels for part in faces]), f"validation faces of {check.manifest.dataset}"

    with publish_directory(out) as folder:
        log.info("tracing %s, writing %s", info.model, format)
        program = trace(graph := Graph(folded, raw=raw))
        place = folder / "float32" if calibrate is not None else folder
        place.mkdir(exist_ok=True)
        with explained(format, folded):
            chosen.write(program, place / chosen.files[0])

        def load(where: Path, *, bf16: bool = False) -> Run:
            return on_levels(chosen.load(where / chosen.files[0], threads, bf16), info, raw=raw)

        runs = {"torch": _torch_run(folded), chosen.runtime: load(place)}
        found = parity(runs["torch"], runs[chosen.runtime], levels, of)
        if not found.holds:
            raise ValueError(
                f"{weights}: {chosen.runtime} differs from torch by {found.max_difference:.2g} in logits up to "
                f"{found.max_logit:.2g}, more than {TOLERANCE:g} of them, on {found.faces} {of}: nothing was exported"
            )
        if format == "openvino" and computes_bfloat16():
            runs["openvino bfloat16"] = load(place, bf16=True)
        int8 = None
        if calibrate is not None:
            log.info("calibrating int8 on training faces of %s", calibrate.manifest.dataset)
            train = stored_faces(calibrate.split("train"), model_input, CALIBRATION_FACES, batch=1)
            images = [graph_input(part.levels, info, raw=raw) for part in train]
            quantize(program, images, folder / chosen.files[0])
            runs["openvino int8"] = load(folder)
            int8 = _loss(runs["openvino"], runs["openvino int8"], calibrate, model_input, len(images))
        log.info("measuring the time of %s", ", ".join(runs))
        card = ExportCard(
            format=format,
            precision="float32" if int8 is None else "int8",
            input=_describe(graph, info),
            output=OUTPUT,
            model=info,
            weights_sha256=sha256(weights),
            files={name: sha256(folder / name) for name in chosen.files},
            versions=versions() | {name: installed_version(name) or "not installed" for name in _PACKAGES},
            parity=found,
            int8=int8,
            latency_ms=latencies(runs, levels),
            threads=threads,
            machine=hardware(),
        )
        del runs  # before their files
        if place != folder:
            shutil.rmtree(place)
        write_json(folder / CARD_NAME, card.model_dump(mode="json"), sealed=True)
        if os.path.lexists(out):
            raise ValueError(f"{out}: exists by now, and is not overwritten; give another --out")
    return card


def _torch_run(model: FerModel) -> Run:
    def run(levels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = normalize(torch.from_numpy(levels), model.mean, model.std, memory_format=torch.channels_last)
            logits: np.ndarray = model(x).numpy()
        return logits

    return run


def _loss(float32: Run, int8: Run, shards: ShardSet, model_input: ModelInput, calibrated: int) -> Int8Card:
    split = shards.split("validation")
    batches = stored_faces(split, model_input, VALIDATION_FACES)
    with progress(min(split.rows, VALIDATION_FACES), "validation", "face") as bar:
        shown = (bar.update(len(batch.labels)) or batch for batch in batches)
        shares, faces = accuracies({"float32": float32, "int8": int8}, shown)
    return Int8Card(
        dataset=shards.manifest.dataset,
        data_digest=shards.digest,
        calibration_faces=calibrated,
        validation_faces=faces,
        accuracy_float32=shares["float32"],
        accuracy_int8=shares["int8"],
    )


def _describe(graph: Graph, info: WeightsInfo) -> InputCard:
    size, resize = info.input_size, info.resize
    steps = [
        "find the face, align and crop it as model.extra.crop says",
        f"resize the crop to {size} x {size} px: {resize['kernel']}, antialias {resize['antialias']}"
        + (", levels not rounded" if graph.model.truncate else ""),
        "RGB, levels 0 to 255" + (" as float32" if graph.model.truncate else ""),
    ]
    if graph.raw:
        steps.append(f"(levels / 255 - mean) / std, with mean {info.mean} and std {info.std}; channels first")
    return InputCard(
        name=INPUT,
        layout="BCHW" if graph.raw else "BHWC",
        dtype="uint8" if graph.dtype == torch.uint8 else "float32",
        steps=tuple(steps),
        truncate=graph.model.truncate,
    )
