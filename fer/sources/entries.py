"""What readers of folders and tables share: where in a folder the layout begins, one labelled face, a split by hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fer.hashing import stable_hash
from fer.io.files import FileError
from fer.shards.schema import Split
from fer.sources.base import AnnotatedFace

_LITTER = frozenset({"__macosx", "@eadir"})


def folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, links to folders too, without hidden ones and what systems leave behind."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name.casefold() not in _LITTER
    )


def find_layout(tree: Path, holds: Callable[[Path], bool], depth: int = 3) -> Path | None:
    """The folder of `tree` for which `holds`, looked for from the top down; None where there is none.

    Raises:
        FileError: several on the same level: it cannot be told which is meant.
    """
    level = [tree]
    for _ in range(depth + 1):
        found = [folder for folder in level if holds(folder)]
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(tree)) for folder in found[:4])
            raise FileError(f"{tree}: the layout lies in several folders ({names}); set `path` to one of them")
        if found:
            return found[0]
        level = [inner for folder in level for inner in folders(folder)]
    return None


def hashed_split(name: str, test_fraction: float) -> Split:
    """Test or train, by a hash of a subject or a sample alone: who is in test stays there whatever is added."""
    return "test" if stable_hash("test split", name) < test_fraction * 2**64 else "train"


def one_face(
    label: int,
    *,
    subject: str | None = None,
    box: tuple[float, float, float, float] | None = None,
    landmarks: tuple[tuple[float, float], ...] | None = None,
    distribution: tuple[float, ...] | None = None,
) -> tuple[AnnotatedFace]:
    """The faces of a picture that shows one."""
    face = AnnotatedFace(
        box=box, landmarks=landmarks, label=label, clean_label=label, subject=subject, distribution=distribution
    )
    return (face,)


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights as parts of 1."""
    total = sum(weights)
    return tuple(weight / total for weight in weights)
