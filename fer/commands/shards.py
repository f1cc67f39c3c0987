"""`fer shards`: the content of a dataset's shards, and the folds of a cross-validation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fer.config import nearest
from fer.console import add_json_option, print_json

if TYPE_CHECKING:
    from fer.params import Params
    from fer.shards.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which dataset, and which cross-validation of it."""
    parser.add_argument("dataset", metavar="DATASET", help="a folder of data/shards")
    parser.add_argument("--folds", type=int, metavar="K", help="also the rows of a cross-validation of K folds")
    parser.add_argument("--repeat", type=int, default=0, metavar="R", help="with --folds: its R-th repeat (default 0)")
    parser.add_argument("--verify", action="store_true", help="also read every byte and compare it with the manifest")
    add_json_option(parser)


def main(args: argparse.Namespace) -> None:
    """A table of classes and splits, rejected rows, leaks between splits, and the folds."""
    from fer import params
    from fer.shards.verify import verify

    if args.repeat and args.folds is None:
        raise ValueError(f"--repeat {args.repeat} means nothing without --folds")
    if args.json and args.folds is not None:
        raise ValueError("--json prints the manifest, and leaves --folds out: give one of them")
    manifest = verify(shards_folder(params.load(), args.dataset), content=args.verify)
    if args.json:
        print_json(asdict(manifest))
        return
    print("\n".join(describe(manifest)))
    if args.folds is not None:
        print("\n" + "\n".join(describe_folds(manifest, args.folds, args.repeat)))
    if args.verify:
        print("\nevery byte is as it was written")
    print(f"\nsee data/statistics/{args.dataset}: samples.png, duplicates.csv, statistics.json")


def shards_folder(loaded: Params, dataset: str) -> Path:
    """data/shards/<dataset>; ValueError without shards names the nearest dataset or the command that makes them."""
    folder = loaded.root / "data" / "shards"
    made = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    if dataset in made:
        return folder / dataset
    if dataset not in loaded.datasets:
        hint = nearest(dataset, [*loaded.datasets, *made])
        raise ValueError(f"no dataset {dataset!r}{hint}; in data/shards: {', '.join(made) or 'none yet'}")
    first = "" if dataset in loaded.run.datasets else "add it to run.datasets in params.yaml, then "
    raise ValueError(f"{folder / dataset}: no shards yet; {first}run `dvc repro shard@{dataset}`")


def describe(manifest: Manifest) -> list[str]:
    """Lines: the dataset, its classes by split, rejected rows, and what leaks from split to split."""
    from fer.labels import is_identities
    from fer.shards.schema import SPLITS

    size = " x ".join(map(str, manifest.image_size)) + " px" if manifest.image_size else "images of several sizes"
    lines = [
        f"{manifest.dataset}: {sum(map(manifest.rows, SPLITS)):,} faces, {size}, label space {manifest.label_space}, "
        f"{len(manifest.parts)} parts, {manifest.folds} base folds",
        f"made by {manifest.generator}; seed {manifest.seed}; validation: {manifest.validation_source}",
        "",
        f"{'':<16}" + "".join(f"{split:>20}" for split in SPLITS),
    ]
    for index, label in enumerate(() if is_identities(manifest.label_space) else manifest.labels):
        counts = {split: manifest.class_histogram[split][index] for split in SPLITS}
        lines.append(f"{label:<16}" + "".join(_count(counts[split], manifest.rows(split)) for split in SPLITS))
    lines += [f"{'all':<16}" + "".join(_count(manifest.rows(split), manifest.rows(split)) for split in SPLITS), ""]
    searched = manifest.duplicates != "off"
    near = _counts(manifest.near_pictures) if searched else "not searched for (shard.duplicates: off)"
    return [
        *lines,
        f"rejected:         {_counts(manifest.rejects)}",
        f"same pixels:      {_counts(manifest.shared_pictures)}",
        f"same photograph:  {near}",
        f"several labels:   {_counts(manifest.label_conflicts)}",
    ]


def describe_folds(manifest: Manifest, folds: int, repeat: int) -> list[str]:
    """Lines: rows of train and validation of each fold, with the validation rows of each class."""
    lines = [f"{'fold':<6}{'train':>9}{'validation':>12}   validation rows of each class"]
    for fold in range(folds):
        train, held_out = (
            [manifest.part(file) for file in manifest.files(split, folds=folds, fold=fold, repeat=repeat)]
            for split in ("train", "validation")
        )
        classes = [sum(counts) for counts in zip(*(part.class_histogram for part in held_out), strict=True)]
        named = ", ".join(f"{label} {count:,}" for label, count in zip(manifest.labels, classes, strict=True))
        lines.append(f"{fold:<6}{sum(p.rows for p in train):>9,}{sum(p.rows for p in held_out):>12,}   {named}")
    if manifest.validation_source == "published":
        lines.append("the published validation split takes no part")
    return lines


def _count(count: int, total: int) -> str:
    return f"{count:>12,}{100 * count / max(1, total):>6.1f} %"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_in_words(name)} {count:,}" for name, count in counts.items() if count) or "none"


def _in_words(name: str) -> str:
    one, tilde, other = name.replace("_", " ").partition("~")
    return name.replace("_", " ") if not tilde else f"within {one}" if one == other else f"{one} in {other}"
