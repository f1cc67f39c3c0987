"""The DVC entry points: one thin script a stage, named as in dvc.yaml. Run as `python -m pipelines.<stage>`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fer import processes

if TYPE_CHECKING:
    from fer.params import Params


@contextmanager
def run_stage(
    name: str,
    doc: str | None,
    *keys: str,
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> Iterator[tuple[Params, argparse.Namespace]]:
    """Reads the command line and params.yaml, and holds the stage's lock for the block.

    Args:
        doc: of the script; its first line describes the command.
        keys: the arguments that name the item: "dataset", "model". An unknown one is refused before it names a lock.
    """
    from fer import params as parameters  # here, so that signal handlers are set before what takes seconds to import

    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    for key in keys:
        help_ = f"a key of `{key}s` in {parameters.FILE_NAME}"
        parser.add_argument(f"--{key}", required=True, metavar="NAME", help=help_)
    add_arguments(parser)
    args = parser.parse_args()
    params = parameters.load()
    for key, known in (("dataset", params.dataset), ("model", params.recipe)):
        if key in keys:
            known(getattr(args, key))
    item = "-".join(getattr(args, key) for key in keys)
    with processes.stage(f"{name}@{item}" if keys else name, params.root):
        yield params, args
