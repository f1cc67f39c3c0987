"""`fer synth`: look at the synthetic faces, write them in published layouts, and measure how hard they are."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from fer.config import parse
from fer.console import require_range
from fer.io.files import open_atomic, write_atomic
from fer.sources.drawn import IMAGES, LAYOUTS, write
from fer.synth.config import DEFAULT, SceneConfig
from fer.synth.expressions import ACTION_UNITS, EXPRESSIONS
from fer.synth.scene import Face


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`sheet` draws faces, `dataset` writes a folder, `difficulty` measures classifiers on unseen identities."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    text = "write a contact sheet as PNG: one row a class, or unlabeled with a key beside it"
    sheet = commands.add_parser("sheet", help=text, description=text)
    sheet.set_defaults(synth_command=_sheet)
    sheet.add_argument("out", type=Path, help="PNG to write")
    sheet.add_argument("--unlabelled", action="store_true", help="faces in their own order, without names")
    sheet.add_argument("--key", type=Path, help="CSV with the true expression of every cell, row by row")
    sheet.add_argument("--rows", type=int, default=7, help="of the sheet (7)")
    sheet.add_argument("--columns", type=int, default=6, help="of the sheet (6)")
    sheet.add_argument("--cell", type=int, default=128, help="px of a face (128)")
    text = "a linear classifier, a small network and an oracle on unseen identities"
    difficulty = commands.add_parser("difficulty", help=text, description=text)
    difficulty.set_defaults(synth_command=_difficulty)
    difficulty.add_argument("--train", type=int, default=6000, help="faces to learn from")
    difficulty.add_argument("--test", type=int, default=2000, help="faces of unseen identities")
    difficulty.add_argument("--side", type=int, default=32, help="px of the reduced face")
    difficulty.add_argument("--epochs", type=int, default=12)
    difficulty.add_argument("--landmark-error", type=float, default=1.0, help="of the alignment; 0 is exact")
    difficulty.add_argument("--no-network", action="store_true", help="leave out the network, which takes minutes")
    text = "drawn faces in the folder layout of a published dataset: what your data must look like"
    dataset = commands.add_parser("dataset", help=text, description=text)
    dataset.set_defaults(synth_command=_dataset)
    dataset.add_argument("--layout", required=True, choices=tuple(LAYOUTS), help="whose")
    dataset.add_argument("--out", required=True, type=Path, help="folder that is not there, or is empty")
    dataset.add_argument("--images", type=int, default=IMAGES, help=f"altogether ({IMAGES}), a quarter of them test")
    for command in (sheet, dataset, difficulty):
        command.add_argument("--seed", type=int, default=0)
    for command in (sheet, difficulty):
        command.add_argument("--classes", type=int, default=DEFAULT.num_classes, help="7, or 8 with contempt")
        command.add_argument("--strength", type=float, default=DEFAULT.strength, help="how strong the action units are")


def main(args: argparse.Namespace) -> None:
    """Runs the chosen one."""
    args.synth_command(args)


def _config(args: argparse.Namespace) -> SceneConfig:
    return parse(SceneConfig, {"num_classes": args.classes, "strength": args.strength}, "fer synth")


def _dataset(args: argparse.Namespace) -> None:
    """Writes the layout, and prints how params.yaml reads it."""
    entry = write(args.layout, args.out, images=args.images, seed=args.seed)
    print(f"{args.images} drawn faces in {args.out}. SYNTHETIC - says nothing about accuracy on people")
    print(f"In params.yaml:\n\ndatasets:\n  {args.layout}:")
    for key, value in entry.items():
        print(f"    {key}: {json.dumps(value)}")


def _sheet(args: argparse.Namespace) -> None:
    """Writes the sheet, and the key where one is asked for."""
    import cv2

    from fer.synth.sheet import sheet_and_faces

    for name in ("rows", "columns", "cell"):
        require_range(name, getattr(args, name), 1, 1000)
    config = _config(args)
    image, faces = sheet_and_faces(args.seed, config, args.rows, args.columns, not args.unlabelled, args.cell)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    write_atomic(args.out, cv2.imencode(".png", bgr, (cv2.IMWRITE_PNG_COMPRESSION, 9))[1].tobytes())
    if args.key:
        _write_key(args.key, faces)


def _write_key(path: Path, faces: list[Face]) -> None:
    with open_atomic(path, "w") as file:
        table = csv.writer(file)
        table.writerow(["number", "expression", "subject", "occluders", *(f"AU{unit}" for unit in ACTION_UNITS)])
        for number, face in enumerate(faces):
            table.writerow([number, EXPRESSIONS[face.clean_label], face.subject, "+".join(face.occluders), *face.aus])


def _difficulty(args: argparse.Namespace) -> None:
    """Measures, and prints the results as JSON."""
    from fer.synth.difficulty import measure

    for name in ("train", "test"):
        require_range(name, getattr(args, name), 100, 10**6)
    require_range("epochs", args.epochs, 1, 1000)
    accuracies = measure(
        _config(args), args.seed, args.train, args.test, side=args.side, epochs=args.epochs,
        landmark_error=args.landmark_error, network=not args.no_network,
    )  # fmt: skip
    print(json.dumps(accuracies, indent=2))
    print("SYNTHETIC - says nothing about accuracy on people")
