"""`python -m benchmarks`, which `fer bench` starts."""

from __future__ import annotations

import argparse

from benchmarks import add_arguments, main
from fer import processes


def _main() -> int:
    parser = argparse.ArgumentParser(prog="fer bench", description="Measure speed: ratios inside one run.")
    add_arguments(parser)
    return main(parser.parse_args())


if __name__ == "__main__":
    processes.run(_main)
