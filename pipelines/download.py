"""Stage download: brings one dataset into its original public layout, verified and counted.

Writes data/raw/<dataset>/. A broken transfer resumes.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("download", __doc__, "dataset") as (params, args):
        from fer.sources.download import download_dataset

        config = params.dataset(args.dataset)
        download_dataset(args.dataset, config, seed=params.seed, root=params.root, parent=params.parent)


if __name__ == "__main__":
    processes.run(main)
