"""Stage evaluate: opens the test split of one dataset, once, with one trained model.

Reads data/shards/<dataset>/ and trained/<dataset>/<model>/, writes evaluated/<dataset>/<model>/.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("evaluate", __doc__, "dataset", "model") as (params, args):
        from fer.stages import evaluate

        evaluate.run(params, args.dataset, args.model)


if __name__ == "__main__":
    processes.run(main)
