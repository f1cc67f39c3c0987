"""Stage report: one page for every dataset and model of `run` in params.yaml, beside the published figures.

Reads data/shards/, trained/ and evaluated/, writes reports/index.html.
"""

from __future__ import annotations

import argparse

from fer import params, processes


def main() -> None:
    """Reads params.yaml and writes the page."""
    argparse.ArgumentParser(prog="python -m pipelines.report", description="Write reports/index.html.").parse_args()
    loaded = params.load()
    from fer.report.build import run_report

    run_report(loaded)


if __name__ == "__main__":
    processes.run(main)
