"""`fer ui`: MLflow's pages on this project's runs."""

from __future__ import annotations

import argparse

from fer import params, tracking


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen."""
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=5000, help="port (default 5000)")


def main(args: argparse.Namespace) -> None:
    """Becomes the server; Ctrl-C ends it."""
    loaded = params.load()
    tracking.serve(loaded.tracking, loaded.home, args.host, args.port)
