"""Stage shard: the faces of one dataset as shards, split into test, validation and folds of training rows.

Reads data/faces/<dataset>/, writes data/shards/<dataset>/ and data/statistics/<dataset>/.
"""

from __future__ import annotations

from fer import processes
from fer.cli import stage_parser


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    args = stage_parser(__doc__).parse_args()
    loaded = params.load()
    loaded.dataset(args.dataset)  # an unknown name names no lock
    with processes.stage(f"shard@{args.dataset}", loaded.root):
        from fer.stages import shard

        shard.run(loaded, args.dataset)


if __name__ == "__main__":
    processes.run(main)
