"""download: one dataset into data/raw/<dataset>, verified and counted."""

from __future__ import annotations

import argparse
import time

from fer import params as parameters
from fer import processes
from fer.console import log


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.download", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a key of `datasets` in params.yaml")
    name = parser.parse_args().dataset
    params = parameters.load()
    started = time.monotonic()
    with processes.lock(params.root / ".work" / "locks" / f"download-{name}"):
        run(name, params)
    log.info("download %s: done in %.1f s; next: `dvc repro crop@%s`", name, time.monotonic() - started, name)


def run(name: str, params: parameters.Params) -> None:
    """The stage itself, for one dataset."""
    from fer.sources.download import download_dataset

    download_dataset(name, params.dataset(name), seed=params.seed, root=params.root)


if __name__ == "__main__":
    processes.run(main)
