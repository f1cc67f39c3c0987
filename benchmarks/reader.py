"""`fer bench reader`: images/s of reader and augmentation beside the decode limit of the same run."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark, options
from benchmarks.timing import Variant, in_turn

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
    parser.add_argument("--size", type=int, default=112, help="side of the images and of the model's input in px (112)")
    parser.add_argument("--gray", "--grey", action="store_true", help="gray PNG, as FER2013, instead of color JPEG")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure (1 2)")
    parser.add_argument("--rows", type=int, default=8192, help="images (8192)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that each is measured, in turn; the median counts (3)"
    )


@benchmark("reader", help="images/s of reader and augmentation beside the decode limit", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Measures on shards that it writes to a temporary folder; all variants in turn, so that noise hits all alike."""
    from benchmarks.data import write_shards
    from fer.shards.dataset import ShardSet

    with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
        shards = write_shards(Path(folder) / "bench", rows=args.rows, size=args.size, gray=args.gray)
        split = ShardSet.open(shards).split("train")
        rows = [row for threads in args.threads for row in _measure(split, args.size, threads, args.rounds)]
    kind = "gray PNG" if args.gray else "JPEG q95"
    names = ", ".join(f"{spec['name']} p={spec['p']}" for spec in _AUGMENT)
    return BenchResult(
        title=f"{args.rows} images of {args.size} px ({kind}), batches of {_BATCH}, median of {args.rounds} rounds",
        rows=rows,
        notes=[
            "images/s: of the clock; images/CPU-s: of processor time, which others on the machine disturb less",
            "decode limit: nothing but decoding to RGB, from memory, on as many threads",
            "read: Parquet with page checksums, shuffled, decoded, in batches; augment: and " + names,
            "albumentations: the same transforms by that library itself, an image at a time",
            "cached: a later epoch of a split whose pixels fit into memory",
        ],
        settings=options(args, ("size", "gray", "rows", "rounds")) | {"augment": _AUGMENT},
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
    variants: dict[str, Variant] = {
        "decode limit": lambda turn: _decode_all(encoded, threads),
        "read": lambda turn: sum(len(batch.rows) for batch in reading.epoch(turn + 1)),
        "read + augment": lambda turn: sum(len(batch.rows) for batch in augmenting.epoch(turn + 1)),
        "read + albumentations": lambda turn: sum(len(batch.rows) for batch in by_albumentations.epoch(turn + 1)),
        "cached + augment": lambda turn: sum(len(batch.rows) for batch in cached.epoch(turn + 1)),
    }
    found = in_turn(variants, rounds=rounds)
    return [
        {
            "what": name,
            "threads": threads,
            "images/s": round(samples.rate),
            "% of decode limit": round(100 * samples.rate / found["decode limit"].rate, 1),
            "images/CPU-s": round(samples.cpu_rate),
            "slowest": round(min(samples.rates)),
            "fastest": round(max(samples.rates)),
        }
        for name, samples in found.items()
    ]


def _decode_all(encoded: "list[tuple[EncodedGroup, int]]", threads: int) -> int:
    """Decodes every image of the groups, given with their numbers of rows, once."""
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
