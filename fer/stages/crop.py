"""The crop stage: a downloaded dataset as one row a face, in data/faces/<dataset>.

    .work/crop/<dataset>-<fingerprint>/   finished blocks, which a stopped stage resumes from; removed in the end
    data/faces/<dataset>/                 appears complete, by rename

The fingerprint is taken over data, configuration, detector and code: blocks cropped otherwise are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fer.cluster.config import ClusterConfig
from fer.console import log, progress
from fer.faces.blocks import (
    MOST_ATTEMPTS,
    BlockResult,
    StoredRaw,
    crop_block,
    crop_stored_block,
    finished,
    forget_attempts,
    keep_block,
)
from fer.faces.config import CropConfig
from fer.io.cache import send
from fer.io.files import FileError, link_or_copy, sha256, write_json
from fer.io.storage import inside
from fer.lineage import versions
from fer.outputs import FACES
from fer.params import Params
from fer.processes import HeldError, lock, remove_held
from fer.sources.base import Reject, Source, describe
from fer.sources.registry import DatasetConfig, get_source
from fer.stages.closure import code

FORMAT = 1
_SHOWN_EXAMPLES = 8
_DECODING_THREADS = 2
"""Where there is one process alone; the crop workers of a cluster have one CPU each."""


def run(params: Params, dataset: str) -> Path:
    """Crops every face of `datasets.<dataset>`; see `crop_dataset`."""
    return crop_dataset(
        dataset, params.dataset(dataset), params.crop_of(dataset), params.cluster,
        seed=params.seed, root=params.root, parent=params.parent, storage=params.storage,
    )  # fmt: skip


def crop_dataset(
    name: str,
    dataset: DatasetConfig,
    config: CropConfig,
    cluster: ClusterConfig,
    *,
    seed: int,
    root: Path,
    parent: Path | None = None,
    storage: str | None = None,
) -> Path:
    """Crops every face of `root`/data/raw/<name> into `root`/data/faces/<name>, complete or not at all.

    The rows stand in the order of their images, and the files are the same bytes, whatever the number of workers and
    however often the stage was stopped. Blocks of images that an earlier, stopped run finished are not done again.

    Args:
        parent: the project whose queued experiment `root` is, as `fer.params.Params` has it.
        storage: the store through which workers get the images; None: they see this machine's folders.

    Returns:
        the folder: faces-*.parquet, rejects.parquet, and faces.json written last.

    Raises:
        ValueError: nothing was downloaded, another configuration was, labels without a box and no detector, no weights
            of the detector, too many images that cannot be decoded, or no face came out.
    """
    raw, final = root / "data" / "raw" / name, FACES.folder(root, name)
    source = get_source(dataset, seed)
    description = describe(raw)
    if description["request"] != source.request:
        raise FileError(f"{raw}: was downloaded with other parameters; run `dvc repro download@{name}`")
    _require_detector(name, description, config)
    weights = _weights(config, root, parent)
    settings = config.model_dump(exclude={"detector_weights"}) | {"detector_sha256": weights and sha256(weights)}
    source_digest = sha256(raw / "source.json")
    code_digest = code().digest("crop", reader=type(source).__module__, detector=config.detector)
    with _work_folder(root, parent, name, fingerprint(source_digest, settings, code_digest)) as work:
        results = _crop(name, source, config, weights, cluster, raw, work, storage)
        rejects = sorted((r for result in results for r in result.rejects), key=lambda r: (r.sample_id, r.reason))
        reasons = dict(sorted(Counter(reject.reason for reject in rejects).items()))
        faces = sum(result.rows for result in results)
        if faces == 0:
            raise FileError(f"{raw}: not one face came out of {sum(r.samples for r in results)} images: {reasons}")
        histogram: Counter[str] = Counter()
        for result in results:
            histogram.update(result.histogram)
        labels = source.label_space.labels
        with FACES.publish(final) as out:
            for result in results:
                link_or_copy(work / result.file, out / result.file)  # killed now, the stage has lost nothing
            _write_rejects(out / "rejects.parquet", rejects)
            write_json(
                out / "faces.json",
                {
                    "format": FORMAT,
                    "dataset": name,
                    "generator": description.get("generator", source.generator),
                    "label_space": source.label_space.name,
                    "labels": list(labels),
                    "crop": settings,
                    "source_digest": source_digest,
                    "samples": sum(result.samples for result in results),
                    "faces": faces,
                    "rejects": reasons,
                    "reject_examples": _examples(rejects),
                    "counts": {
                        split: {label: histogram[f"{split}/{index}"] for index, label in enumerate(labels)}
                        for split in sorted({key.partition("/")[0] for key in histogram})
                    },
                    "files": [{"file": r.file, "rows": r.rows, "bytes": r.bytes, "sha256": r.sha256} for r in results],
                    "rejects_sha256": sha256(out / "rejects.parquet"),
                },
                sealed=True,
            )
    refused = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
    log.info("%s: %d faces; rejected: %s", final.relative_to(root), faces, refused)
    return final


def fingerprint(source_digest: str, settings: dict[str, Any], code_digest: str) -> str:
    """Hex SHA-256 of all that the files of faces depend on but for the processor. New versions start over.

    Args:
        source_digest: of the downloaded dataset's description.
        settings: the configuration, with the detector's digest in place of its path.
        code_digest: of the code that crops this dataset.
    """
    parts = {
        "format": FORMAT,
        "source": source_digest,
        # It judges the result and does not change it: who raises it resumes where the stage has stopped.
        "crop": {key: value for key, value in settings.items() if key != "max_bad_fraction"},
        "code": code_digest,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ before any work


def _require_detector(name: str, description: dict[str, Any], config: CropConfig) -> None:
    """FileError where labels without a box would be met halfway."""
    count = description.get("faces_to_find", 0)  # generated and cropped datasets do not mention it
    if count and config.detector == "annotated":
        raise FileError(
            f"data/raw/{name}: {count} labels of the dataset {name!r} come without a box, and crop.detector = "
            "'annotated' looks for no face: set crop.detector to retinaface or yunet in params.yaml (and crop.faces to "
            "which of several faces is meant)"
        )


def _weights(config: CropConfig, root: Path, parent: Path | None) -> Path | None:
    """The detector's file, whole; None for one that needs none."""
    if config.detector == "annotated":
        return None
    from fer.faces.weights import locate

    return locate(config.detector, config.detector_weights, root, parent).resolve()


@contextmanager
def _work_folder(root: Path, parent: Path | None, name: str, whole: str) -> Iterator[Path]:
    """The folder of unfinished work with this fingerprint, held for the block and removed where it ends well.

    The dataset's others are removed first, but for those that other experiments are at.
    """
    work = (parent or root) / ".work" / "crop" / f"{name}-{whole[:16]}"
    with lock(work / "lock", wait=parent is not None):
        for other in work.parent.glob("*"):
            if re.fullmatch(re.escape(name) + "-[0-9a-f]{16}", other.name) and other != work:
                with suppress(HeldError), lock(other / "lock"):
                    remove_held(other)
        forget_attempts(work)
        yield work
        remove_held(work)


# ------------------------------------------------------------------------------------------------ the work


def _crop(
    name: str,
    source: Source,
    config: CropConfig,
    weights: Path | None,
    cluster: ClusterConfig,
    raw: Path,
    work: Path,
    storage: str | None,
) -> list[BlockResult]:
    """A result for each block in order, done now or before."""
    from fer.cluster.map import map_blocks

    blocks = source.blocks(raw)
    known = {block.index: result for block in blocks if (result := finished(work, block))}
    if known:
        log.info("crop %s: resuming after %d of %d blocks", name, len(known), len(blocks))
    missing = [block for block in blocks if block.index not in known]
    fresh: Iterator[BlockResult]
    if storage is not None and cluster.crop_workers != 0 and missing:
        detector = send(weights, inside(storage, "weights")) if weights else None
        elsewhere = partial(crop_stored_block, source, config, detector, StoredRaw.sent(raw, storage, blocks))
        made = map_blocks(
            elsewhere,
            missing,
            workers=cluster.crop_workers,
            cluster=cluster,
            storage=storage,
            retries=MOST_ATTEMPTS - 1,
        )
        fresh = (keep_block(work, result, content) for result, content in made)
    else:
        threads = _DECODING_THREADS if cluster.crop_workers == 0 and weights else 1
        path = str(weights) if weights else None
        task = partial(crop_block, source, config, path, threads, str(raw.resolve()), str(work.resolve()))
        needs = [str(raw.resolve() / "source.json"), str(work.resolve()), *([path] if path else [])]
        fresh = map_blocks(task, missing, workers=cluster.crop_workers, cluster=cluster, needs=needs)
    total = sum(block.stop - block.start for block in blocks)
    results: list[BlockResult] = []
    with progress(total, f"crop {name}", "image") as bar:
        for block in blocks:
            results.append(known.get(block.index) or next(fresh))
            _judge(results, total, config, raw)
            bar.update(block.stop - block.start)
    return results


def _judge(results: Sequence[BlockResult], total: int, config: CropConfig, raw: Path) -> None:
    """FileError as soon as more images cannot be decoded than `max_bad_fraction` allows of all."""
    bad = sum(len(result.unreadable) for result in results)
    if bad <= config.max_bad_fraction * total:
        return
    ids = {sample_id for result in results for sample_id in result.unreadable}
    unreadable = [reject for result in results for reject in result.rejects if reject.sample_id in ids]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(r.reason for r in unreadable).items()))
    shown = "\n".join(f"  {one.sample_id} ({one.origin}): {one.detail}" for one in unreadable[:_SHOWN_EXAMPLES])
    seen = sum(result.samples for result in results)
    raise FileError(
        f"{raw}: {bad} of the first {seen} images cannot be decoded ({kinds}):\n{shown}\n"
        f"That is more than crop.max_bad_fraction = {config.max_bad_fraction:g} of all {total} images: fix the "
        "data, or raise crop.max_bad_fraction in params.yaml to leave them out; the same command then resumes from here"
    )


# ------------------------------------------------------------------------------------------------ its results


def _examples(rejects: Sequence[Reject]) -> dict[str, dict[str, str]]:
    """The first reject of each reason."""
    first: dict[str, dict[str, str]] = {}
    for reject in rejects:
        first.setdefault(reject.reason, asdict(reject))
    return dict(sorted(first.items()))


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    from fer.shards.schema import reject_schema
    from fer.shards.table import write_table

    write_table(path, [asdict(reject) for reject in rejects], reject_schema())
