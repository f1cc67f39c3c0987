"""The options of every command that loads a model with `fer.load`."""

from __future__ import annotations

import argparse


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--weights`, `--detector` and `--detector-weights`."""
    parser.add_argument(
        "--weights",
        metavar="W",
        help="a .safetensors file, the folder of a run, published weights that were pulled, or an MLflow URI "
        "(default: the model that comes with the package)",
    )
    parser.add_argument(
        "--detector",
        choices=("retinaface", "yunet", "whole"),
        help="whole: each photo is one face, cropped like the training data. Default: the detector of the "
        "training data, else yunet",
    )
    parser.add_argument(
        "--detector-weights", metavar="PATH", help="its file or folder (default: fetched into the cache)"
    )


def add_tta(parser: argparse.ArgumentParser) -> None:
    """`--tta`."""
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirror image")
