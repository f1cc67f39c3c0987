"""`fer predict`: the expressions of the faces in your photos."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fer
from fer.console import log

if TYPE_CHECKING:
    from fer.inference.model import Model, Result

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
        "training data, else yunet",
    )
    parser.add_argument(
        "--detector-weights", metavar="PATH", help="its file or folder (default: the cache of `fer weights pull`)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all results here")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write a table of the faces here")
    parser.add_argument("--annotate", action="store_true", help="write the photos with boxes and labels into --out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for --annotate")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirror image")
    parser.add_argument("--threads", type=int, default=cpus(), metavar="N", help="CPU threads (default: all)")
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
    model = fer.load(
        args.weights,
        detector=args.detector,
        detector_weights=args.detector_weights,
        threads=args.threads,
        tta=args.tta,
    )
    _check_tables(args, given, model.path)
    results = _predict(args, model, given, _targets(given, args.out) if args.annotate else [None] * len(given))
    unread = sum(not result.read for result in results)
    if unread:
        log.warning("%d of %d photos could not be read", unread, len(results))
    return 0 if not unread else 1 if unread == len(results) else _SOME_UNREAD


# ------------------------------------------------------------------------------------------------ arguments


@dataclass(frozen=True)
class _Given:
    """A photo: its printable name, its file or bytes, and its place below the given folder."""

    name: str
    source: Path | bytes
    place: Path


def _given(names: Sequence[str]) -> Iterator[_Given]:
    from fer.inference.photos import find_photos, name_of
    from fer.io.images import MAX_BYTES

    for name in names:
        if name == "-":
            yield _Given(name, sys.stdin.buffer.read(MAX_BYTES + 1), Path(name))
            continue
        for path in find_photos([Path(name)]):
            yield _Given(name_of(path, 1), path, path.relative_to(name) if Path(name).is_dir() else Path(path.name))


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


def _check_tables(args: argparse.Namespace, given: Sequence[_Given], weights: Path) -> None:
    """ValueError where a table would replace a folder, a photo, the weights, or the other table."""
    taken = {weights.resolve(), *(one.source.resolve() for one in given if isinstance(one.source, Path))}
    for option in ("json", "csv"):
        path: Path | None = getattr(args, option)
        if path is None:
            continue
        if path.is_dir() or path.resolve() in taken:
            raise ValueError(f"--{option} {path}: is a folder, or a file that is used already; name another")
        taken.add(path.resolve())


# ------------------------------------------------------------------------------------------------ prediction


def _predict(
    args: argparse.Namespace, model: Model, given: Sequence[_Given], targets: Sequence[Path | None]
) -> list[Result]:
    from fer.inference.output import SYNTHETIC, annotated, lines, write_jpeg
    from fer.io.images import read_image

    note = SYNTHETIC if model.info.synthetic else ""
    if note:
        print(f"warning: {model.path}: {note}", file=sys.stderr, flush=True)
    results = []
    found = model.results([(one.name, one.source) for one in given], batch=args.batch)
    for result, one, target in zip(found, given, targets, strict=True):
        for line in lines(result):
            print(line, flush=True)
        if target is not None and result.faces:
            assert isinstance(one.source, Path)
            write_jpeg(target, annotated(read_image(one.source), result.faces, note))
        results.append(result)
    _write_tables(args, model, results)
    return results


def _write_tables(args: argparse.Namespace, model: Model, results: Sequence[Result]) -> None:
    from fer.inference.output import as_csv
    from fer.io.files import sha256, write_atomic, write_json

    synthetic = model.info.synthetic
    if args.json is not None:
        about = {
            "weights": str(args.weights),
            "weights_sha256": sha256(model.path),
            "labels": list(model.labels),
            "trained_on_synthetic": synthetic,
            "tta": args.tta,
        }
        write_json(args.json, {**about, "photos": [result.to_dict() for result in results]})
    if args.csv is not None:
        write_atomic(args.csv, as_csv(results, model.labels, synthetic=synthetic))


def cpus() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
