"""`fer models`: what can be trained."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many classes to count with."""
    parser.add_argument("--num-classes", type=int, default=7, metavar="N", help="classes of the head (default 7)")


def main(args: argparse.Namespace) -> None:
    """One line a model: name, parameters, input size."""
    import torch

    from fer.models import create_model, list_models

    print(f"{'model':<20}{'parameters':>12}{'input':>8}")
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name, num_classes=args.num_classes)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:<20}{parameters:>12,}{model.input_size:>6}px")
