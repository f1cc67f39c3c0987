"""Stage explain: where in some test faces a trained model sees the evidence for what it predicts.

Reads data/shards/<dataset>/ and trained/<dataset>/<model>/, writes explained/<dataset>/<model>/.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("explain", __doc__, "dataset", "model") as (params, args):
        from fer.stages import explain

        explain.run(params, args.dataset, args.model)


if __name__ == "__main__":
    processes.run(main)
