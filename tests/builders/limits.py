"""How long a test waits before it says that something hangs: by this machine, as busy as it is."""

import os
import subprocess
import sys
import time
from functools import cache

_REFERENCE_SECONDS = 0.25
"""What `slowness` measures on the two idle cores for which the limits of the tests were written."""


@cache
def slowness() -> float:
    """How many times longer than those two cores this machine takes, as busy as it is; at least 1.

    Measured once a session: two processes at once, each of which starts, and then calculates.
    """
    started = time.monotonic()
    work = "sum(number * number for number in range(2_000_000))"
    workers = [subprocess.Popen([sys.executable, "-I", "-S", "-c", work]) for _ in range(2)]
    for worker in workers:
        worker.wait()
    return max(1.0, (time.monotonic() - started) / _REFERENCE_SECONDS)


def patience(seconds: float) -> float:
    """So many seconds of two idle cores, on this machine as busy as it is now.

    Every limit of a test is given so. It ends a wait that would last for ever; it says nothing about speed.
    """
    return seconds * max(slowness(), os.getloadavg()[0] / (os.cpu_count() or 1))
