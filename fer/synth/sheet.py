"""Contact sheets: `fer synth sheet OUT.png`, one row a class, or `--unlabelled --key KEY.csv` for a blind
test."""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import cv2

from fer.io.files import open_atomic, write_atomic
from fer.synth.config import SceneConfig
from fer.synth.contact import sheet_and_faces
from fer.synth.expressions import ACTION_UNITS, EXPRESSIONS
from fer.synth.scene import Face


def _write_key(path: Path, faces: list[Face]) -> None:
    with open_atomic(path, "w") as file:
        table = csv.writer(file)
        table.writerow(["number", "expression", "subject", "occluders", *(f"AU{unit}" for unit in ACTION_UNITS)])
        for number, face in enumerate(faces):
            table.writerow([number, EXPRESSIONS[face.clean_label], face.subject, "+".join(face.occluders), *face.aus])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to draw."""
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--unlabelled", action="store_true", help="faces as they come, without names")
    parser.add_argument("--key", type=Path, help="CSV with the true expression of every cell, row by row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=7)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--cell", type=int, default=128, help="px of a face")
    parser.add_argument("--classes", type=int, default=7, help="7, or 8 with contempt")
    parser.add_argument("--strength", type=float, default=SceneConfig.strength, help="how strong the action units are")


def main(options: argparse.Namespace) -> None:
    """Writes the sheet, and the key where one is asked for."""
    config = replace(SceneConfig(), num_classes=options.classes, strength=options.strength)
    sheet, faces = sheet_and_faces(
        options.seed, config, options.rows, options.columns, not options.unlabelled, options.cell
    )
    bgr = cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)
    write_atomic(options.out, cv2.imencode(".png", bgr, (cv2.IMWRITE_PNG_COMPRESSION, 9))[1].tobytes())
    if options.key:
        _write_key(options.key, faces)
