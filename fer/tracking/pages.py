"""MLflow's own pages on the runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fer.lineage import redact
from fer.tracking.config import TrackingConfig, is_server, store_uri
from fer.tracking.store import artifact_folder


def serve(config: TrackingConfig, root: Path, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Open MLflow's pages on the store in use: print the address and become the server (the process is replaced).

    A store that is a server has its pages already: its address is printed, and the call returns.

    Args:
        root: the project's folder.
        host: address to listen on.
        port: of TCP, to listen on.
    """
    uri = store_uri(config, root)
    if is_server(uri):
        print(f"The runs are at {redact(uri)}")
        return
    print(f"The runs are at http://{host}:{port} (Ctrl-C ends it; store {redact(uri)})", flush=True)
    stores = ["--backend-store-uri", uri, "--artifacts-destination", artifact_folder(root)]
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *stores, *address])
