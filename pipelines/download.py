"""Stage download: writes one dataset in its original public layout, verified and counted.

Writes data/raw/<dataset>/. An interrupted transfer resumes where it stopped.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("download", __doc__, "dataset") as (params, args):
        from fer.stages import download

        download.run(params, args.dataset)


if __name__ == "__main__":
    processes.run(main)
