"""`python -m benchmarks`, which `fer bench` starts: a subcommand for each benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result import REGISTRY, load_all
from fer import processes
from fer.cli import Parser
from fer.console import log
from fer.io.files import write_json


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; each benchmark has its own options and `--json`."""
    load_all()
    parser = Parser(prog="fer bench", description="Measure speed: ratios inside one run.")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and what they measure")
    chosen = parser.add_subparsers(dest="benchmark", metavar="NAME")
    for name, entry in sorted(REGISTRY.items()):
        sub = chosen.add_parser(name, help=entry.help, description=entry.help)
        sub.add_argument("--json", type=Path, metavar="PATH", help="also write the results, with machine and versions")
        entry.add_arguments(sub)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one benchmark, prints its table, and writes it as JSON where asked for."""
    args = parse(words)
    if args.list or args.benchmark is None:
        for name, entry in sorted(REGISTRY.items()):
            print(f"{name:<14}{entry.help}")
        return 0
    result = REGISTRY[args.benchmark].run(args)
    print(result.table())
    if args.json:
        command = shlex.join(["fer", "bench", *(sys.argv[1:] if words is None else words)])
        write_json(args.json, {"benchmark": args.benchmark, "command": command, **dataclasses.asdict(result)})
        log.info(f"written to {args.json}")
    return 0


if __name__ == "__main__":
    processes.run(main)
