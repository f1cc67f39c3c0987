"""Stage report: one page for every dataset and model of `run` in params.yaml, beside the published results.

Reads data/shards/, trained/, evaluated/ and, where `fer study` left any, reports/studies/; writes reports/index.html.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("report", __doc__) as (params, _):
        from fer.stages import report

        report.run(params)


if __name__ == "__main__":
    processes.run(main)
