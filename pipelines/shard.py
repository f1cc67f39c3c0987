"""Stage shard: assigns the faces of one dataset to parts by a hash, with a manifest.

Reads data/faces/<dataset>/, writes data/shards/<dataset>/.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("shard", __doc__, "dataset") as (params, args):
        from fer.shards.write import shard_dataset

        shard_dataset(args.dataset, params.shard, seed=params.seed, root=params.root)


if __name__ == "__main__":
    processes.run(main)
