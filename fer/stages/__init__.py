"""What the stages of the pipeline do, one file a stage; and what those share that train."""

from __future__ import annotations

import argparse


def add_resume_options(parser: argparse.ArgumentParser) -> None:
    """What to do with the checkpoints of an interrupted run, where other versions of the libraries wrote them."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--accept-versions", action="store_true", help="resume checkpoints that other versions of the libraries wrote"
    )
    either.add_argument("--restart", action="store_true", help="remove the checkpoints of this run, and start over")
