"""`fer weights`: published weights, from their authors' pages to files that every other command reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from fer.console import add_json_option, print_json
from fer.io import yaml12
from fer.labels import DATASET_LABELS
from fer.weights import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`list`, `pull`, `verify` and `import`."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)

    listing = commands.add_parser("list", help="the published weights that are known; one of them in full")
    listing.add_argument("name", nargs="?", metavar="NAME")
    add_json_option(listing)
    listing.set_defaults(do=_list)

    pull = commands.add_parser("pull", help="fetch published weights into the cache, and print their paths")
    pull.add_argument("name", metavar="NAME", help="as `fer weights list` shows it")
    pull.add_argument(
        "--from", dest="given", type=Path, metavar="FOLDER", help="search here before the network is used"
    )
    pull.add_argument("--to", type=Path, metavar="FOLDER", help="put the files here instead of into the cache")
    pull.set_defaults(do=_pull)

    verify = commands.add_parser("verify", help="read the whole cache again and compare every file with its checksum")
    add_json_option(verify)
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
    if args.json:
        names = [args.name] if args.name else list(registry.register())
        print_json(
            [{"name": name, **registry.entry(name).model_dump(mode="json"), "here": _here(name)} for name in names]
        )
        return
    if args.name:
        print(yaml12.dump(registry.entry(args.name).model_dump(exclude_none=True)), end="")
        return
    print(f"{'weights':<30}{'model':<25}{'dataset':<14}{'accuracy':>8}  {'label order':<13}{'here':<6}licence")
    for name, entry in registry.register().items():
        order = entry.labels if isinstance(entry.labels, str) else f"{len(entry.labels)} classes"
        accuracy = f"{entry.accuracy:.2f}" if entry.accuracy else "-"
        here = "yes" if _here(name) else "-"
        dataset = entry.dataset if len(entry.dataset) < 14 else "-"
        print(f"{name:<30}{entry.model:<25}{dataset:<14}{accuracy:>8}  {order:<13}{here:<6}{entry.licence}")


def _here(name: str) -> bool:
    return all((registry.cache_folder() / name / file.name).is_file() for file in registry.entry(name).files)


def _pull(args: argparse.Namespace) -> None:
    for path in registry.pull(args.name, given=args.given, to=args.to):
        print(path)


def _verify(args: argparse.Namespace) -> int:
    found = []
    for path, state in registry.verify():
        found.append({"path": str(path), "state": state})
        if not args.json:
            print(f"{state:<12}{path}")
    if args.json:
        print_json(found)
    elif not found:
        print(f"{registry.cache_folder()}: no weights; `fer weights pull NAME` fetches some")
    return int(any(one["state"] == "corrupt" for one in found))


def _import(args: argparse.Namespace) -> None:
    from fer.weights.imports import import_weights

    if args.out.exists():
        raise ValueError(f"{args.out}: exists already, and is not overwritten; give another --out")
    labels = args.labels.replace(" ", "").split(",") if args.labels else DATASET_LABELS.get(args.dataset, ())
    ask = (
        "Give it with --labels A,B,... or, where it is a dataset's own order, with --dataset: "
        f"{', '.join(DATASET_LABELS)}"
    )
    info = import_weights(args.source, args.out, model=args.model, labels=labels, ask=ask)
    print(f"{args.out}: {info.model}, {len(info.labels)} classes: {', '.join(info.labels) or 'no classifier'}")
