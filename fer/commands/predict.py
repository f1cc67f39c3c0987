"""`fer predict`: the expressions of the faces in your own photos."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fer.console import log

if TYPE_CHECKING:
    from fer.evaluation.photos import Photo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the photos, and what to do with what is found."""
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="a .safetensors file of this project, or the folder of a training"
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="files and folders; - reads one picture from standard input"
    )
    parser.add_argument(
        "--detector",
        choices=("retinaface", "yunet", "whole"),
        help="what finds the faces; whole: each photo is one face, cut out as the training's were. Default: the "
        "training's own detector, else retinaface",
    )
    parser.add_argument(
        "--detector-weights", metavar="PATH", help="its file or folder (default: what `fer weights pull` brought)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was found here")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write a table of the faces here")
    parser.add_argument("--annotate", action="store_true", help="write the photos with boxes and labels into --out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for --annotate")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: look at the mirror image too")
    parser.add_argument("--threads", type=int, default=_cpus(), metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="faces looked at together (default 32)")


def main(args: argparse.Namespace) -> int:
    """Prints one line a face. Returns 1 where not one photo could be read, else 0."""
    for name in ("threads", "batch"):
        if not 1 <= getattr(args, name) <= 4096:
            raise ValueError(f"--{name} {getattr(args, name)}: 1 to 4096 is allowed")
    if args.annotate != (args.out is not None):
        raise ValueError("--annotate and --out DIR belong together: the one says what to write, the other where")
    photos, labels = _predict(args)
    if not photos:
        raise ValueError(f"no photo in {', '.join(args.photos)}: no file there ends as a picture's name does")
    unread = sum(not photo.read for photo in photos)
    if unread:
        log.warning("%d of %d photos could not be read", unread, len(photos))
    _write_tables(args, photos, labels)
    return int(unread == len(photos))


def _predict(args: argparse.Namespace) -> tuple[list[Photo], tuple[str, ...]]:
    import cv2
    import torch

    from fer.evaluation.photo_output import lines
    from fer.evaluation.photos import Classifier, classify, crop_config
    from fer.faces.config import CropConfig
    from fer.faces.crop import finder
    from fer.faces.weights import locate

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    classifier = Classifier(args.weights)
    labels = classifier.info.labels
    config, search = CropConfig(), None
    if args.detector != "whole":
        config = crop_config(classifier.info, args.detector)
        search = finder(config, str(locate(config.detector, args.detector_weights, Path.cwd())))
    photos = []
    for photo in classify(
        _given(args.photos), classifier, config, search, tta=args.tta, batch=args.batch, threads=args.threads
    ):
        for line in lines(photo, labels):
            print(line, flush=True)
        if args.annotate and photo.faces:
            _annotate(args.out, photo, labels)
        photos.append(photo)
    return photos, labels


def _given(names: Sequence[str]) -> Iterator[tuple[str, Path | bytes]]:
    from fer.evaluation.photos import find_photos
    from fer.pictures import MAX_BYTES

    for name in names:
        if name == "-":
            yield name, sys.stdin.buffer.read(MAX_BYTES + 1)
            continue
        for path in find_photos([Path(name)]):
            yield str(path), path


def _annotate(folder: Path, photo: Photo, labels: Sequence[str]) -> None:
    from fer.evaluation.photo_output import annotated, write_jpeg
    from fer.pictures import read_image

    if photo.name == "-":
        raise ValueError("--annotate: a picture from standard input is not kept; name its file instead")
    path = Path(photo.name)
    # The whole path under the folder, so that photos of the same name do not overwrite each other.
    inside = [part for part in path.parts[:-1] if part not in ("/", "..", ".")]
    target = folder.joinpath(*inside, f"{path.name}.faces.jpg")
    write_jpeg(target, annotated(read_image(path), photo.faces, labels))


def _write_tables(args: argparse.Namespace, photos: Sequence[Photo], labels: Sequence[str]) -> None:
    from fer.evaluation.photo_output import as_csv, as_json
    from fer.files import sha256, write_atomic, write_json

    if args.json is not None:
        from fer.evaluation.photos import weights_file

        file = weights_file(args.weights)
        found = [as_json(photo, labels) for photo in photos]
        about = {"weights": str(args.weights), "weights_sha256": sha256(file), "labels": list(labels), "tta": args.tta}
        write_json(args.json, {**about, "photos": found})
    if args.csv is not None:
        write_atomic(args.csv, as_csv(photos, labels))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
