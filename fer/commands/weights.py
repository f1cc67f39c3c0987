"""`fer weights`: published weights, from their authors' pages to files that every other command reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from fer.io import yaml12
from fer.io.files import FileError, sha256
from fer.labels import DATASET_LABELS
from fer.weights import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`list`, `pull`, `verify` and `import`."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)

    listing = commands.add_parser("list", help="the published weights that are known; one of them in full")
    listing.add_argument("name", nargs="?", metavar="NAME")
    listing.set_defaults(do=_list)

    pull = commands.add_parser("pull", help="fetch published weights into the cache, and print their paths")
    pull.add_argument("name", metavar="NAME", help="as `fer weights list` shows it")
    pull.add_argument(
        "--from", dest="given", type=Path, metavar="FOLDER", help="search here before the network is used"
    )
    pull.add_argument("--to", type=Path, metavar="FOLDER", help="put the files here instead of into the cache")
    pull.set_defaults(do=_pull)

    verify = commands.add_parser("verify", help="read the whole cache again and compare every file with its checksum")
    verify.set_defaults(do=_verify)

    importing = commands.add_parser("import", help="write a published file as weights of this project")
    importing.add_argument("source", metavar="PATH", help="the file; or the name of weights that were pulled")
    importing.add_argument("--model", metavar="NAME", help="the model that the weights are of (`fer models`)")
    order = importing.add_mutually_exclusive_group()
    order.add_argument("--labels", metavar="A,B,...", help="the classes in the order of the file's logits")
    order.add_argument("--dataset", choices=DATASET_LABELS, help="the classes are in this dataset's own order")
    importing.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, .safetensors")
    importing.set_defaults(do=_import)


def main(args: argparse.Namespace) -> int | None:
    """Runs the subcommand; `verify` returns 1 where a file is corrupt."""
    code: int | None = args.do(args)
    return code


def _list(args: argparse.Namespace) -> None:
    if args.name:
        print(yaml12.dump(registry.entry(args.name).model_dump(exclude_none=True)), end="")
        return
    print(f"{'weights':<30}{'model':<25}{'dataset':<14}{'accuracy':>8}  {'label order':<13}{'here':<6}licence")
    for name, entry in registry.register().items():
        order = entry.labels if isinstance(entry.labels, str) else f"{len(entry.labels)} classes"
        accuracy = f"{entry.accuracy:.2f}" if entry.accuracy else "-"
        here = "yes" if all((registry.cache_folder() / name / file.name).is_file() for file in entry.files) else "-"
        dataset = entry.dataset if len(entry.dataset) < 14 else "-"
        print(f"{name:<30}{entry.model:<25}{dataset:<14}{accuracy:>8}  {order:<13}{here:<6}{entry.licence}")


def _pull(args: argparse.Namespace) -> None:
    for path in registry.pull(args.name, given=args.given, to=args.to):
        print(path)


def _verify(args: argparse.Namespace) -> int:
    states = []
    for path, state in registry.verify():
        print(f"{state:<12}{path}")
        states.append(state)
    if not states:
        print(f"{registry.cache_folder()}: no weights; `fer weights pull NAME` fetches some")
    return int("corrupt" in states)


def _import(args: argparse.Namespace) -> None:
    from fer.weights.published import load_published
    from fer.weights.store import save_model

    if args.out.exists():
        raise ValueError(f"{args.out}: exists already, and is not overwritten; give another --out")
    path, known = _source(args.source)
    name = args.model or (known.model if known else None)
    if name is None:
        raise ValueError(f"{path}: give with --model the model that these weights are of")
    model = load_published(name, path)
    labels = _labels(args, path, model.num_classes, known)
    space = registry.label_space(labels).name if labels else "none"
    extra = {"file": path.name, "sha256": sha256(path)}
    if known:
        extra |= {"published": args.source, "source": known.source, "licence": known.licence, "dataset": known.dataset}
    save_model(model, args.out, labels, space, extra, name=name, options=model.options)
    print(f"{args.out}: {name}, {model.num_classes} classes: {', '.join(labels) or 'no classifier'}")


def _source(source: str) -> tuple[Path, registry.PublishedWeights | None]:
    """The file of a path, or of the name of weights that were pulled, with their entry in the register."""
    path = Path(source)
    if path.exists() or path.name != source or "." in source or Path(f"{source}.index").exists():
        return path, None
    return registry.find(source), registry.entry(source)


def _labels(
    args: argparse.Namespace, path: Path, num_classes: int, known: registry.PublishedWeights | None
) -> tuple[str, ...]:
    """The order of the classes, from the options or the register; never a guess."""
    given = args.labels.replace(" ", "").split(",") if args.labels else list(DATASET_LABELS.get(args.dataset, ()))
    registered = known.labels if known and isinstance(known.labels, list) else []
    if given and registered and given != registered:
        raise ValueError(f"{path}: its classes are in the order {', '.join(registered)}, by the register of weights")
    labels = tuple(given or registered)
    if labels:
        registry.label_space(labels)
    if len(labels) == num_classes:
        return labels
    if labels:
        raise ValueError(f"{path}: has {num_classes} classes; {len(labels)} labels are given: {', '.join(labels)}")
    if num_classes > max(map(len, DATASET_LABELS.values())):
        raise FileError(f"{path}: {num_classes} classes, which are not expressions: weights to initialize a part from")
    raise ValueError(
        f"{path}: has {num_classes} classes in an unknown order. Give it with --labels A,B,... or, where it is "
        f"a dataset's own order, with --dataset: {', '.join(DATASET_LABELS)}"
    )
