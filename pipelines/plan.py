"""Stage plan: checks params.yaml and the output folders before any other stage, and finds what changed outside.

Writes data/plan/<stage>/<item>.json, which the other stages depend on.
"""

from __future__ import annotations

from fer import processes
from pipelines import run_stage


def main() -> None:
    """Runs the stage."""
    with run_stage("plan", __doc__) as (params, _):
        from fer.stages import plan

        plan.run(params)


if __name__ == "__main__":
    processes.run(main)
