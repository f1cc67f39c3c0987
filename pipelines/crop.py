"""Stage crop: finds, aligns and crops the faces of one dataset.

Reads data/raw/<dataset>/, writes data/faces/<dataset>/, one row a face; what is refused, with its reason.
"""

from __future__ import annotations

from fer import processes
from fer.cli import stage_parser


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    args = stage_parser(__doc__).parse_args()
    loaded = params.load()
    dataset = loaded.dataset(args.dataset)
    with processes.stage(f"crop@{args.dataset}", loaded.root):
        from fer.stages.crop import crop_dataset

        crop_dataset(
            args.dataset, dataset, loaded.crop, loaded.cluster, seed=loaded.seed, root=loaded.root, parent=loaded.parent
        )


if __name__ == "__main__":
    processes.run(main)
