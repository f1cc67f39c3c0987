"""`fer predict`: the expressions of the faces in your photos and videos."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fer
from fer import console
from fer.commands.model_options import add_model_options, add_tta
from fer.console import log, require_range
from fer.processes import Interrupted, cpus

if TYPE_CHECKING:
    from fer.inference.model import Model, Result

_SOME_UNREAD = 3
_STDOUT = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the photos, and the outputs."""
    parser.epilog = (
        "Exit code: 0 where every photo could be read; 3 where some could not (they are named, and counted in the last "
        "line); 1 where none could, or after an error."
    )
    parser.add_argument(
        "photos", nargs="*", metavar="PHOTO", help="files, folders, patterns, http(s) URLs and videos; - reads one "
        "image from standard input"
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument("--camera", type=int, nargs="?", const=0, metavar="N", help="a camera, until Ctrl+C")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all results here; - prints them, and no lines")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write a table of the faces here")
    parser.add_argument("--parquet", type=Path, metavar="PATH", help="the same table as Parquet")
    parser.add_argument("--annotate", action="store_true", help="write photos and videos with boxes and labels")
    parser.add_argument("--out", metavar="DIR", help="folder for --annotate, or folder or store for --cluster")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="any number of images of one folder or store (s3://...), on the Ray cluster of RAY_ADDRESS or a local "
        "one; tables go to --out; stopped, the same command resumes",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="of --cluster: at a time (all CPUs); 0: without Ray")
    add_tta(parser)
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.6,
        metavar="A",
        help="of video: weight of the past in a face's probabilities, 0 to less than 1 (default 0.6)",
    )
    parser.add_argument("--threads", type=int, default=cpus(), metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="faces of one forward pass (default 32)")


def main(args: argparse.Namespace) -> int:
    """Prints one line per face. Returns 0 where all photos could be read, 3 where some, 1 where none."""
    for name in ("threads", "batch"):
        require_range(name, getattr(args, name), 1, 4096)
    if not 0 <= args.smooth < 1:
        raise ValueError(f"--smooth {args.smooth}: 0 to less than 1 is allowed")
    if args.cluster:
        return _on_cluster(args)
    if args.annotate != (args.out is not None):
        raise ValueError("--annotate and --out DIR belong together: give both")
    if args.json == _STDOUT:
        console.set_up(log.level, sys.stderr)
    weights, photos = _weights(args.weights, args.photos)
    given = list(_given(photos))
    if args.camera is not None:
        given.append(_Given(f"camera {args.camera}", args.camera, Path(f"camera{args.camera}")))
    if not given:
        raise ValueError(f"no photo in {', '.join(photos)}: no file there has the ending of an image" if photos else
                         "name photos, folders, URLs or videos; or --camera")  # fmt: skip
    model = fer.load(
        weights,
        detector=args.detector,
        detector_weights=args.detector_weights,
        threads=args.threads,
        tta=args.tta,
    )
    _check_tables(args, given, model.path)
    targets = _targets(given, Path(args.out)) if args.annotate else [None] * len(given)
    results: list[Result] = []
    try:
        for result in _predict(args, model, given, targets):
            results.append(result)
    except Interrupted:
        if args.camera is None:
            raise
        log.info("stopped; what was seen so far is written")
        _write_tables(args, model, results)
        raise
    _write_tables(args, model, results)
    unread = sum(not result.read for result in results)
    if unread:
        log.warning("%d of %d photos could not be read", unread, len(results))
    return 0 if not unread else 1 if unread == len(results) else _SOME_UNREAD


def _on_cluster(args: argparse.Namespace) -> int:
    from fer.cluster.config import ClusterConfig
    from fer.locate import find_model
    from fer.stages import predict

    if args.out is None or len(args.photos) != 1:
        raise ValueError("--cluster: name one folder or store of images, and --out for the tables")
    if other := [name for name in ("annotate", "json", "csv", "parquet") if getattr(args, name)]:
        raise ValueError(f"--cluster and --{other[0]}: the tables go to --out; leave --{other[0]} out")
    if args.workers is not None:
        require_range("workers", args.workers, 0, 4096)
    counts = predict.run(
        args.photos[0],
        args.out,
        find_model(args.weights),
        detector=args.detector,
        detector_weights=args.detector_weights,
        tta=args.tta,
        workers=args.workers,
        cluster=ClusterConfig(),
    )
    return 0 if not counts["unread"] else 1 if counts["unread"] == counts["images"] else _SOME_UNREAD


# ------------------------------------------------------------------------------------------------ arguments


@dataclass(frozen=True)
class _Given:
    """A photo or video: its printable name; its file, URL, bytes or camera; and its place below the given folder."""

    name: str
    source: Path | str | bytes | int
    place: Path

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        from fer.inference.video import VIDEO_ENDINGS

        return isinstance(self.source, int) or (
            isinstance(self.source, Path) and self.source.name.lower().endswith(VIDEO_ENDINGS)
        )


def _weights(given: str | None, photos: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The weights, and the photos without them: until version 0.1, weights came before the photos without an option."""
    from fer.inference.photos import find_photos
    from fer.weights.store import WEIGHTS_NAME

    first = Path(photos[0]) if photos else Path()
    if first.suffix != ".safetensors" and not (len(photos) > 1 and (first / WEIGHTS_NAME).is_file()):
        return given, photos
    if given is not None:
        raise ValueError(f"{first}: holds weights, and --weights {given} too; give one of them, and photos")
    if first.is_dir() and next(find_photos([first]), None) is not None:
        raise ValueError(f"{first}: holds weights and images; give --weights {first}, or other photos")
    log.warning("%s: give weights as --weights %s; the next version takes this for a photo", first, first)
    return str(first), photos[1:]


def _given(names: Sequence[str]) -> Iterator[_Given]:
    from fer.inference.photos import find_photos, is_url, name_of
    from fer.io.images import MAX_BYTES

    for name in names:
        if name == "-":
            yield _Given(name, sys.stdin.buffer.read(MAX_BYTES + 1), Path(name))
            continue
        if is_url(name):
            shown = name_of(name, 1)
            yield _Given(shown, name, Path(Path(shown).name or "image"))
            continue
        for root in _matches(name):
            for path in find_photos([Path(root)]):
                yield _Given(name_of(path, 1), path, path.relative_to(root) if Path(root).is_dir() else Path(path.name))


def _matches(name: str) -> list[str]:
    """What a pattern that no shell has replaced stands for; any other name stands for itself."""
    is_pattern = glob.has_magic(name) and not Path(name).exists()
    return (sorted(glob.glob(name, recursive=True)) if is_pattern else []) or [name]  # noqa: PTH207 - may be absolute


def _targets(given: Sequence[_Given], folder: Path) -> list[Path | None]:
    """The file of each drawing: the tree below each given folder, again below `folder`.

    Raises:
        ValueError: two photos with one target, or an existing target: nothing is overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: a file; name a folder")
    targets: list[Path | None] = []
    owners: dict[Path, _Given] = {}
    for one in given:
        if isinstance(one.source, bytes):
            raise ValueError("--annotate: an image from standard input has no name; give a file instead")
        target = folder / one.place.with_name(f"{one.place.name}.faces.{'mp4' if one.is_video else 'jpg'}")
        owner = owners.setdefault(target, one)
        if _identity(owner) != _identity(one):
            raise ValueError(f"{owner.name} and {one.name}: both would be written to {target}; use an --out for each")
        if os.path.lexists(target):
            raise ValueError(f"{target}: exists already, and is never overwritten; name another folder with --out")
        targets.append(target)
    return targets


def _identity(one: _Given) -> object:
    return one.source.resolve() if isinstance(one.source, Path) else one.source


def _check_tables(args: argparse.Namespace, given: Sequence[_Given], weights: Path) -> None:
    """ValueError where a table would replace the other one, or anything that is no earlier table."""
    from fer.inference.output import is_table

    taken = {weights.resolve(), *(one.source.resolve() for one in given if isinstance(one.source, Path))}
    for option in ("json", "csv", "parquet"):
        path: Path | None = getattr(args, option)
        if path is None or (option == "json" and path == _STDOUT):
            continue
        if path.is_dir() or path.resolve() in taken:
            raise ValueError(f"--{option} {path}: is a folder, or a file that is used already; name another")
        if path.exists() and not is_table(option, path):
            raise ValueError(f"--{option} {path}: holds no predictions; remove it, or name another file")
        taken.add(path.resolve())


# ------------------------------------------------------------------------------------------------ prediction


def _predict(
    args: argparse.Namespace, model: Model, given: Sequence[_Given], targets: Sequence[Path | None]
) -> Iterator[Result]:
    """Results as they come; lines are printed and drawings written on the way. Photos first, then videos."""
    from fer.inference.output import SYNTHETIC, annotated, lines, write_jpeg
    from fer.inference.photos import pixels

    note = SYNTHETIC if model.info.synthetic else ""
    if note:
        print(f"warning: {model.path}: {note}", file=sys.stderr, flush=True)

    def show(result: Result) -> None:
        for line in () if args.json == _STDOUT else lines(result):
            print(line, flush=True)

    pairs = list(zip(given, targets, strict=True))
    photos = [(one, target) for one, target in pairs if not one.is_video]
    sources: Any = ((one.name, one.source) for one, _ in photos)
    for result, (one, target) in zip(model.results(sources, batch=args.batch), photos, strict=True):
        show(result)
        if target is not None and result.faces:
            assert not isinstance(one.source, int)
            write_jpeg(target, annotated(pixels(one.source), result.faces, note))
        yield result
    for one, target in pairs:
        if one.is_video:
            yield from _follow(model, one, target, note, args.smooth, show)


def _follow(
    model: Model, one: _Given, target: Path | None, note: str, smooth: float, show: Callable[[Result], None]
) -> Iterator[Result]:
    """A result for each frame; shown are those in which a face appears or its expression changes."""
    from fer.inference.output import annotated
    from fer.inference.video import Video, writing

    assert isinstance(one.source, Path | int)
    video = Video(one.source, one.name)
    before: dict[int | None, str] = {}
    with writing(target) if target else nullcontext() as writer:
        for frame in video.frames(model, smooth):
            result = frame.result
            if writer is not None and frame.image is not None:
                writer.add(annotated(frame.image, result.faces, note), video.rate)
            now = {face.track: face.label for face in result.faces}
            if not result.read or now.items() - before.items():
                show(result)
            before = now
            yield result


def _write_tables(args: argparse.Namespace, model: Model, results: Sequence[Result]) -> None:
    from fer.inference.output import as_csv, columns_of, rows_of
    from fer.io.files import sha256, write_atomic, write_json

    synthetic = model.info.synthetic
    if args.json is not None:
        about = {
            "weights": str(model.path),
            "weights_sha256": sha256(model.path),
            "labels": list(model.labels),
            "trained_on_synthetic": synthetic,
            "tta": args.tta,
            "photos": [result.to_dict() for result in results],
        }
        if args.json == _STDOUT:
            print(json.dumps(about, indent=2, sort_keys=True))
        else:
            write_json(args.json, about)
    if args.csv is not None:
        write_atomic(args.csv, as_csv(rows_of(results, synthetic=synthetic), model.labels))
    if args.parquet is not None:
        from fer.shards.table import schema_of, write_table

        write_table(args.parquet, list(rows_of(results, synthetic=synthetic)), schema_of(columns_of(model.labels)))
