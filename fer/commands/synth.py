"""`fer synth`: look at the synthetic faces, and measure how hard they are."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`sheet` draws a contact sheet, `difficulty` measures classifiers on unseen identities."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    sheet = commands.add_parser("sheet", help="write a contact sheet, one row a class")
    sheet.add_argument("out", type=Path, help="PNG to write")
    sheet.add_argument("--seed", type=int, default=0)
    difficulty = commands.add_parser("difficulty", help="linear classifier, small network and oracle on unseen identities")
    difficulty.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    """Runs the chosen one."""
    raise NotImplementedError(args)
