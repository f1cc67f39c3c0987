"""Stage shard: the faces of one dataset as shards, split into test, validation and folds of training rows.

Reads data/faces/<dataset>/, writes data/shards/<dataset>/ and data/statistics/<dataset>/.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("shard", __doc__, "dataset") as (params, args):
        from fer.stages import shard

        shard.run(params, args.dataset)


if __name__ == "__main__":
    processes.run(main)
