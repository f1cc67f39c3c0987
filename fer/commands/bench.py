"""`fer bench`: the benchmarks of a checkout; the installed package has none."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fer


def main(arguments: Sequence[str]) -> None:
    """Becomes `python -m benchmarks`, with the checkout on the path of its Ray workers too.

    Raises:
        ValueError: this is no checkout.
    """
    checkout = Path(fer.__file__).resolve().parents[1]
    if not (checkout / "benchmarks" / "__main__.py").is_file():
        raise ValueError(f"{checkout}: holds no benchmarks; run `fer bench` from a checkout of the repository")
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *arguments], os.environ | {"PYTHONPATH": path})
