"""`fer bench remote`: the reader on shards in an object store beside the same shards on the disk."""

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark, options

if TYPE_CHECKING:
    from fer.shards.dataset import ShardSet

_BATCH = 128
_BUCKET = "fer-bench"
_START = 30.0  # s that the server may take


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=112, help="side of the images in px (112)")
    parser.add_argument("--rows", type=int, default=16384, help="images of the training split (16384)")
    parser.add_argument("--parts", type=int, default=32, help="files that they are in (32)")
    parser.add_argument("--threads", type=int, default=2, help="of the reader (2)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured, in turn (3)")


@benchmark("remote", help="the reader from an S3 server, warm and cold, beside the disk", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Starts moto's S3 server on this machine, uploads made-up shards, and reads them; all variants in turn.

    Raises:
        ValueError: moto or s3fs is not installed.
    """
    missing = [package for package in ("moto", "s3fs") if find_spec(package) is None]
    if missing:
        raise ValueError(f"fer bench remote needs {' and '.join(missing)}: pip install 'fer[bench,s3]'")
    from benchmarks.data import write_shards

    with tempfile.TemporaryDirectory(prefix="fer-bench-") as scratch, s3_server():
        folder = write_shards(Path(scratch, "set"), rows=args.rows, size=args.size, parts=args.parts)
        url = upload(folder)
        rows = _measure(folder, url, Path(scratch, "caches"), args)
        megabytes = sum(path.stat().st_size for path in folder.glob("train-*")) / 1e6
    return BenchResult(
        title=f"{args.rows} images of {args.size} px ({megabytes:.0f} MB in {args.parts} parts) on {args.threads} "
        f"threads, batches of {_BATCH}, median of {args.rounds} rounds",
        rows=rows,
        notes=[
            "images/s: an epoch of TrainBatches without augmentation and without the cache of pixels",
            "first batch: from opening the set, with its verification, to the first batch",
            "just opened: the parts were kept by an earlier process, and each is verified once when it is first used",
            "cold: nothing is kept; the epoch's order says which parts are fetched first",
            "the server shares this machine's cores with the reader, and answers slower than a real store",
        ],
        settings=options(args, ("size", "rows", "parts", "threads", "rounds")),
    )


def _measure(folder: Path, url: str, caches: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each way to the same images."""
    from fer.shards.dataset import ShardSet

    warm = ShardSet.open(url, cache=caches / "warm")
    _epoch(warm, args, 0)
    ways: dict[str, Callable[[int], ShardSet]] = {
        "disk": lambda turn: ShardSet.open(folder),
        "s3, warm": lambda turn: warm,
        "s3, just opened": lambda turn: ShardSet.open(url, cache=caches / "warm"),
        "s3, cold": lambda turn: ShardSet.open(url, cache=caches / f"cold-{turn}"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    firsts: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            shards = way(turn)
            opened = time.perf_counter() - started
            first, seconds = _epoch(shards, args, turn + 1)
            firsts[name].append(opened + first)
            rates[name].append(args.rows // _BATCH * _BATCH / seconds)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return [
        {
            "from": name,
            "images/s": round(middle[name]),
            "% of disk": round(100 * middle[name] / middle["disk"], 1),
            "first batch s": round(statistics.median(firsts[name]), 3),
            "slowest": round(min(rates[name])),
            "fastest": round(max(rates[name])),
        }
        for name in ways
    ]


def _epoch(shards: "ShardSet", args: argparse.Namespace, epoch: int) -> tuple[float, float]:
    """Seconds to the first batch of an epoch, and to its end."""
    from fer.models.base import Resize
    from fer.shards.read import TrainBatches

    started = time.perf_counter()
    batches = TrainBatches(
        shards.split("train"),
        model_input=(args.size, Resize()),
        batch_size=_BATCH,
        seed=0,
        threads=args.threads,
        cache_bytes=0,
    )
    first = 0.0
    for batch in batches.epoch(epoch):
        if batch.index == 0:
            first = time.perf_counter() - started
    return first, time.perf_counter() - started


@contextmanager
def s3_server() -> Iterator[None]:
    """moto's server in a process of its own, and the environment that points S3 clients at it."""
    from fer.processes import set_environment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for(port, server)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            set_environment(name, value)
        yield
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise ValueError("moto's S3 server does not start: `python -m moto.server` says why")


def upload(folder: Path) -> str:
    """The folder's URL in a new bucket."""
    import fsspec  # type: ignore[import-untyped]

    store = fsspec.filesystem("s3")
    store.mkdir(_BUCKET)
    store.put(f"{folder}/", f"{_BUCKET}/{folder.name}/", recursive=True)
    return f"s3://{_BUCKET}/{folder.name}"
