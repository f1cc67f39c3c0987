"""shard: data/faces/<dataset> dealt into data/shards/<dataset>, with a manifest."""

from __future__ import annotations

import argparse
import time

from fer import params as parameters
from fer import processes
from fer.console import log


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.shard", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a key of `datasets` in params.yaml")
    name = parser.parse_args().dataset
    params = parameters.load()
    started = time.monotonic()
    with processes.lock(params.root / ".work" / "locks" / f"shard-{name}"):
        run(name, params)
    log.info("shard %s: done in %.1f s; next: `dvc repro`", name, time.monotonic() - started)


def run(name: str, params: parameters.Params) -> None:
    """The stage itself, for one dataset."""
    from fer.shards.write import shard_dataset

    params.dataset(name)  # a name that stands nowhere is refused with the known ones
    shard_dataset(name, params.shard, seed=params.seed, root=params.root)


if __name__ == "__main__":
    processes.run(main)
