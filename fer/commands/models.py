"""`fer models`: the models that can be trained, and their costs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fer.console import add_json_option, print_json

if TYPE_CHECKING:
    from fer.models import FerModel

PAPERS_CLASSES = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The number of classes; whether to count operations too."""
    parser.add_argument(
        "--num-classes", type=int, default=PAPERS_CLASSES, metavar="N", help="classes of the head (default 7)"
    )
    parser.add_argument(
        "--cost", action="store_true", help="parameters and multiply-accumulates, beside the numbers that papers print"
    )
    add_json_option(parser)


def main(args: argparse.Namespace) -> None:
    """One line per model: name, parameters, input size, title. With `--cost` a few lines each: see docs/models.md."""
    if args.num_classes < 1:
        raise ValueError(f"--num-classes {args.num_classes}: at least 1 is needed")
    if args.json:
        print_json([_described(name, model, args.cost) for name, model in _models(args.num_classes)])
    elif args.cost:
        _print_costs(args.num_classes)
    else:
        _print_models(args.num_classes)


def _print_models(num_classes: int) -> None:
    print(f"{'model':<24}{'parameters':>12}{'input':>8}  title")
    for name, model in _models(num_classes):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:<24}{parameters:>12,}{model.input_size:>6}px  {_title(model)}")


def _title(model: FerModel) -> str:
    return (sys.modules[type(model).__module__].__doc__ or "").split("\n")[0]


def _described(name: str, model: FerModel, cost: bool) -> dict[str, Any]:
    """The same for `--json`; "macs" with `--cost` alone."""
    from fer.models import model_options
    from fer.models.cost import measure

    described = {
        "name": name,
        "title": _title(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input_size": model.input_size,
        "options": model_options(name),
    }
    return described | ({"macs": measure(model).operations.macs} if cost else {})


def _print_costs(num_classes: int) -> None:
    from fer.models.cost import measure
    from fer.studies.published_costs import published_costs

    print(
        f"{'model':<24}{'input':>7}{'parameters':>12}{'published':>12}{'GMACs':>8}   printed, and ours counted likewise"
    )
    for name, model in _models(num_classes):
        cost = measure(model)
        paper = published_costs(name, cost) if num_classes == PAPERS_CLASSES else None
        total = f"{paper.total:,}" if paper else "-"
        line = f"{name:<24}{model.input_size:>5}px{cost.parameters:>12,}{total:>12}{cost.operations.macs / 1e9:>8.3f}"
        for number in paper.numbers if paper else ():
            print(f"{line}   {number.printed:>8}  {number.ours:>9}  {number.convention} ({number.where})")
            line = " " * len(line)
        if line.strip():
            print(line)
    print(
        "\nparameters: ours, every one live. published: in the published module, dead ones and, of Keras, BatchNorm"
        "\nstatistics included. GMACs: 10^9 multiply-accumulates of convolutions, linear layers and matrix products."
    )


def _models(num_classes: int) -> list[tuple[str, FerModel]]:
    """Every registered model by name, on the meta device: shapes without weights."""
    import torch

    from fer.models import create_model, list_models

    with torch.device("meta"):
        return [(name, create_model(name, num_classes=num_classes)) for name in list_models()]
