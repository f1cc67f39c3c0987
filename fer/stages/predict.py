"""Predictions for any number of images, on a cluster: `fer predict SOURCE --cluster --out OUT`.

    OUT/plan.json                 what makes the results: the images, the weights, the options
    OUT/00000.images.json         the images of a part, by their paths below SOURCE
    OUT/00000.faces.parquet       a row for each face; columns as of `fer predict --parquet`
    OUT/00000.refused.parquet     images and faces that were not classified, with the reasons
    OUT/00000.done.json           written last: the counts of the part
    OUT/summary.json              the counts of all parts, written last of all

SOURCE and OUT are folders on a disk that all nodes see, or in an object store. The images are listed once. Stopped at
any moment, the same command does the parts that are not done, each whole: every image is in the results exactly once.
Two commands at once write the same files. Memory is that of one part a worker, whatever the number of images.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from fer import __version__
from fer.cluster.config import ClusterConfig
from fer.cluster.map import map_blocks
from fer.console import log, progress
from fer.faces.crop import in_order
from fer.inference.model import Model, Tta, crop_config, detector_file
from fer.inference.output import SYNTHETIC, columns_of, rows_of
from fer.inference.photos import name_of
from fer.io.files import FileError
from fer.io.images import MAX_BYTES
from fer.io.storage import Folder, OutageError, is_store
from fer.shards.table import schema_of, write_table
from fer.sources.layout import IMAGE_ENDINGS

PART = 1000
"""Images of a part: the unit that is done again where a worker dies."""

_REFUSED = {"file": str, "reason": str, "detail": str}
_JSON_BYTES = 1 << 26
_FETCHES = 16
"""Images that a worker fetches at a time from an object store."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs, without a folder that it would have to share.

    Attributes:
        source, out: locations.
        weights: the file of the model; detector_weights: that of its detector, None where it needs none.
        detector, tta: see `fer.inference.model.Model`.
    """

    source: str
    out: str
    weights: bytes
    detector: str
    detector_weights: bytes | None
    tta: Tta

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the results."""
        parts = {"weights": self.weights, "detector_weights": self.detector_weights or b""}
        return {
            "source": Folder(self.source).name,
            **{name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
            "detector": self.detector,
            "tta": self.tta,
            "fer": __version__,
        }


def run(
    source: str,
    out: str,
    weights: Path,
    *,
    detector: str | None,
    detector_weights: str | None,
    tta: Tta,
    workers: int | None,
    cluster: ClusterConfig,
) -> dict[str, int]:
    """Predicts all images below `source`, or those that are left; returns the counts.

    Args:
        workers: parts at a time, one CPU each; None: all CPUs of the cluster; 0: in this process, without Ray.
        weights, detector, detector_weights, tta: see `fer.inference.model.Model`.

    Raises:
        FileError: no images; `out` holds other files, or predictions of something else; a store refuses.
        ValueError: an unknown option.
    """
    source, out = (where if is_store(where) else str(Path(where).expanduser().resolve()) for where in (source, out))
    model = Model(weights, detector=detector, tta=tta)  # wrong weights fail here
    if model.info.synthetic:
        log.warning("%s: %s", model.path, SYNTHETIC)
    chosen = "whole" if detector == "whole" else crop_config(model.info, detector, where=str(weights)).detector
    found = None if chosen == "whole" else detector_file(chosen, detector_weights).read_bytes()
    job = Job(source=source, out=out, weights=model.path.read_bytes(), detector=chosen, detector_weights=found, tta=tta)
    folder = Folder(out)
    plan = _plan(job, folder)
    names = folder.names()
    done = {part for part in range(plan["parts"]) if f"{_stem(part)}.done.json" in names}
    if done:
        log.info("predict: resuming after %d of %d parts", len(done), plan["parts"])
    left = [part for part in range(plan["parts"]) if part not in done]
    needs = [where for where in (source, out) if not is_store(where)]
    total: Counter[str] = Counter()
    with progress(plan["images"], "predict", "image") as bar:
        for part in sorted(done):
            total.update(_counts(folder, part))
        bar.update(total["images"])
        for counts in map_blocks(partial(predict_part, job), left, workers=workers, cluster=cluster, needs=needs):
            total.update(counts)
            bar.update(counts["images"])
    counts = {name: total[name] for name in ("images", "unread", "faces", "refused")}
    assert counts["images"] == plan["images"]
    folder.write("summary.json", _json({**plan, **counts}))
    log.info(
        f"predict: {counts['images']} images, {counts['faces']} faces; {counts['unread']} images not read, "
        f"{counts['refused']} refusals -> {folder.name}"
    )
    return counts


def _plan(job: Job, folder: Folder) -> dict[str, Any]:
    """The plan of the folder: of this job, or made now. It is written behind the lists of all parts."""
    if "plan.json" in folder.names():
        plan: dict[str, Any] = json.loads(folder.read("plan.json", _JSON_BYTES))
        if other := [key for key, value in job.identity.items() if plan.get(key) != value]:
            shown = "; ".join(f"{key} {plan.get(key)}, now {job.identity[key]}" for key in other)
            raise FileError(f"{folder.name}/plan.json: predictions of something else ({shown}); name another --out")
        return plan
    if strange := sorted(name for name in folder.names() if not name.endswith(".images.json")):
        raise FileError(f"{folder.name}: holds {strange[0]} and no plan.json; name an empty or new folder with --out")
    images = Folder(job.source).below(IMAGE_ENDINGS)
    found = 0
    for part in count():
        names = list(islice(images, PART))
        if not names:
            break
        folder.write(f"{_stem(part)}.images.json", _json(names))
        found += len(names)
    if not found:
        raise FileError(f"{Folder(job.source).name}: no file below it has the ending of an image")
    plan = {**job.identity, "images": found, "parts": part}
    folder.write("plan.json", _json(plan))
    return plan


def predict_part(job: Job, part: int) -> dict[str, int]:
    """Predicts one part, writes its files, and returns its counts."""
    folder, stem = Folder(job.out), _stem(part)
    names: list[str] = json.loads(folder.read(f"{stem}.images.json", _JSON_BYTES))
    model = _model(job.weights, job.detector, job.detector_weights, job.tta)
    contents = in_order(partial(_content, job.source), names, _FETCHES if is_store(job.source) else 1)
    shown = (name_of(name, number) for number, name in enumerate(names))
    results = list(model.results(zip(shown, contents, strict=True)))
    faces = [row for row in rows_of(results, synthetic=model.info.synthetic) if "face" in row]
    refused = [
        {"file": result.name, "reason": one.reason, "detail": one.detail}
        for result in results
        for one in result.refused
    ]
    folder.write(f"{stem}.faces.parquet", _parquet(faces, columns_of(model.labels)))
    folder.write(f"{stem}.refused.parquet", _parquet(refused, _REFUSED))
    counts = {
        "images": len(names),
        "unread": sum(not result.read for result in results),
        "faces": len(faces),
        "refused": len(refused),
    }
    folder.write(f"{stem}.done.json", _json(counts))
    return counts


@lru_cache(maxsize=1)
def _model(weights: bytes, detector: str, detector_weights: bytes | None, tta: Tta) -> Model:
    """Once a process; from files of its own, which it does not need any more then."""
    with tempfile.TemporaryDirectory(prefix="fer-") as folder:
        path, network = Path(folder, "model.safetensors"), Path(folder, "detector")
        path.write_bytes(weights)
        network.write_bytes(detector_weights or b"")
        model = Model(path, detector=detector, detector_weights=network, threads=1, tta=tta)
        list(model.results([]))  # loads the detector
    return model


def _content(source: str, name: str) -> bytes | str | Path:
    """The bytes of an image in a store; its address where they cannot be had, which `Model` refuses with the reason."""
    if not is_store(source):
        return Path(source, name)
    try:
        return Folder(source).read(name, MAX_BYTES)
    except OutageError:
        raise  # not the image's fault: the part is done again by the next command
    except FileError:
        return f"{source}/{name}"


def _parquet(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, type]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="fer-") as folder:
        write_table(Path(folder, "table"), rows, schema_of(columns))
        return Path(folder, "table").read_bytes()


def _counts(folder: Folder, part: int) -> dict[str, int]:
    counts: dict[str, int] = json.loads(folder.read(f"{_stem(part)}.done.json", _JSON_BYTES))
    return counts


def _stem(part: int) -> str:
    return f"{part:05d}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
