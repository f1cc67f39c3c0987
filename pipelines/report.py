"""Stage report: one page for every dataset and model of `run` in params.yaml, beside the published results.

Reads data/shards/, trained/, evaluated/ and, where `fer study` left any, studies/; writes reports/index.html.
"""

from __future__ import annotations

import argparse

from fer import processes
from fer.cli import first_line


def main() -> None:
    """Reads params.yaml and writes the page under the stage's lock."""
    from fer import params  # here, so that signals are in our hands before what takes seconds to import

    argparse.ArgumentParser(description=first_line(__doc__)).parse_args()
    loaded = params.load()
    with processes.stage("report", loaded.root):
        from fer.stages import report

        report.run(loaded)


if __name__ == "__main__":
    processes.run(main)
