"""Stage download: writes one dataset in its original public layout, verified and counted.

Writes data/raw/<dataset>/. An interrupted transfer resumes where it stopped.
"""

from __future__ import annotations

from fer import processes
from fer.cli import stage_parser


def main() -> None:
    """Reads the command line and params.yaml, and runs the stage under its lock."""
    from fer import params  # here, so that our signal handlers are installed before imports that take seconds

    args = stage_parser(__doc__).parse_args()
    loaded = params.load()
    loaded.dataset(args.dataset)  # an unknown name never reaches a path
    with processes.stage(f"download@{args.dataset}", loaded.root):
        from fer.stages.download import run

        run(loaded, args.dataset)


if __name__ == "__main__":
    processes.run(main)
