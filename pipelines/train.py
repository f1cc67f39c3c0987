"""Stage train: one model on one dataset; the best epoch is chosen on validation.

Reads data/shards/<dataset>/, writes trained/<dataset>/<model>/. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

from fer import processes
from fer.cli import stage_parser


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    args = stage_parser(__doc__, model=True).parse_args()
    loaded = params.load()
    loaded.dataset(args.dataset)  # an unknown name names no lock
    loaded.recipe(args.model)
    with processes.stage(f"train@{args.dataset}-{args.model}", loaded.root):
        from fer.stages.train import run_training

        run_training(loaded, args.dataset, args.model)


if __name__ == "__main__":
    processes.run(main)
