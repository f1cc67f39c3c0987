"""`fer ui`: MLflow's UI on this project's runs."""

from __future__ import annotations

import argparse
import os
import sys

from fer import params
from fer.console import require_range
from fer.lineage import redact
from fer.tracking.config import UI_HOST, UI_PORT, artifact_folder, is_server, store_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen."""
    parser.add_argument("--host", default=UI_HOST, help=f"address (default {UI_HOST}: this machine only)")
    parser.add_argument("--port", type=int, default=UI_PORT, help=f"port (default {UI_PORT})")


def main(args: argparse.Namespace) -> None:
    """Replaces this process by MLflow's server, which Ctrl-C ends; of a store that is a server, prints the address."""
    require_range("port", args.port, 0, 65535)
    loaded = params.load()
    uri = store_uri(loaded.tracking, loaded.home)
    if is_server(uri):
        print(f"The runs are at {redact(uri)}")
        return
    print(f"The runs are at http://{args.host}:{args.port} (Ctrl-C ends it; store {redact(uri)})", flush=True)
    stores = ["--backend-store-uri", uri, "--artifacts-destination", artifact_folder(loaded.home)]
    address = ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *stores, *address])
