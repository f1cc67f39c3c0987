"""The crop stage: a downloaded dataset as one row a face, in data/faces/<dataset>."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fer.cluster.config import ClusterConfig
from fer.console import log, progress
from fer.faces.config import CropConfig
from fer.faces.crop import FaceCrop, crop_sample
from fer.files import FileError, publish_directory, sha256, write_json
from fer.sources.base import Block, Reject, Source
from fer.sources.download import describe
from fer.sources.registry import DatasetConfig, get_source

FORMAT = 1


@dataclass(frozen=True)
class BlockResult:
    """What a task tells of the file that it wrote: counts of faces by "split/label", and what was refused."""

    file: str
    rows: int
    bytes: int
    sha256: str
    samples: int
    histogram: dict[str, int]
    rejects: tuple[Reject, ...]


def crop_dataset(
    name: str, dataset: DatasetConfig, config: CropConfig, cluster: ClusterConfig, *, seed: int, root: Path
) -> Path:
    """Crops every face of `root`/data/raw/<name> into `root`/data/faces/<name>, complete or not at all.

    The rows stand in the order of their sample ids' pictures, whatever the number of workers.

    Returns:
        the folder: faces-*.parquet, rejects.parquet, and faces.json written last.

    Raises:
        ValueError: nothing was downloaded, another configuration was, or no face came out.
    """
    raw, final = root / "data" / "raw" / name, root / "data" / "faces" / name
    source = get_source(dataset, seed)
    description = describe(raw)
    if description["request"] != source.request:
        raise FileError(f"{raw}: was downloaded with other parameters; run `dvc repro download@{name}`")
    blocks = source.blocks(raw)
    with publish_directory(final) as out:
        task = partial(crop_block, source, config, str(raw), str(out))
        results = _run(task, blocks, cluster, name)
        rejects = sorted((r for result in results for r in result.rejects), key=lambda r: (r.sample_id, r.reason))
        _write_rejects(out / "rejects.parquet", rejects)
        reasons = dict(sorted(Counter(reject.reason for reject in rejects).items()))
        faces = sum(result.rows for result in results)
        if faces == 0:
            raise FileError(f"{raw}: not one face came out of {sum(r.samples for r in results)} pictures: {reasons}")
        histogram: Counter[str] = Counter()
        for result in results:
            histogram.update(result.histogram)
        labels = source.label_space.labels
        write_json(
            out / "faces.json",
            {
                "format": FORMAT,
                "dataset": name,
                "generator": source.generator,
                "label_space": source.label_space.name,
                "labels": list(labels),
                "crop": config.model_dump(exclude={"workers"}),
                "source_digest": sha256(raw / "source.json"),
                "samples": sum(result.samples for result in results),
                "faces": faces,
                "rejects": reasons,
                "counts": {
                    split: {label: histogram[f"{split}/{index}"] for index, label in enumerate(labels)}
                    for split in sorted({key.partition("/")[0] for key in histogram})
                },
                "files": [{"file": r.file, "rows": r.rows, "bytes": r.bytes, "sha256": r.sha256} for r in results],
                "rejects_sha256": sha256(out / "rejects.parquet"),
            },
        )
    refused = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
    log.info("%s: %d faces; rejected: %s", final.relative_to(root), faces, refused)
    return final


def _run(
    task: Callable[[Block], BlockResult], blocks: list[Block], cluster: ClusterConfig, name: str
) -> list[BlockResult]:
    from fer.cluster.map import map_blocks

    results = []
    with progress(sum(block.stop - block.start for block in blocks), f"crop {name}", "picture") as bar:
        for block, result in zip(
            blocks, map_blocks(task, blocks, workers=cluster.crop_workers, cluster=cluster), strict=True
        ):
            results.append(result)
            bar.update(block.stop - block.start)
    return results


def crop_block(source: Source, config: CropConfig, raw: str, out: str, block: Block) -> BlockResult:
    """Crops one block's samples into one file, by rename; a worker's task, in any process on any node."""
    import cv2

    from fer.shards.schema import face_schema
    from fer.shards.table import write_table

    cv2.setNumThreads(1)  # one task a CPU already
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    histogram: Counter[str] = Counter()
    samples = 0
    for sample in source.read(Path(raw), block):
        samples += 1
        for face in [sample] if isinstance(sample, Reject) else crop_sample(sample, config):
            if isinstance(face, FaceCrop):
                rows.append(face.row())
                histogram[f"{face.split}/{face.detection.annotation.label}"] += 1
            else:
                rejects.append(face)
    path = Path(out) / f"faces-{block.index:05d}.parquet"
    labels = json.dumps(list(source.label_space.labels))
    metadata = {"fer.labels": labels, "fer.color": "RGB", "fer.generator": source.generator}
    write_table(path, rows, face_schema(), metadata=metadata)
    return BlockResult(
        path.name, len(rows), path.stat().st_size, sha256(path), samples, dict(histogram), tuple(rejects)
    )


def _write_rejects(path: Path, rejects: list[Reject]) -> None:
    from fer.shards.schema import reject_schema
    from fer.shards.table import write_table

    write_table(path, [asdict(reject) for reject in rejects], reject_schema())
