"""`fer serve`: a trained model over HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fer
from fer import processes
from fer.commands.model_options import add_model_options, add_tta
from fer.console import log, require_range
from fer.processes import cpus

if TYPE_CHECKING:
    from fer.inference.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the address, and the limits."""
    parser.epilog = (
        "The service has no password and no TLS: before it is reached from outside this machine, put a proxy in front "
        "of it that has. It keeps no image."
    )
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000; 0: any free one)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="processes with the model (default 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of a replica (default: all, shared)")
    parser.add_argument("--max-bytes", type=int, default=16 << 20, metavar="N", help="of an image (default 16 MiB)")
    parser.add_argument(
        "--queue", type=int, default=64, metavar="N", help="requests at once; more are refused with 429 (default 64)"
    )
    parser.add_argument(
        "--rate", type=float, metavar="R", help="requests a second of one client address (default: no limit)"
    )
    add_tta(parser)


def main(args: argparse.Namespace) -> None:
    """Serves until a signal comes; then answers the requests in flight and ends with the signal's exit code."""
    processes.nothing_to_resume()
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        install = "pip install -c constraints.txt -e '.[serve]'"
        raise ValueError(f"fer serve needs {' and '.join(missing)}: run `{install}` in the project")
    require_range("port", args.port, 0, 65535)
    for name in ("replicas", "threads"):
        if (value := getattr(args, name)) is not None:
            require_range(name, value, 1, 4096)
    from fer.cluster.serve import replicas
    from fer.config import parse
    from fer.service.app import create_app, listen, server
    from fer.service.limits import Limits

    values = {"max_bytes": args.max_bytes, "queue": args.queue, "rate": args.rate}
    limits = parse(Limits, values, "fer serve")
    with listen(args.host, args.port) as socket:
        given = args.detector_weights and str(Path(args.detector_weights).expanduser().resolve())  # for the replicas
        options: dict[str, Any] = {"detector": args.detector, "detector_weights": given, "tta": args.tta}
        model = fer.load(args.weights, **options)
        weights, about = model.path, describe(model)
        del model
        if about["trained_on_synthetic"]:
            from fer.inference.output import SYNTHETIC

            print(f"warning: {weights}: {SYNTHETIC}", file=sys.stderr, flush=True)
        host, port = socket.getsockname()[:2]
        if not ipaddress.ip_address(host).is_loopback:
            log.warning("--host %s: whoever reaches this machine can use the service; it has no password", args.host)
        with replicas(
            weights, options, count=args.replicas, threads=args.threads or max(1, cpus() // args.replicas)
        ) as backend:
            address = f"[{host}]" if ":" in host else host
            log.info("serving %s at http://%s:%d (Ctrl-C ends it)", weights, address, port)
            server(create_app(backend, about, limits), backend.check).run(sockets=[socket])


def describe(model: Model) -> dict[str, Any]:
    """What `/v1/model` says of a model; its detector is there afterwards.

    Raises:
        FileError: the detector's weights are not there and cannot be fetched.
    """
    import numpy as np

    from fer.io.files import sha256
    from fer.lineage import versions

    model.predict(np.zeros((64, 64, 3), np.uint8))  # the detector is fetched here, once, and not by each replica
    return {
        "model": model.info.model,
        "labels": list(model.labels),
        "input_size": model.info.input_size,
        "weights_sha256": sha256(model.path),
        "trained_on_synthetic": model.info.synthetic,
        "card": model.card,
        "versions": versions(),
    }
