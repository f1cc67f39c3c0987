"""`fer repro`: `dvc repro` with one local Ray cluster for all of its stages, and models side by side.

This process becomes DVC: arguments, output, signals and exit code are DVC's own. Beside it, the host of the cluster
(`fer.cluster.host`) waits for the first stage that needs Ray, and ends when DVC has ended. A named cluster serves all
stages as it is, and needs no host. Without arguments `fer.stages.ahead` trains the next models where there is room.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fer import params, processes
from fer.environment import environment


def main(arguments: Sequence[str]) -> None:
    """Runs `dvc repro` with these arguments."""
    loaded = params.load()
    config = loaded.cluster
    if not environment().ray_address and config.address is None:
        from fer.cluster import host

        host.start(config)
    if not arguments:
        from fer.stages import ahead

        ahead.start(loaded)
    processes.become([sys.executable, "-m", "dvc", "repro", *arguments])
