"""Trains the model that the package ships, from FER2013's images and FERPlus's votes: `make shipped`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fer import processes
from pipelines import run_stage


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fer2013", type=Path, required=True, metavar="FILE", help="fer2013.csv, or its Parquet")
    parser.add_argument("--votes", type=Path, required=True, metavar="FILE", help="fer2013new.csv of FERPlus")
    parser.add_argument("--subset", action="store_true", help="accept other counts than the published ones")


def main() -> None:
    """Runs it."""
    with run_stage("shipped", __doc__, add_arguments=_arguments) as (params, args):
        from fer.stages import shipped

        print(f"-> {shipped.run(params, args.fer2013, args.votes, subset=args.subset)}")


if __name__ == "__main__":
    processes.run(main)
