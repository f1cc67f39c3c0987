"""Published pictures in a few Parquet files, byte for byte, with what is published of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer.console import progress
from fer.shards.schema import Split
from fer.sources.base import AnnotatedFace, Reject

# A block of pictures is full at either; fixed, so that the files of data/raw and data/faces never depend on who cut.
BLOCK_ROWS, BLOCK_BYTES = 512, 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture of a layout.

    Attributes:
        key: unique in the dataset and the same wherever the layout lies: usually `path` without what only packaging
            added. Put into NFC here.
        path: of the file, relative to the layout, as it is spelt on disk.
        split: as published.
        faces: what is published of it.
        is_crop: whether the picture shows one face alone, cut out already.
    """

    key: str
    path: str
    split: Split
    faces: tuple[AnnotatedFace, ...]
    is_crop: bool


def pack(
    entries: Sequence[Entry | Reject], read: Callable[[Entry], bytes], out: Path, title: str
) -> tuple[list[tuple[str, int]], list[Reject]]:
    """Writes pictures-*.parquet into `out`.

    Args:
        read: the bytes of a picture; OSError, or ValueError that says what is wrong, where there are none.
        title: of the dataset, for the progress bar.

    Returns:
        name and number of rows of each file, and what could not be packed.
    """
    from fer.shards.schema import picture_schema
    from fer.shards.table import write_table

    blocks: list[tuple[str, int]] = []
    rejects: list[Reject] = []
    rows: list[dict[str, Any]] = []
    size = 0

    def flush() -> None:
        nonlocal rows, size
        file = f"pictures-{len(blocks):05d}.parquet"
        write_table(out / file, rows, picture_schema(), rows_per_group=64)
        blocks.append((file, len(rows)))
        rows, size = [], 0

    with progress(len(entries), f"pack {title}", "picture") as bar:
        for entry in entries:
            row = _packed(entry, read)
            if row["reason"] is not None:
                rejects.append(
                    Reject(sample_id=row["key"], reason=row["reason"], detail=row["detail"], origin=row["path"])
                )
            rows.append(row)
            size += len(row["image"] or b"")
            if len(rows) == BLOCK_ROWS or size >= BLOCK_BYTES:
                flush()
            bar.update()
    if rows:
        flush()
    return blocks, rejects


def _packed(entry: Entry | Reject, read: Callable[[Entry], bytes]) -> dict[str, Any]:
    """A row of `fer.shards.schema.picture_schema`."""
    empty = dict.fromkeys(("split", "image", "is_crop", "faces", "reason", "detail"))
    if isinstance(entry, Reject):
        said = {"reason": entry.reason, "detail": nfc(entry.detail)}
        return empty | {"key": nfc(entry.sample_id), "path": nfc(entry.origin)} | said
    row = empty | {"key": nfc(entry.key), "path": nfc(entry.path)}
    try:
        image = read(entry)
    except FileNotFoundError:
        return row | {"reason": "missing_file", "detail": "the annotations name it, and it is not there"}
    except OSError as error:
        return row | {"reason": "unreadable_file", "detail": error.strerror or str(error)}
    except ValueError as error:
        return row | {"reason": "unreadable_file", "detail": str(error)}
    faces = [
        {
            "box": face.box and list(face.box),
            "landmarks": face.landmarks and [value for point in face.landmarks for value in point],
            "label": face.label,
            "clean_label": face.clean_label,
            "subject": face.subject,
            "pose": face.pose and list(face.pose),
            "distribution": face.distribution and list(face.distribution),
        }
        for face in entry.faces
    ]
    return row | {"split": entry.split, "image": image, "is_crop": entry.is_crop, "faces": faces}


def unpacked(face: Mapping[str, Any]) -> AnnotatedFace:
    """A face as it stands in a packed row."""
    flat = face["landmarks"]
    return AnnotatedFace(
        box=face["box"] and tuple(face["box"]),
        landmarks=flat and tuple(zip(flat[::2], flat[1::2], strict=True)),
        label=face["label"],
        clean_label=face["clean_label"],
        subject=face["subject"],
        pose=face["pose"] and tuple(face["pose"]),
        distribution=face["distribution"] and tuple(face["distribution"]),
    )


def nfc(text: str) -> str:
    """The one spelling of names that differ in how accents and Korean syllables are encoded (macOS unzips to NFD).

    Bytes of a name that are no text become "?".
    """
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
