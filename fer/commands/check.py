"""`fer check`: is params.yaml right, and what would each training really use?"""

from __future__ import annotations

import argparse

from fer import params, yaml12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(args: argparse.Namespace) -> None:
    """Prints each model's complete recipe as YAML; a mistake is told as an error."""
    loaded = params.load()
    for key in loaded.run.models:
        recipe = loaded.recipe(key).model_dump(mode="json")
        print(f"# models.{key}, complete:\n{yaml12.dump({key: recipe})}")
    datasets, models = ", ".join(loaded.run.datasets), ", ".join(loaded.run.models)
    print(f"{loaded.root / params.FILE_NAME} is right: {models} on {datasets}. Next: dvc repro")
