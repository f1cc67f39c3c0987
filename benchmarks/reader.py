"""`fer bench reader`: images/s of reader and augmentation beside the decode limit of the same run."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark

if TYPE_CHECKING:
    from fer.shards.dataset import EncodedGroup, ShardSplit

_AUGMENT: list[dict[str, Any]] = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "rotate": [-15, 15], "scale": [0.85, 1.15], "translate_percent": [-0.1, 0.1], "p": 0.8},
    {"name": "RandomBrightnessContrast", "p": 0.5},
    {"name": "Erasing", "scale": [0.02, 0.25], "p": 0.5},
]
_BATCH = 128


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, default=112, help="side of the pictures and of the model's input in px (112)"
    )
    parser.add_argument("--grey", action="store_true", help="grey PNG, as FER2013, instead of colour JPEG")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure (1 2)")
    parser.add_argument("--rows", type=int, default=8192, help="pictures (8192)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that each is measured, in turn; the median counts (3)"
    )


@benchmark("reader", help="images/s of reader and augmentation beside the decode limit", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Measures on shards that it writes to a temporary folder; all variants in turn, so that noise hits all alike."""
    from benchmarks.data import write_shards
    from fer.shards.dataset import ShardSet

    with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
        shards = write_shards(Path(folder) / "bench", rows=args.rows, size=args.size, grey=args.grey)
        split = ShardSet.open(shards).split("train")
        rows = [row for threads in args.threads for row in _measure(split, args.size, threads, args.rounds)]
    kind = "grey PNG" if args.grey else "JPEG q95"
    names = ", ".join(f"{spec['name']} p={spec['p']}" for spec in _AUGMENT)
    return BenchResult(
        title=f"{args.rows} pictures of {args.size} px ({kind}), batches of {_BATCH}, median of {args.rounds} rounds",
        rows=rows,
        notes=[
            "images/s: of the clock; images/CPU-s: of processor time, which others on the machine disturb less",
            "decode limit: nothing but decoding to RGB, from memory, on as many threads",
            "read: Parquet with page checksums, shuffled, decoded, in batches; augment: and " + names,
            "albumentations: the same transforms by that library itself, a picture at a time",
            "cached: a later epoch of a split whose pixels fit into memory",
        ],
        settings={"size": args.size, "grey": args.grey, "rows": args.rows, "rounds": args.rounds, "augment": _AUGMENT},
    )


def _measure(split: "ShardSplit", size: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    from fer.models.base import Resize
    from fer.shards.read import TrainBatches
    from fer.transforms.reference import Augmenter, AugmentSpec

    specs = [AugmentSpec.model_validate(spec) for spec in _AUGMENT]
    augment, reference = Augmenter(specs, size), Augmenter(specs, size, reference=True)

    def batches(augmenter: Augmenter | None, cache_bytes: int) -> TrainBatches:
        return TrainBatches(
            split,
            model_input=(size, Resize()),
            batch_size=_BATCH,
            seed=0,
            augment=augmenter,
            threads=threads,
            cache_bytes=cache_bytes,
        )

    reading, augmenting, cached = batches(None, 0), batches(augment, 0), batches(augment, 1 << 34)
    by_albumentations = batches(reference, 0)
    for _ in cached.epoch(0):
        pass
    encoded = [(split.images(group), rows) for group, rows in enumerate(split.row_group_sizes)]
    variants: dict[str, Callable[[int], int]] = {
        "decode limit": lambda epoch: _decode_all(encoded, threads),
        "read": lambda epoch: sum(len(batch.rows) for batch in reading.epoch(epoch)),
        "read + augment": lambda epoch: sum(len(batch.rows) for batch in augmenting.epoch(epoch)),
        "read + albumentations": lambda epoch: sum(len(batch.rows) for batch in by_albumentations.epoch(epoch)),
        "cached + augment": lambda epoch: sum(len(batch.rows) for batch in cached.epoch(epoch)),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    per_cpu: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name, variant in variants.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            count = variant(turn + 1)
            rates[name].append(count / (time.perf_counter() - started))
            per_cpu[name].append(count / (time.process_time() - cpu_started))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return [
        {
            "what": name,
            "threads": threads,
            "images/s": round(rate),
            "% of decode limit": round(100 * rate / middle["decode limit"], 1),
            "images/CPU-s": round(statistics.median(per_cpu[name])),
            "slowest": round(min(rates[name])),
            "fastest": round(max(rates[name])),
        }
        for name, rate in middle.items()
    ]


def _decode_all(encoded: "list[tuple[EncodedGroup, int]]", threads: int) -> int:
    """Decodes every picture of the groups, given with their numbers of rows, once."""
    from concurrent.futures import ThreadPoolExecutor

    from fer.shards.pixels import decode

    def work(number: int) -> int:
        mine = encoded[number::threads]
        for group, size in mine:
            for row in range(size):
                decode(group[row])
        return sum(size for _, size in mine)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))
