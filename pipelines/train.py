"""Stage train: one model on one dataset; the best epoch is chosen on validation.

Reads data/shards/<dataset>/, writes trained/<dataset>/<model>/. Stopped at any moment, the same command resumes.
"""

from __future__ import annotations

from fer import processes
from fer.stages import add_resume_options
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("train", __doc__, "dataset", "model", add_arguments=add_resume_options) as (params, args):
        from fer.stages import train

        choice = {"accept_versions": args.accept_versions, "restart": args.restart}
        train.run(params, args.dataset, args.model, **choice)


if __name__ == "__main__":
    processes.run(main)
