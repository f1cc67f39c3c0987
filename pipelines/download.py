"""Stage download: brings one dataset into its original public layout, verified and counted.

Writes data/raw/<dataset>/. A broken transfer goes on where it stopped.
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
    with processes.stage(f"download@{args.dataset}", loaded.root):
        from fer.sources.download import download_dataset

        download_dataset(args.dataset, dataset, seed=loaded.seed, root=loaded.root, parent=loaded.parent)


if __name__ == "__main__":
    processes.run(main)
