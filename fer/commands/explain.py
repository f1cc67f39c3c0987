"""`fer explain`: where in the faces of your photos models see the evidence for an expression."""

from __future__ import annotations

import argparse
import glob
from pathlib import Path
from typing import Any

import fer
from fer.commands.model_options import add_model_options
from fer.console import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photos, the weights, the method, and where to."""
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="image files")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="an image a face goes here: the crop, and each model's map over it",
    )
    add_model_options(parser)
    parser.add_argument(
        "--beside", action="append", default=[], metavar="W", help="another model's map on the right; can be repeated"
    )
    parser.add_argument("--method", choices=("grad_cam", "score_cam"), default="grad_cam", help="default grad_cam")
    parser.add_argument("--target", metavar="LABEL", help="the expression to explain (default: the predicted one)")
    parser.add_argument("--layer", metavar="NAME", help="dotted name of a module (default: each model's own)")


def main(args: argparse.Namespace) -> int:
    """Prints a line a face. Returns 0 where each photo has a face, 3 where some have none, 1 where none has."""
    targets = {path: args.out / f"{path.name}.{args.method}.face" for path in args.photos}
    if len({str(target) for target in targets.values()}) < len(args.photos):
        raise ValueError(f"--out {args.out}: two photos of one name would be written to one file; explain them apart")
    for target in targets.values():
        if taken := sorted(args.out.glob(f"{glob.escape(target.name)}*.jpg")):
            raise ValueError(f"{taken[0]}: exists already, and is never overwritten; name another folder with --out")
    import numpy as np

    from fer.inference.output import reasons, write_jpeg

    model = fer.load(args.weights, detector=args.detector, detector_weights=args.detector_weights)
    others = [fer.load(weights) for weights in args.beside]
    how: dict[str, Any] = {"method": args.method, "target": args.target, "layer": args.layer}
    without = 0
    for photo, target in targets.items():
        found = model.explain(photo, **how)
        crops = [one.crop for one in found]
        of_each = zip(found, *(other.explain_faces(crops, **how) for other in others), strict=True)
        for number, explanations in enumerate(of_each, 1):
            path = target.with_name(f"{target.name}{number}.jpg")
            write_jpeg(path, np.hstack([explanations[0].crop, *(one.overlay() for one in explanations)]))
            told = (f"{one.target} {one.face.probabilities[one.target]:.3f}, {one.layer}" for one in explanations)
            print(f"{photo}  face {number}  {args.method}: {'; '.join(told)} -> {path}", flush=True)
        if not found:
            why = "is a folder; name images" if photo.is_dir() else "; ".join(reasons(model.predict(photo)))
            log.warning("%s: %s", photo, why)
            without += 1
    return 0 if not without else 1 if without == len(targets) else 3
