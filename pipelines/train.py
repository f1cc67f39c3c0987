"""Stage train: one model on one dataset; the best epoch is chosen on validation.

Reads data/shards/<dataset>/, writes trained/<dataset>/<model>/. Stopped at any moment, the same command resumes.
"""

from __future__ import annotations

from fer import processes
from fer.cli import stage_parser
from fer.stages import add_resume_options


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    parser = stage_parser(__doc__, model=True)
    add_resume_options(parser)
    args = parser.parse_args()
    loaded = params.load()
    loaded.dataset(args.dataset)  # an unknown name names no lock
    loaded.recipe(args.model)
    with processes.stage(f"train@{args.dataset}-{args.model}", loaded.root):
        from fer.stages.train import run_training

        run_training(loaded, args.dataset, args.model, accept_versions=args.accept_versions, restart=args.restart)


if __name__ == "__main__":
    processes.run(main)
