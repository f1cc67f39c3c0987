"""`fer predict`: the expressions of the faces in your photos."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fer.console import log

if TYPE_CHECKING:
    from fer.inference.photos import Classifier, Photo

_SOME_UNREAD = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the photos, and the outputs."""
    parser.epilog = (
        "Exit code: 0 where every photo could be read; 3 where some could not (they are named, and counted in the last "
        "line); 1 where none could, or after an error."
    )
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="a .safetensors file of this project, or the folder of a run"
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="files and folders; - reads one image from standard input"
    )
    parser.add_argument(
        "--detector",
        choices=("retinaface", "yunet", "whole"),
        help="whole: each photo is one face, cropped like the training data. Default: the detector of the "
        "training data, else retinaface",
    )
    parser.add_argument(
        "--detector-weights", metavar="PATH", help="its file or folder (default: the cache of `fer weights pull`)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all results here")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write a table of the faces here")
    parser.add_argument("--annotate", action="store_true", help="write the photos with boxes and labels into --out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for --annotate")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirror image")
    parser.add_argument("--threads", type=int, default=_cpus(), metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="faces of one forward pass (default 32)")


def main(args: argparse.Namespace) -> int:
    """Prints one line per face. Returns 0 where all photos could be read, 3 where some, 1 where none."""
    for name in ("threads", "batch"):
        if not 1 <= getattr(args, name) <= 4096:
            raise ValueError(f"--{name} {getattr(args, name)}: 1 to 4096 is allowed")
    if args.annotate != (args.out is not None):
        raise ValueError("--annotate and --out DIR belong together: give both")
    given = list(_given(args.photos))
    if not given:
        raise ValueError(f"no photo in {', '.join(args.photos)}: no file there has the ending of an image")
    _check_tables(args, given)
    photos = _predict(args, given, _targets(given, args.out) if args.annotate else [None] * len(given))
    unread = sum(not photo.read for photo in photos)
    if unread:
        log.warning("%d of %d photos could not be read", unread, len(photos))
    return 0 if not unread else 1 if unread == len(photos) else _SOME_UNREAD


# ------------------------------------------------------------------------------------------------ arguments


@dataclass(frozen=True)
class _Given:
    """A photo: its printable name, its file or bytes, and its place below the given folder."""

    name: str
    source: Path | bytes
    place: Path


def _given(names: Sequence[str]) -> Iterator[_Given]:
    from fer.inference.photos import find_photos
    from fer.io.images import MAX_BYTES

    for name in names:
        if name == "-":
            yield _Given(name, sys.stdin.buffer.read(MAX_BYTES + 1), Path(name))
            continue
        for path in find_photos([Path(name)]):
            # File names may hold line breaks and bytes that are not text.
            shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(path))
            yield _Given(shown, path, path.relative_to(name) if Path(name).is_dir() else Path(path.name))


def _targets(given: Sequence[_Given], folder: Path) -> list[Path | None]:
    """The file of each drawing: the tree below each given folder, again below `folder`.

    Raises:
        ValueError: two photos with one target, or an existing target: nothing is overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: a file; name a folder")
    targets: list[Path | None] = []
    owners: dict[Path, Path] = {}
    for one in given:
        if isinstance(one.source, bytes):
            raise ValueError("--annotate: an image from standard input has no name; give a file instead")
        target = folder / one.place.with_name(f"{one.place.name}.faces.jpg")
        owner = owners.setdefault(target, one.source)
        if owner.resolve() != one.source.resolve():
            raise ValueError(f"{owner} and {one.source}: both would be written to {target}; use an --out for each")
        if os.path.lexists(target):
            raise ValueError(f"{target}: exists already, and is never overwritten; name another folder with --out")
        targets.append(target)
    return targets


def _check_tables(args: argparse.Namespace, given: Sequence[_Given]) -> None:
    """ValueError where a table would replace a folder, a photo, the weights, or the other table."""
    from fer.inference.photos import weights_file

    taken = {one.source.resolve() for one in given if isinstance(one.source, Path)}
    taken.add(weights_file(args.weights).resolve())
    for option in ("json", "csv"):
        path: Path | None = getattr(args, option)
        if path is None:
            continue
        if path.is_dir() or path.resolve() in taken:
            raise ValueError(f"--{option} {path}: is a folder, or a file that is used already; name another")
        taken.add(path.resolve())


# ------------------------------------------------------------------------------------------------ prediction


def _predict(args: argparse.Namespace, given: Sequence[_Given], targets: Sequence[Path | None]) -> list[Photo]:
    import cv2
    import torch

    from fer.faces.config import CropConfig
    from fer.faces.crop import finder
    from fer.faces.weights import locate
    from fer.inference.output import SYNTHETIC, annotated, lines, write_jpeg
    from fer.inference.photos import Classifier, classify, crop_config
    from fer.io.images import read_image

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    classifier = Classifier(args.weights)
    labels, note = classifier.info.labels, SYNTHETIC if classifier.info.synthetic else ""
    config, search = CropConfig(), None
    if args.detector != "whole":
        config = crop_config(classifier.info, args.detector, where=str(classifier.path))
        search = finder(config, str(locate(config.detector, args.detector_weights, Path.cwd())))
    if note:
        print(f"warning: {classifier.path}: {note}", file=sys.stderr, flush=True)
    photos = []
    sources = [(one.name, one.source) for one in given]
    found = classify(sources, classifier, config, search, tta=args.tta, batch=args.batch, threads=args.threads)
    for photo, one, target in zip(found, given, targets, strict=True):
        for line in lines(photo, labels):
            print(line, flush=True)
        if target is not None and photo.faces:
            assert isinstance(one.source, Path)
            write_jpeg(target, annotated(read_image(one.source), photo.faces, labels, note))
        photos.append(photo)
    _write_tables(args, classifier, photos)
    return photos


def _write_tables(args: argparse.Namespace, classifier: Classifier, photos: Sequence[Photo]) -> None:
    from fer.inference.output import as_csv, as_json
    from fer.io.files import sha256, write_atomic, write_json

    labels, synthetic = classifier.info.labels, classifier.info.synthetic
    if args.json is not None:
        about = {
            "weights": str(args.weights),
            "weights_sha256": sha256(classifier.path),
            "labels": list(labels),
            "trained_on_synthetic": synthetic,
            "tta": args.tta,
        }
        write_json(args.json, {**about, "photos": [as_json(photo, labels) for photo in photos]})
    if args.csv is not None:
        write_atomic(args.csv, as_csv(photos, labels, synthetic=synthetic))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
