"""Stage train: one model on one dataset; the best epoch is chosen on validation.

Reads data/shards/<dataset>/, writes trained/<dataset>/<model>/. Stopped at any moment, the same command goes on.
"""

from fer import params, processes
from fer.cli import stage_parser


def main() -> None:
    """Reads params.yaml and trains."""
    args = stage_parser("Train one model on one dataset.", model=True).parse_args()
    loaded = params.load()
    from fer.cluster.train import run_training

    run_training(loaded, args.dataset, args.model)


if __name__ == "__main__":
    processes.run(main)
