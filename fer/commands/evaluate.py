"""`fer evaluate`: weights of ours or of others on the test split of a dataset; models by datasets."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer.params import Params
    from fer.stages.score import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights and datasets; what a published file does not say; the rule for classes that a dataset lacks."""
    parser.epilog = "The section `evaluate` of params.yaml says how: threads, views, intervals."
    parser.add_argument(
        "weights",
        nargs="*",
        metavar="WEIGHTS",
        help="trained/DATASET/MODEL, a .safetensors file of this project, a published file, or a name of "
        "`fer weights list` that was pulled; with --matrix default: every model in trained/",
    )
    parser.add_argument(
        "--dataset", nargs="+", default=[], metavar="D", help="with shards; with --matrix default: every one"
    )
    parser.add_argument("--matrix", action="store_true", help="each model on each dataset, as one table")
    parser.add_argument("--model", metavar="NAME", help="of a published file: the model that it is of (`fer models`)")
    parser.add_argument(
        "--labels",
        metavar="A,B,...",
        help="of a published file: its classes in the order of the logits, or a dataset with this order: rafdb, ...",
    )
    parser.add_argument("--name", metavar="NAME", help="of the folder of the results (default: after the weights)")
    parser.add_argument(
        "--extra-classes",
        choices=("left_out", "wrong"),
        default="left_out",
        help="classes that the dataset lacks: their logits are left out (default), or to predict them is wrong",
    )


def main(args: argparse.Namespace) -> None:
    """Evaluates one pair, or with --matrix all; what is there already is not computed again."""
    from fer import params as parameters
    from fer.commands.shards import shards_folder
    from fer.stages import matrix
    from fer.stages.evaluate import open_shards
    from fer.stages.score import score

    if not args.matrix and (len(args.weights), len(args.dataset)) != (1, 1):
        raise ValueError("give one WEIGHTS and one --dataset; --matrix evaluates several")
    if len(args.weights) != 1 and (args.name or args.labels or args.model):
        raise ValueError("--name, --labels and --model are of one WEIGHTS: evaluate these weights alone first")
    params = parameters.load()
    datasets = args.dataset or expression_datasets(params)
    for dataset in datasets:
        shards_folder(params, dataset)
    given = args.weights or sorted(str(path.parent) for path in (params.root / "trained").glob("*/*/model.safetensors"))
    if not given or not datasets:
        raise ValueError(f"{params.root}: no {'shards in data/shards' if given else 'models in trained/'} yet")
    with opened(given, args, params) as weights:
        if args.matrix:
            print((matrix.run(params, datasets, weights, args.extra_classes) / "matrix.md").read_text("utf-8"))
        else:
            (dataset,), (one,) = datasets, weights
            score(params, dataset, open_shards(params, dataset, one.given), one, args.extra_classes)


def expression_datasets(params: Params) -> list[str]:
    """The datasets with shards, those of people left out."""
    from fer.labels import is_identities
    from fer.shards.manifest import load_manifest

    folders = sorted(path.parent for path in (params.root / "data" / "shards").glob("*/manifest.json"))
    return [folder.name for folder in folders if not is_identities(load_manifest(folder).label_space)]


@contextmanager
def opened(given: Sequence[str], args: argparse.Namespace, params: Params) -> Iterator[list[Weights]]:
    """The weights, published ones as files of this project for the time of the block.

    Raises:
        ValueError: a file that cannot be read, an unknown order of classes, options that a file of this project does
            not need, or two weights of one name.
    """
    from fer.io.files import remove_leftovers, temporary_path

    work = params.root / ".work"
    scratch = temporary_path(work / "evaluate")
    remove_leftovers(work, "evaluate")  # of killed processes
    scratch.mkdir(parents=True)
    try:
        weights = [_open(source, args, params, scratch / str(index)) for index, source in enumerate(given)]
        names = [one.name for one in weights]
        for one in weights:
            if names.count(one.name) > 1:
                raise ValueError(f"{one.given}: other weights would have the name {one.name!r} too; rename the file")
        yield weights
    finally:
        shutil.rmtree(scratch)


def _open(source: str, args: argparse.Namespace, params: Params, scratch: Path) -> Weights:
    from fer.io.files import FileError
    from fer.labels import DATASET_LABELS
    from fer.lineage import training_facts
    from fer.names import LONGEST, check_name
    from fer.stages.score import Weights
    from fer.weights.imports import find_weights, import_weights
    from fer.weights.store import has_description

    path, entry = find_weights(source)
    if not (path.exists() or Path(f"{path}.index").is_file()):
        raise FileError(f"{path}: no such file or folder")
    path = path.absolute()  # not resolved: DVC may link results into its cache
    run = path if (path / "model.safetensors").is_file() else None
    file = run / "model.safetensors" if run else path
    shown = path.relative_to(params.root).as_posix() if path.is_relative_to(params.root) else str(path)
    stem = source if entry else f"{path.parent.name}-{path.name}" if run else path.stem
    name = args.name or re.sub(r"[^\w-]+", "_", stem, flags=re.ASCII)[:LONGEST].strip("-")
    check_name(name, "--name" if args.name else f"{source}: give a --name")
    ours = file.suffix == ".safetensors" and has_description(file)
    if ours and (args.labels or args.model):
        raise ValueError(f"{source}: --labels and --model are for published files; this one holds its own description")
    if not ours:
        file = scratch.with_suffix(".safetensors")
        given = args.labels or ""
        labels = DATASET_LABELS.get(given) or [label.strip() for label in given.split(",") if label.strip()]
        ask = f"Give it with --labels A,B,... or as the dataset that has this order: {', '.join(DATASET_LABELS)}"
        import_weights(source, file, model=args.model, labels=labels, ask=ask)
    facts = training_facts(run) if run and (run / "train.json").is_file() else {}
    return Weights(name=name, given=source if entry else shown, file=file, facts=facts)
