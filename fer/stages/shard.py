"""The shard stage: the faces of one dataset as shards, split into test, validation and folds of training rows.

    data/shards/<dataset>/      *.parquet, and manifest.json, written last
    data/statistics/<dataset>/  what the dataset looks like; see `fer.shards.statistics`

Both appear complete, by rename, and are the same bytes every time. A row's part depends on its own group, id and the
seed alone (`fer.shards.assign`), so samples added later rewrite only the parts that they belong to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from fer.console import log, progress
from fer.io.files import FileError, name_in_errors, read_object
from fer.labels import is_identities
from fer.outputs import SHARDS, STATISTICS
from fer.shards.assign import Destination, assign, has_published_validation, stored_order
from fer.shards.duplicates import PRINT
from fer.shards.leakage import Duplicates, find_duplicates, label_conflicts, rows_near, rows_shared, rows_to_drop
from fer.shards.manifest import Manifest, Part
from fer.shards.schema import SCHEMA_VERSION, SPLITS, ShardError, shard_schema
from fer.shards.statistics import write_statistics
from fer.shards.survey import Face, mean_std, survey
from fer.shards.table import write_table
from fer.shards.write import RowStore, describe_part

if TYPE_CHECKING:
    from fer.params import Params

_GROUPS = 4
"""Row groups of a part that are held at once: some 200 MB of images of 224 px."""
_FACES = {
    "faces": int, "files": list, "generator": str, "label_space": str, "labels": list, "rejects": dict,
    "source_digest": str,
}  # fmt: skip


def run(params: Params, dataset: str) -> Path:
    """Writes data/shards/<dataset> and data/statistics/<dataset> from data/faces/<dataset>.

    Returns:
        the folder of shards.

    Raises:
        ValueError: no or damaged faces, or a split without rows.
    """
    source, config = params.root / "data" / "faces" / dataset, params.shard
    final, statistics = SHARDS.folder(params.root, dataset), STATISTICS.folder(params.root, dataset)
    if not (source / "faces.json").is_file():
        raise FileError(f"{source}: no faces; run `dvc repro crop@{dataset}`")
    about = read_object(source / "faces.json", _FACES, f"run `dvc repro -f crop@{dataset}`")
    files = [source / entry["file"] for entry in about["files"]]
    faces, duplicates = _look(files, about["faces"], dataset, final.parent, near=config.duplicates != "off")
    dropped = rows_to_drop(faces, duplicates) if config.duplicates == "drop" else {}
    together = [pair[:2] for pair in duplicates.near] if config.duplicates == "group" else []
    rejects = Counter(about["rejects"])
    rejects.update(why.reason for why in dropped.values())
    assigned = enumerate(assign(faces, config, seed=params.seed, together=together))
    places = {row: place for row, place in assigned if row not in dropped}
    split_of = {row: place.split for row, place in places.items()}
    with SHARDS.publish(final) as out, STATISTICS.publish(statistics) as described:
        rows = RowStore(out / ".spill.arrow", files)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            dataset=dataset,
            label_space=about["label_space"],
            labels=tuple(about["labels"]),
            colour="RGB",
            generator=about["generator"],
            synthetic=about["generator"].startswith("synthetic"),
            source_digest=about["source_digest"],
            seed=params.seed,
            folds=config.folds,
            rejects=dict(sorted(rejects.items())),
            validation_source="published" if has_published_validation(faces) else "fold 0",
            shared_pictures=rows_shared(split_of, duplicates),
            near_pictures=rows_near(split_of, duplicates),
            label_conflicts=label_conflicts(faces, split_of, duplicates),
            duplicates=config.duplicates,
            crop=about.get("crop", {}),
            **_parts(out, dataset, about, faces, places, rows, params),
        )
        write_statistics(described, manifest, faces, split_of, duplicates, dropped, rows.images)
        rows.remove()
        manifest.save(out)
    _report(final.relative_to(params.root), manifest)
    return final


def _look(
    files: Sequence[Path], total: int, dataset: str, folder: Path, *, near: bool
) -> tuple[list[Face], Duplicates]:
    """What is known of each face, and which show one photograph; the fingerprints are in a nameless file meanwhile.

    Args:
        folder: where it takes room; it is gone with this process, however that ends.
    """
    if not near:
        faces = survey(files, total, dataset)
        return faces, find_duplicates(faces, None)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as prints:
        with name_in_errors(folder):
            faces = survey(files, total, dataset, prints)
            prints.flush()
        return faces, find_duplicates(faces, np.memmap(prints, PRINT, "r") if faces else None)


def _parts(
    out: Path,
    dataset: str,
    about: Mapping[str, Any],
    faces: Sequence[Face],
    places: Mapping[int, Destination],
    rows: RowStore,
    params: Params,
) -> dict[str, Any]:
    """Writes the parts; the fields of the manifest that describe them."""
    metadata = {
        "fer.schema": str(SCHEMA_VERSION),
        "fer.dataset": dataset,
        "fer.label_space": about["label_space"],
        "fer.labels": json.dumps(about["labels"]),
        "fer.color": "RGB",
        "fer.generator": about["generator"],
    }
    members: dict[Destination, list[int]] = {}
    for row, place in places.items():
        members.setdefault(place, []).append(row)
    parts: list[Part] = []
    with progress(len(places), f"shard {dataset}", "face") as bar:
        for place in sorted(members, key=lambda place: place.file):
            order, path = stored_order(members[place], faces, params.seed), out / place.file
            group = params.shard.rows_per_group
            tables = rows.take(order, _GROUPS * group)
            write_table(path, tables, shard_schema(), metadata=metadata, rows_per_group=group)
            labels = [faces[row].label for row in order]
            parts.append(describe_part(path, place.split, place.fold, labels, len(about["labels"])))
            bar.update(len(order))
    of = {split: [part for part in parts if part.split == split] for split in SPLITS}
    if empty := [split for split in SPLITS if not of[split]]:
        raise ShardError(
            f"data/faces/{dataset}: no rows for the {' and '.join(empty)} split ({len(places)} faces in all): more "
            "data, or fewer shard.folds, is needed"
        )
    sizes = {faces[row].size for row in places}
    mean, std = mean_std([faces[row] for row, place in places.items() if place.split == "train"])
    return {
        "parts": tuple(parts),
        "splits": {split: tuple(part.file for part in of[split]) for split in SPLITS},
        "class_histogram": {
            split: tuple(map(sum, zip(*(part.class_histogram for part in of[split]), strict=True))) for split in SPLITS
        },
        "image_size": sizes.pop() if len(sizes) == 1 else None,
        "mean": mean,
        "std": std,
    }


def _report(folder: Path, manifest: Manifest) -> None:
    for split in SPLITS:
        histogram = dict(zip(manifest.labels, manifest.class_histogram[split], strict=True))
        if is_identities(manifest.label_space):
            log.info("%s: %s %d of %d people", folder, split, manifest.rows(split), sum(map(bool, histogram.values())))
            continue
        counts = ", ".join(f"{label} {count}" for label, count in histogram.items())
        log.info("%s: %s %d (%s)", folder, split, manifest.rows(split), counts)
        if missing := [label for label, count in histogram.items() if count == 0]:
            log.warning("%s: the %s split has no sample of %s", folder, split, ", ".join(missing))
    for found, what in ((manifest.shared_pictures, "pixel-equal to"), (manifest.near_pictures, "near duplicates of")):
        for pair, count in found.items():
            one, other = pair.split("~")
            if count and one != other:
                log.warning("%s: %d %s images are %s %s images", folder, count, one, what, other)
    for where, count in manifest.label_conflicts.items():
        if count:
            log.warning("%s: %d images occur with several labels: %s", folder, count, where)
    for reason in ("duplicate_of_test", "duplicate_of_validation", "duplicate"):
        if count := manifest.rejects.get(reason, 0):
            log.info("%s: %d rows left out: %s", folder, count, reason)
