"""`fer bench serve`: what is left of a model's throughput behind HTTP and Ray Serve, and how long a client waits."""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark, options
from benchmarks.timing import in_turn, ratio

if TYPE_CHECKING:
    from fer.inference.model import Model


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="ddamfn_small", help="a registered model, with random weights (ddamfn_small)"
    )
    parser.add_argument("--clients", type=int, default=16, help="that send one photo after the other (16)")
    parser.add_argument("--photos", type=int, default=256, help="of a round (256)")
    parser.add_argument("--side", type=int, default=640, help="of a photo, in px (640)")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turn; the median counts (5)")
    parser.add_argument("--threads", type=int, default=2, help="of the model, here and in its one replica (2)")
    parser.add_argument(
        "--detector", default="whole", choices=("whole", "yunet", "retinaface"), help="(whole: no detection)"
    )
    parser.add_argument("--detector-weights", metavar="PATH", help="its file or folder (fetched)")


@benchmark("serve", help="throughput of `fer serve` against the model alone, and latency", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """The same photos by `Model.predict` of this process, and by clients of a service on this machine, in turn."""
    from fer.inference.model import Model

    photos = [_photo(number % 16, args.side) for number in range(args.photos)]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
        weights = _random_weights(Path(folder), args.model)
        kinds = {"detector": args.detector, "detector_weights": args.detector_weights}
        model = Model(weights, **kinds, threads=args.threads)
        model.predict(photos[:32])
        waits: list[float] = []
        lost = 0

        def served(_: int) -> float:
            nonlocal lost
            found = sender.submit(_send, port, photos, args.clients).result()
            waits.extend(wait for wait in found if wait is not None)
            lost += found.count(None)
            return len(photos)

        def bare(_: int) -> float:
            return len(model.predict(photos))

        with _service(model, kinds, args.threads) as port, ProcessPoolExecutor(1, spawn) as sender:
            sender.submit(_send, port, photos[:32], args.clients).result()
            samples = in_turn({"the model alone": bare, "fer serve": served}, rounds=args.rounds)
    alone, behind = samples.values()
    left, percentiles = ratio(behind.rates, alone.rates), statistics.quantiles(waits, n=100)
    rows = [
        {"what": name, "images/s": round(one.rate, 1), "p50, ms": p50, "p99, ms": p99}
        for (name, one), (p50, p99) in zip(
            samples.items(), [("", ""), [f"{1e3 * percentiles[at]:.0f}" for at in (49, 98)]], strict=True
        )
    ]
    return BenchResult(
        title=f"{args.model}, detector {args.detector}, {args.clients} clients, {args.photos} photos of {args.side} px",
        rows=rows,
        notes=[
            f"throughput of the service: {100 * left:.0f} % of the model alone, median of {args.rounds} rounds "
            "(target: 80 %)",
            f"requests lost: {lost} of {args.rounds * len(photos)} (target: 0)",
            "p50, p99: from request to answer, all clients at once; these run on the same cores as the service",
        ],
        settings=options(args, ("model", "clients", "photos", "side", "rounds", "threads", "detector"))
        | {"ratio": left, "lost": lost},
    )


@cache
def _photo(number: int, side: int) -> bytes:
    """A JPEG of a drawn scene."""
    import cv2

    from fer import synth
    from fer.io.images import decode_image

    scene = decode_image(synth.encode(synth.render(0, number)))
    return cv2.imencode(".jpg", cv2.resize(scene, (side, side)))[1].tobytes()


def _random_weights(folder: Path, name: str) -> Path:
    import torch

    from fer.labels import SPACES
    from fer.models import create_model
    from fer.weights.store import save_model

    torch.manual_seed(0)
    labels = SPACES["basic7"].labels
    save_model(
        create_model(name, len(labels)),
        folder / "model.safetensors",
        labels,
        "basic7",
        {"crop": {"size": 112}},
        name=name,
    )
    return folder / "model.safetensors"


@contextmanager
def _service(model: Model, kinds: dict[str, Any], threads: int) -> Iterator[int]:
    """`fer serve` in a thread of this process, with one replica; its port."""
    from fer.cluster.serve import replicas
    from fer.commands.serve import describe
    from fer.service.app import create_app, listen, server
    from fer.service.limits import Limits

    with (
        replicas(model.path, kinds, count=1, threads=threads) as backend,
        listen("127.0.0.1", 0) as socket,
    ):
        running = server(create_app(backend, describe(model), Limits()))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            yield socket.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join()


def _send(port: int, photos: Sequence[bytes], clients: int) -> list[float | None]:
    """Sends each photo once; seconds until each was answered, None where it was not."""

    def client(number: int) -> list[float | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        waits: list[float | None] = []
        for photo in photos[number::clients]:
            started = time.perf_counter()
            connection.request("POST", "/v1/predict", photo)
            answer = connection.getresponse()
            answer.read()
            waits.append(time.perf_counter() - started if answer.status == 200 else None)
        connection.close()
        return waits

    with ThreadPoolExecutor(clients) as pool:
        return [wait for waits in pool.map(client, range(clients)) for wait in waits]
