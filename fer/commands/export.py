"""`fer export`: a trained model as a graph for ONNX Runtime, OpenVINO or torch without this package."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer.export.store import ExportCard
    from fer.shards.dataset import ShardSet

_FORMATS = ("onnx", "openvino", "torch-export")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the format, int8, and the faces to check with."""
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="a .safetensors file of this project, or the folder of a run"
    )
    parser.add_argument("--format", choices=_FORMATS, required=True, help="openvino is the fastest on CPU")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="to write; must not exist")
    parser.add_argument(
        "--raw", action="store_true", help="the graph takes normalized float32 (B,3,S,S), not uint8 RGB (B,S,S,3)"
    )
    parser.add_argument(
        "--int8", action="store_true", help="quantize weights and activations; openvino only, needs --calibrate"
    )
    parser.add_argument(
        "--calibrate", metavar="DATASET", help="with shards: training faces calibrate, validation faces give the loss"
    )
    parser.add_argument(
        "--check", metavar="DATASET", help="with shards: compare logits on its validation faces (default: drawn faces)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="(default: all)")


def main(args: argparse.Namespace) -> None:
    """Writes the folder, and prints parity, loss and latency."""
    if args.int8 != (args.calibrate is not None):
        raise ValueError("--int8 and --calibrate DATASET belong together: give both")
    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: at least 1 is needed")
    from fer.export.build import export
    from fer.inference.model import weights_file

    card = export(
        weights_file(args.weights),
        args.out,
        format=args.format,
        raw=args.raw,
        calibrate=_shards(args.calibrate),
        check=_shards(args.check),
        threads=args.threads,
    )
    for line in report(card):
        print(line)
    print(f"{args.out}: written; export.json says what the graph takes and returns")


def _shards(dataset: str | None) -> ShardSet | None:
    if dataset is None:
        return None
    from fer import params
    from fer.commands.shards import shards_folder
    from fer.shards.dataset import ShardSet

    return ShardSet.open(shards_folder(params.load(), dataset))


def report(card: ExportCard) -> list[str]:
    """Lines: parity, the loss by int8, milliseconds an image."""
    found = card.parity
    lines = [
        f"{card.model.model}, {card.format}, {card.precision}, input {card.input.dtype} {card.input.layout}",
        f"float32 against torch on {found.faces} {found.of}: logits differ by at most {found.max_difference:.2g} "
        f"(largest logit {found.max_logit:.3g}), labels agree on {found.same_label} of {found.faces}",
    ]
    if card.int8 is not None:
        before, after = card.int8.accuracy_float32, card.int8.accuracy_int8
        lines.append(
            f"int8, calibrated on {card.int8.calibration_faces} training faces of {card.int8.dataset}: validation "
            f"accuracy {100 * after:.2f} %, float32 {100 * before:.2f} %, {100 * (after - before):+.2f} points on "
            f"{card.int8.validation_faces} faces"
        )
    sizes = list(next(iter(card.latency_ms.values())))
    lines.append(
        f"{'ms an image, ' + str(card.threads) + ' threads':<24}" + "".join(f"{'batch ' + s:>12}" for s in sizes)
    )
    lines += [
        f"{name:<24}" + "".join(f"{times[size]:>12.2f}" for size in sizes) for name, times in card.latency_ms.items()
    ]
    if card.format == "openvino" and "openvino bfloat16" not in card.latency_ms:
        lines.append("bfloat16: not measured, this processor does not compute in it")
    return lines
