"""`fer bench origin`: how long it takes to see that nothing of the user's data changed."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.result import BenchResult, benchmark, options
from benchmarks.timing import in_turn
from fer.console import log, progress

_CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=100_000, help="images (100000)")
    parser.add_argument("--bytes", type=int, default=4096, help="of each (4096)")
    parser.add_argument("--rounds", type=int, default=5, help="times that unchanged files are scanned (5)")


@benchmark("origin", help="seconds until unchanged data are known to be unchanged", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Writes class folders of made-up files and a table of them, and scans each: first all are hashed, then none."""
    from fer.sources.folders import FoldersConfig
    from fer.sources.origin import origin_digest
    from fer.sources.registry import DatasetConfig
    from fer.sources.table import TableConfig

    with tempfile.TemporaryDirectory(prefix="fer-bench-") as scratch:
        root = Path(scratch)
        log.info(f"writing {args.files} files")
        write_files(root / "images", args.files, args.bytes)
        time.sleep(2.5)  # younger files are hashed again: see `fer.sources.origin`
        rows: list[dict[str, Any]] = []
        for kind in (
            FoldersConfig(source="folders", path="images"),
            TableConfig(source="table", path="images/table.csv"),
        ):

            def scan(turn: int, kind: DatasetConfig = kind) -> int:
                origin_digest(kind.source, kind, root, root)
                return int(args.files)

            found = in_turn({"scan": scan}, rounds=args.rounds + 1)["scan"]
            rows.append(
                {
                    "source": kind.source,
                    "first s": round(found.seconds[0], 2),
                    "again s": round(statistics.median(found.seconds[1:]), 2),
                    "slowest": round(max(found.seconds[1:]), 2),
                    "again CPU s": round(statistics.median(found.cpu[1:]), 2),
                }
            )
    return BenchResult(
        title=f"{args.files} files of {args.bytes} bytes, median of {args.rounds} rounds after the first",
        rows=rows,
        notes=[
            "first: every file is hashed; again: names, sizes and times are compared (goal: 2 s for 100,000 files)",
            "CPU: processor time, which others on the machine disturb less than the clock",
        ],
        settings=options(args, ("files", "bytes", "rounds")),
    )


def write_files(folder: Path, count: int, size: int) -> None:
    """Files of different contents in class folders, and a table that names them."""
    for name in _CLASSES:
        (folder / name).mkdir(parents=True)
    filler = bytes(size)
    with progress(count, "write", "file") as bar, (folder / "table.csv").open("w") as table:
        table.write("path,label\n")
        for index in range(count):
            name = _CLASSES[index % len(_CLASSES)]
            (folder / name / f"{index:08d}.jpg").write_bytes((b"%d" % index + filler)[:size])
            table.write(f"{name}/{index:08d}.jpg,{name}\n")
            bar.update()
