"""One block of a dataset's images to one file of faces, and the results of finished blocks.

A finished block is a file of faces and, written after it, a description with its digest: a run that finds both resumes
behind them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fer.faces.config import CropConfig
from fer.faces.crop import FaceCrop, Unreadable, crop_samples, finder
from fer.io.cache import cache_folder, keep, local, send_folder
from fer.io.files import FileError, name_in_errors, read_json, sha256, write_atomic, write_json
from fer.io.storage import inside
from fer.sources.base import Block, Reject, Source, describe

_FETCHES = 3

MOST_ATTEMPTS = 4
"""How often one run of the stage begins a block. A block that killed four workers will kill the fifth."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """The description of a finished block.

    Attributes:
        file, rows, bytes, sha256: of the file of faces.
        samples: images of the block.
        unreadable: ids of the images that could not be decoded; they are among the rejects.
        histogram: faces by "split/label".
        rejects: in the order of the images.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    samples: int
    unreadable: tuple[str, ...]
    histogram: dict[str, int]
    rejects: tuple[Reject, ...]


def crop_block(
    source: Source, config: CropConfig, weights: str | None, threads: int, raw: str, out: str, block: Block
) -> BlockResult:
    """Crops one block's samples into one file, atomically; a worker's task, in any process on any node.

    Args:
        source, config: where images come from, and how faces are cropped.
        weights: the detector's file; None for a detector that needs none.
        threads: for decoding; any number gives the same result.
        raw, out: absolute paths of the downloaded dataset and of the result's folder.
        block: the unit of work.

    Raises:
        ValueError: the downloaded files are damaged, or have a label without a box and no detector is configured.
        RuntimeError: anything unexpected; it names the image. Or the block has killed too many workers.
    """
    if known := finished(Path(out), block):  # by a worker that died before it could report it
        return known
    attempts = _begin(Path(out), block)
    from fer.shards.schema import face_schema
    from fer.shards.table import write_table

    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    histogram: Counter[str] = Counter()
    unreadable: list[str] = []
    samples = 0
    with _one_thread(config):
        for faces in crop_samples(source.read(Path(raw), block), config, finder(config, weights), threads=threads):
            samples += 1
            for face in faces:
                if isinstance(face, FaceCrop):
                    rows.append(face.row())
                    histogram[f"{face.split}/{face.face.annotation.label}"] += 1
                else:
                    rejects.append(face)
                    unreadable += [face.sample_id] if isinstance(face, Unreadable) else []
    path = Path(out) / _file_name(block)
    labels = json.dumps(list(source.label_space.labels))
    metadata = {"fer.labels": labels, "fer.color": "RGB", "fer.generator": source.generator}
    write_table(path, rows, face_schema(), metadata=metadata)
    result = BlockResult(
        file=path.name,
        rows=len(rows),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        samples=samples,
        unreadable=tuple(unreadable),
        histogram=dict(histogram),
        rejects=tuple(rejects),
    )
    _describe(path, result)
    attempts.unlink()
    return result


@dataclass(frozen=True)
class StoredRaw:
    """A downloaded dataset in an object store, for machines that do not see its folder.

    Attributes:
        url: of its folder in the store, named by its digest.
        files: SHA-256 and bytes of each.
        shared: names of those that every block reads.
    """

    url: str
    files: Mapping[str, tuple[str, int]]
    shared: tuple[str, ...]

    @classmethod
    def sent(cls, raw: Path, storage: str, blocks: Sequence[Block]) -> StoredRaw:
        """Puts a downloaded folder into a store, where it is not there already."""
        files = {one["file"]: (one["sha256"], one["bytes"]) for one in describe(raw)["files"]}
        url = send_folder(raw, inside(storage, "raw"), "source.json", {name: size for name, (_, size) in files.items()})
        files["source.json"] = (sha256(raw / "source.json"), (raw / "source.json").stat().st_size)
        return cls(url, files, tuple(sorted(files.keys() - {block.file for block in blocks})))

    def fetched(self, block: Block) -> Path:
        """A folder of this machine that holds what a block reads.

        Raises:
            FileError: the cache has no room for it.
        """
        folder = cache_folder() / self.url.rpartition("/")[2]
        names = (*self.shared, block.file)
        for _ in range(_FETCHES):  # other processes may have made room by what this one had just fetched
            for name in names:
                digest, size = self.files[name]
                keep(inside(self.url, name), folder / name, digest, cache_folder(), size)
            if all((folder / name).is_file() for name in names):
                return folder
        size = sum(self.files[name][1] for name in names)
        raise FileError(
            f"{folder}: a block reads {size / 1e9:.3g} GB, for which the cache has no room beside those of other "
            "processes; raise FER_CACHE_GB, or lower cluster.crop_workers"
        )


def crop_stored_block(
    source: Source, config: CropConfig, weights: str | None, raw: StoredRaw, block: Block
) -> tuple[BlockResult, bytes]:
    """`crop_block` where no folder is shared.

    Args:
        weights: location of the detector's file, in the store.

    Returns:
        the description, and the content of the file of faces, for `keep_block`.
    """
    with TemporaryDirectory(prefix="fer-crop-") as out:
        detector = None if weights is None else str(local(weights))
        result = crop_block(source, config, detector, 1, str(raw.fetched(block)), out, block)
        return result, Path(out, result.file).read_bytes()


def keep_block(out: Path, result: BlockResult, content: bytes) -> BlockResult:
    """Writes what `crop_stored_block` returned, as `crop_block` does."""
    write_atomic(out / result.file, content)
    _describe(out / result.file, result)
    return result


def _describe(path: Path, result: BlockResult) -> None:
    write_json(path.with_suffix(".json"), asdict(result))


def finished(out: Path, block: Block) -> BlockResult | None:
    """The result of an earlier call for a block; None where there is none, or an incomplete one."""
    path = out / _file_name(block)
    try:
        value = read_json(path.with_suffix(".json"))
    except FileError:
        return None
    if not path.is_file() or sha256(path) != value["sha256"]:
        return None
    rejects = tuple(Reject(**reject) for reject in value["rejects"])
    return BlockResult(**{**value, "rejects": rejects, "unreadable": tuple(value["unreadable"])})


@contextmanager
def _one_thread(config: CropConfig) -> Iterator[None]:
    """One thread for OpenCV and torch: each CPU has a task already, and other numbers change the last digits."""
    import cv2

    cv2.setNumThreads(1)
    if config.detector != "retinaface":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forget_attempts(out: Path) -> None:
    """Resets the attempts of every block of a folder."""
    for path in out.glob("*.attempts"):
        path.unlink()


def _begin(out: Path, block: Block) -> Path:
    """Counts an attempt at a block: one byte each in a file, which is removed when the block is finished."""
    path = (out / _file_name(block)).with_suffix(".attempts")
    with name_in_errors(path), open(path, "ab") as handle:
        if handle.tell() == MOST_ATTEMPTS:
            raise RuntimeError(
                f"{block.file}, rows {block.start} to {block.stop - 1}: given up, {MOST_ATTEMPTS} workers died of it; "
                "is memory short? (fewer cluster.crop_workers need less)"
            )
        handle.write(b".")
    return path


def _file_name(block: Block) -> str:
    return f"faces-{block.index:05d}.parquet"
