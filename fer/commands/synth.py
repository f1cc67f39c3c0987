"""`fer synth`: look at the synthetic faces, and measure how hard they are."""

from __future__ import annotations

import argparse

from fer.synth import difficulty, sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`sheet` draws faces, `difficulty` measures classifiers on unseen identities."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    for name, module, text in (
        ("sheet", sheet, "write a contact sheet as PNG: one row a class, or unlabelled with a key beside it"),
        ("difficulty", difficulty, "a linear classifier, a small network and an oracle on unseen identities"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(measure_or_draw=module.main)


def main(args: argparse.Namespace) -> None:
    """Runs the chosen one."""
    args.measure_or_draw(args)
