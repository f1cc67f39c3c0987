"""`fer ...`: the console command. The stages run through `dvc repro`; its subcommands are everything else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fer import __version__, console, processes
from fer.environment import environment

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
    slow: bool = False
    """True: its module takes longer to import than a completion may, which then offers files alone."""
    plugins: bool = False
    """True: it knows models by name without reading params.yaml, and those of plugins are to be among them."""


_COMMANDS = {
    "repro": _Command("fer.commands.repro", "`dvc repro` with one local Ray for all stages", parses=False),
    "check": _Command(
        "fer.commands.check", "validate params.yaml and the recipes; print each complete recipe", slow=True
    ),
    "models": _Command("fer.commands.models", "list the models with their parameters, inputs and costs", plugins=True),
    "weights": _Command("fer.commands.weights", "list, fetch, verify and import published weights", plugins=True),
    "shards": _Command("fer.commands.shards", "show a dataset's shards: classes, splits, leakage, folds"),
    "verify": _Command("fer.commands.verify", "face verification with a backbone, on people it was not trained on"),
    "evaluate": _Command("fer.commands.evaluate", "score weights of ours or of others on the test split of a dataset"),
    "card": _Command("fer.stages.card", "what a trained model is and can do; pack it to pass it on", slow=True),
    "predict": _Command(
        "fer.commands.predict", "find the faces in your photos and name their expressions", plugins=True
    ),
    "explain": _Command(
        "fer.commands.explain", "show where in a face a model sees the evidence for an expression", plugins=True
    ),
    "explore": _Command(
        "fer.stages.explore", "compare evaluated models: features, hard cases, what goes with mistakes", slow=True
    ),
    "audit": _Command("fer.stages.audit", "find labels of a dataset that are probably wrong", slow=True),
    "export": _Command(
        "fer.commands.export", "write a trained model for ONNX Runtime, OpenVINO or torch.export", plugins=True
    ),
    "serve": _Command("fer.commands.serve", "predict over HTTP, with a page to drop a photo on", plugins=True),
    "tune": _Command("fer.stages.tune", "search the hyperparameters of a model on a dataset", slow=True),
    "study": _Command("fer.stages.study", "train the rows of a published table, compare with its results", slow=True),
    "reproduce": _Command("fer.commands.reproduce", "every table and figure of a paper by one command", slow=True),
    "ledger": _Command("fer.commands.ledger", "check every printed number of the papers, or say why it cannot be"),
    "submit": _Command("fer.commands.jobs", "run one stage as a job on a Ray cluster", slow=True),
    "ui": _Command("fer.commands.ui", "open MLflow's UI on this project's runs", slow=True),
    "bench": _Command("fer.commands.bench", "measure speed, as ratios within one run", parses=False),
    "synth": _Command(
        "fer.commands.synth", "draw faces: sheets, published layouts; measure how hard they are", slow=True
    ),
    "doctor": _Command("fer.commands.doctor", "check this machine and the services it talks to", slow=True),
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
        epilog="The pipeline itself: `fer repro`, or `fer repro train@synthetic-ddamfn_nano` up to one stage.",
    )
    parser.add_argument("--version", action="version", version=f"fer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    line = environment().completing
    words = argv if line is None else line.split()[1:]
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen and (line is None or (command.parses and not command.slow)):
            module = import_module(command.module)
            if not command.parses:
                return module.main(argv[argv.index(name) + 1 :])  # type: ignore[no-any-return]
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    if line is not None:
        import argcomplete

        argcomplete.autocomplete(parser)  # ends the process
    args = parser.parse_args(argv)
    if getattr(args, "json", None) is True:
        console.set_up(console.log.level, sys.stderr)
    if _COMMANDS[args.command].plugins:
        from fer.params import load_plugins  # imports pydantic, which other commands do not need here

        load_plugins()
    code: int | None = args.main(args)
    return code
