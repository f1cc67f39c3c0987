"""`fer ...`: the console command. The stages run through `dvc repro`; its subcommands are everything else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fer import __version__, processes

AddArguments = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True)
class _Command:
    """A subcommand whose module is imported only when it is called, so that `fer --help` stays quick.

    The module offers `add_arguments(parser)` and `main(args) -> int | None`.
    """

    module: str
    help: str
    parses: bool = True
    """False: the module has no `add_arguments`, and its `main` receives the arguments unparsed."""


_COMMANDS = {
    "check": _Command("fer.commands.check", "validate params.yaml and the recipes; print each complete recipe"),
    "models": _Command("fer.commands.models", "list the models with their parameters, inputs and costs"),
    "weights": _Command("fer.commands.weights", "list, fetch, verify and import published weights"),
    "shards": _Command("fer.commands.shards", "show a dataset's shards: classes, splits, leakage, folds"),
    "verify": _Command("fer.commands.verify", "face verification with a backbone, on people it was not trained on"),
    "evaluate": _Command("fer.commands.evaluate", "score weights of ours or of others on the test split of a dataset"),
    "card": _Command("fer.stages.card", "what a trained model is and can do; pack it to pass it on"),
    "predict": _Command("fer.commands.predict", "find the faces in your photos and name their expressions"),
    "serve": _Command("fer.commands.serve", "predict over HTTP, with a page to drop a photo on"),
    "tune": _Command("fer.stages.tune", "search the hyperparameters of a model on a dataset"),
    "study": _Command("fer.stages.study", "train the rows of a published table, compare with its results"),
    "reproduce": _Command("fer.commands.reproduce", "every table and figure of a paper by one command"),
    "ledger": _Command("fer.commands.ledger", "check every printed number of the papers, or say why it cannot be"),
    "submit": _Command("fer.commands.jobs", "run one stage as a job on a Ray cluster"),
    "ui": _Command("fer.commands.ui", "open MLflow's UI on this project's runs"),
    "bench": _Command("fer.commands.bench", "measure speed, as ratios within one run", parses=False),
    "synth": _Command("fer.commands.synth", "draw faces: sheets, published layouts; measure how hard they are"),
    "doctor": _Command("fer.commands.doctor", "check this machine and the services it talks to"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The console command; ends the process with the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    processes.run(lambda: _main(arguments))


class Parser(argparse.ArgumentParser):
    """Suggests the nearest choice for an invalid one; so do its subcommands, which are of the same class."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            from fer.config import nearest  # imports pydantic, which most commands do not need here

            raise argparse.ArgumentError(
                action, error.message + nearest(str(value), [str(choice) for choice in action.choices or ()])
            ) from None


def _main(argv: list[str]) -> int | None:
    parser = Parser(
        prog="fer",
        description="Train, compare and use facial expression recognition models.",
        epilog="The pipeline itself: `dvc repro`, or `dvc repro train@synthetic-ddamfn_nano` up to one stage.",
    )
    parser.add_argument("--version", action="version", version=f"fer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = import_module(command.module)
            if not command.parses:
                return module.main(argv[argv.index(name) + 1 :])  # type: ignore[no-any-return]
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    args = parser.parse_args(argv)
    code: int | None = args.main(args)
    return code
