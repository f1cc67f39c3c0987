"""Stage evaluate: opens the test split of one dataset, once, with one trained model.

Reads data/shards/<dataset>/ and trained/<dataset>/<model>/, writes evaluated/<dataset>/<model>/.
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
    with processes.stage(f"evaluate@{args.dataset}-{args.model}", loaded.root):
        from fer.stages.evaluate import run_evaluation

        run_evaluation(loaded, args.dataset, args.model)


if __name__ == "__main__":
    processes.run(main)
