"""What the crop stage rejected: how much of the data, what each reason means, and an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer.faces.select import REASONS
from fer.io.files import read_object
from fer.shards.manifest import Manifest

_IMAGES = {
    "empty": "a file without a byte",
    "not_an_image": "not an image in any known format",
    "not_a_file": "no file where an image should be",
    "unreadable": "the file cannot be read",
    "truncated": "the file ends early",
    "damaged": "the file contradicts its own checksums or structure",
    "too_large": "more pixels or bytes than are decoded",
    "unsupported": "a format that there is no decoder for",
    "missing_file": "the annotations name a file that is not there",
    "unreadable_file": "the file could not be read when the dataset was packed",
}
_OTHERWISE = "the dataset's reader cannot use this row; its detail says why"


@dataclass(frozen=True, kw_only=True)
class RejectLine:
    """One reason for rejections.

    Attributes:
        fraction: of all that was rejected or kept, 0..1.
        example, detail: one of them and its detail; None where the faces are not available.
        meaning: in words.
    """

    reason: str
    count: int
    fraction: float
    example: str | None
    detail: str | None
    meaning: str


def reject_lines(manifest: Manifest, faces: Path) -> tuple[RejectLine, ...]:
    """The rejections that a manifest counts, the most frequent first.

    Args:
        faces: data/faces/<dataset>; used where it is there and is what the shards were made of.
    """
    examples = _examples(manifest, faces)
    everything = sum(part.rows for part in manifest.parts) + sum(manifest.rejects.values())
    lines = [
        RejectLine(
            reason=reason,
            count=count,
            fraction=count / everything,
            example=examples.get(reason, {}).get("sample_id"),
            detail=examples.get(reason, {}).get("detail"),
            meaning=REASONS.get(reason) or _IMAGES.get(reason) or _OTHERWISE,
        )
        for reason, count in manifest.rejects.items()
    ]
    return tuple(sorted(lines, key=lambda line: (-line.count, line.reason)))


def _examples(manifest: Manifest, faces: Path) -> Mapping[str, Mapping[str, Any]]:
    if not (faces / "faces.json").is_file():
        return {}
    remedy = f"run `dvc repro -f crop@{faces.name}`"
    about = read_object(faces / "faces.json", {"source_digest": str, "rejects": dict}, remedy)
    same = (about["source_digest"], about["rejects"]) == (manifest.source_digest, dict(manifest.rejects))
    found: Mapping[str, Mapping[str, Any]] = about.get("reject_examples", {}) if same else {}
    return found
