"""`fer reproduce PAPER`: every table and figure of a paper, printed and ours."""

from __future__ import annotations

import argparse

from fer import params as parameters
from fer.presets import list_presets, load_preset
from fer.stages.reproduce import describe, make_plan, run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which paper, and how much of it."""
    parser.add_argument("paper", nargs="?", help="none lists them")
    parser.add_argument("--tables", nargs="+", metavar="NAME", help='only these: 5, "Figure 6", "Results 1"')
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="each row is trained once a seed (the preset's)"
    )
    parser.add_argument("--smoke", action="store_true", help="small models on drawn faces, minutes; needs no data")
    parser.add_argument("--dry-run", action="store_true", help="the plan alone: runs, missing data and weights, hours")


def main(args: argparse.Namespace) -> None:
    """Lists the papers; or prints the plan, and makes or resumes its runs."""
    if args.paper is None:
        for name in list_presets():
            print(f"{name:<20}{load_preset(name).title}")
        return
    params = parameters.load()
    plan = make_plan(params, args.paper, tables=args.tables, smoke=args.smoke, seeds=args.seeds)
    print(describe(plan, params.root))
    if not args.dry_run:
        run(params, plan)
