"""Stage crop: finds, aligns and crops the faces of one dataset.

Reads data/raw/<dataset>/, writes data/faces/<dataset>/, one row a face; what is refused, with its reason.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("crop", __doc__, "dataset") as (params, args):
        from fer.stages import crop

        crop.run(params, args.dataset)


if __name__ == "__main__":
    processes.run(main)
