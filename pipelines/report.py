"""Stage report: one page for every dataset and model of `run` in params.yaml, beside the published figures.

Reads data/shards/, trained/ and evaluated/, writes reports/index.html.
"""

from __future__ import annotations

import argparse

from fer import params, processes
from fer.cli import first_line


def main() -> None:
    """Reads params.yaml and writes the page under the stage's lock."""
    argparse.ArgumentParser(description=first_line(__doc__)).parse_args()
    loaded = params.load()
    with processes.stage("report", loaded.root):
        from fer.report.build import run_report

        run_report(loaded)


if __name__ == "__main__":
    processes.run(main)
