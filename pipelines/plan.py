"""Stage plan: checks params.yaml and the output folders before any other stage, and finds what changed outside.

Writes data/plan/<stage>/<item>.json, which the other stages depend on.
"""

from __future__ import annotations

import argparse

from fer import processes
from fer.cli import first_line


def main() -> None:
    """Reads params.yaml and plans under the stage's lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    argparse.ArgumentParser(description=first_line(__doc__)).parse_args()
    loaded = params.load()
    with processes.stage("plan", loaded.root):
        from fer.stages.plan import run_plan

        run_plan(loaded)


if __name__ == "__main__":
    processes.run(main)
