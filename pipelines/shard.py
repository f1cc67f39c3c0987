"""Stage shard: deals the faces of one dataset by hash into parts, with a manifest.

Reads data/faces/<dataset>/, writes data/shards/<dataset>/.
"""

from __future__ import annotations

from fer import processes
from fer.cli import stage_parser


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    args = stage_parser(__doc__).parse_args()
    loaded = params.load()
    loaded.dataset(args.dataset)  # a name that stands nowhere is refused with the known ones
    with processes.stage(f"shard@{args.dataset}", loaded.root):
        from fer.shards.write import shard_dataset

        shard_dataset(args.dataset, loaded.shard, seed=loaded.seed, root=loaded.root)


if __name__ == "__main__":
    processes.run(main)
