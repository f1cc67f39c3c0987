"""`fer bench`: figures that hold on any machine, because each is a ratio of two measurements of one run."""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from benchmarks.result import REGISTRY, BenchResult, benchmark, load_all
from fer.console import log
from fer.io.files import write_json

__all__ = ["BenchResult", "add_arguments", "benchmark", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A subcommand for each benchmark, with its own options and `--json`."""
    load_all()
    parser.add_argument("--list", action="store_true", help="name the benchmarks and what they measure")
    chosen = parser.add_subparsers(dest="benchmark", metavar="NAME")
    for name, entry in sorted(REGISTRY.items()):
        sub = chosen.add_parser(name, help=entry.help, description=entry.help)
        sub.add_argument("--json", type=Path, metavar="PATH", help="also write the figures, with machine and versions")
        entry.add_arguments(sub)


def main(args: argparse.Namespace) -> int:
    """Runs one benchmark, prints its table, and writes it as JSON where asked for."""
    if args.list or args.benchmark is None:
        for name, entry in sorted(REGISTRY.items()):
            print(f"{name:<14}{entry.help}")
        return 0
    result = REGISTRY[args.benchmark].run(args)
    print(result.table())
    if args.json:
        command = shlex.join(["fer", *sys.argv[1:]])
        write_json(args.json, {"benchmark": args.benchmark, "command": command, **dataclasses.asdict(result)})
        log.info(f"written to {args.json}")
    return 0
