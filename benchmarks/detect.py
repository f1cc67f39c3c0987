"""`fer bench detect`: the faces that a detector finds in images whose faces were counted by eye."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result import BenchResult, benchmark, options
from fer.io.files import FileError, read_json

Box = Sequence[float]

_LOWEST_SCORE = 0.05  # to tell what was nearly found
_SAME_FACE = 0.5  # intersection over union


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", "--pictures", type=Path, required=True, metavar="FOLDER", help="where the images are"
    )
    parser.add_argument(
        "--faces",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON: {image: {"faces": [[x1, y1, x2, y2], ...], "beside": boxes of faces that need not be found}}',
    )
    parser.add_argument("--detectors", nargs="+", metavar="NAME", default=["retinaface", "yunet"], help="(both)")
    parser.add_argument("--weights", metavar="FOLDER", help="where the detectors' weights are (`fer weights pull`)")
    parser.add_argument("--min-score", type=float, help="of a face (each detector's default)")
    parser.add_argument("--side", type=int, help="longest side that the detector sees, in px (each one's default)")
    parser.add_argument("--min-width", type=float, default=40.0, help="narrower faces need not be found, in px (40)")


@benchmark("detect", help="which faces of images the detectors find, and which they miss", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """A row for each image and their sum, detector by detector; ValueError for what cannot be read."""
    from fer.faces.detect import DEFAULTS, create_detector
    from fer.faces.weights import locate
    from fer.io.images import decode_image

    seen: dict[str, dict[str, list[Box]]] = read_json(args.faces)
    rows = []
    used = {}
    for detector in args.detectors:
        weights = locate(detector, args.weights, Path.cwd())
        finder = create_detector(detector, weights=weights, min_score=_LOWEST_SCORE, longest_side=args.side)
        min_score = DEFAULTS[detector].min_score if args.min_score is None else args.min_score
        used[detector] = min_score, DEFAULTS[detector].longest_side if args.side is None else args.side
        outcomes = {}
        for name, boxes in seen.items():
            path = args.images / name
            if not path.is_file():
                raise FileError(f"{path}: no such image, which {args.faces} lists")
            (found,) = finder.detect([decode_image(path.read_bytes())])
            outcomes[name] = judge(
                [face.box for face in found],
                [face.score or 0.0 for face in found],
                boxes["faces"],
                boxes["beside"],
                min_score=min_score,
                min_width=args.min_width,
            )
        rows += [_row(detector, name, outcome) for name, outcome in outcomes.items()]
        rows.append(_row(detector, "all", sum_of(outcomes.values())))
    return BenchResult(
        title=f"faces wider than {args.min_width:g} px, seen by eye, and what the detectors find",
        rows=rows,
        notes=[
            *(
                f"{detector}: score {score:g} or more, longest side {side} px"
                for detector, (score, side) in used.items()
            ),
            f"found: a box that shares {_SAME_FACE:.0%} of its union with the face's; false alarms: boxes of no face",
            "missed: the upper left corner of the face and the best score that the detector has for it",
        ],
        settings=options(args, ("detectors", "min_score", "side", "min_width"))
        | {"images": str(args.images), "faces": str(args.faces)},
    )


def _row(detector: str, image: str, outcome: Outcome) -> dict[str, Any]:
    missed = "; ".join(f"{face[0]:.0f}, {face[1]:.0f}: {score:.2f}" for face, score in outcome.missed)
    return {
        "detector": detector,
        "image": image,
        "faces": outcome.found + len(outcome.missed),
        "found": outcome.found,
        "false alarms": outcome.false_alarms,
        "missed": missed if image != "all" else "",
    }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One image, one detector.

    Attributes:
        found: faces that were found.
        false_alarms: boxes where no face is, and second boxes of a face.
        missed: the faces that were not, each with the best score that the detector has for it, 0 where it has none.
    """

    found: int
    false_alarms: int
    missed: tuple[tuple[Box, float], ...]


def judge(
    boxes: Sequence[Box],
    scores: Sequence[float],
    faces: Sequence[Box],
    beside: Sequence[Box] = (),
    *,
    min_score: float,
    min_width: float,
) -> Outcome:
    """What of a detector's boxes is right.

    A box finds the face that it overlaps most if they share half of their union; of several the best. Boxes of faces
    that need not be found (those of `beside`, and those narrower than `min_width`) count neither way.

    Args:
        boxes, scores: best first, below `min_score` too.
        faces: seen by eye.
        beside: faces that need not be found.
    """
    missed = {number: 0.0 for number, face in enumerate(faces) if face[2] - face[0] > min_width}
    free = set(range(len(faces)))
    found = false_alarms = 0
    for box, score in zip(boxes, scores, strict=True):
        face = max(free, key=lambda number: overlap(box, faces[number]), default=None)
        if face is not None and overlap(box, faces[face]) >= _SAME_FACE:
            if score >= min_score:
                free.remove(face)
                found += face in missed
                missed.pop(face, None)
            elif face in missed:
                missed[face] = max(missed[face], score)
        elif score >= min_score and not any(overlap(box, other) >= _SAME_FACE for other in beside):
            false_alarms += 1
    return Outcome(
        found=found,
        false_alarms=false_alarms,
        missed=tuple((faces[number], score) for number, score in missed.items()),
    )


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def sum_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Of several images."""
    every = list(outcomes)
    return Outcome(
        found=sum(outcome.found for outcome in every),
        false_alarms=sum(outcome.false_alarms for outcome in every),
        missed=tuple(face for outcome in every for face in outcome.missed),
    )
