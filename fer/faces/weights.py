"""Published weights of the detectors. Not in `fer.faces.detect`, because it decides no crop (`fer.stages.closure`)."""

from __future__ import annotations

from pathlib import Path

from fer.config import nearest
from fer.io.files import FileError, below, refuse_impostor, sha256
from fer.weights import registry

PUBLISHED = {"retinaface": "retinaface_mobilenet025", "yunet": "yunet_2023mar"}
"""Detector -> its entry in the register of published weights."""


def locate(name: str, given: str | None, root: Path, parent: Path | None = None) -> Path:
    """The published weights of a detector, checked by their sha256.

    Args:
        name: of the detector.
        given: their file, or a folder with the file somewhere below it, relative to `root`; None is the cache of
            `fer weights pull`.
        root: the project's folder.
        parent: where to look for what `root` lacks.

    Raises:
        FileError: missing, or another file; it says how to get the right one.
    """
    if name not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise ValueError(f"no weights of detector {name!r}{nearest(name, list(PUBLISHED))}; known: {known}")
    published = PUBLISHED[name]
    (file,) = registry.entry(published).files
    if given is None:
        path = registry.find(published)
    else:
        path = below(Path(given).expanduser(), root, parent)
        if path.is_dir():
            path = next(iter(sorted(path.rglob(file.name))), path / file.name)
    remedy = f"`fer weights pull {published}` downloads {file.name}; without a network, use --from FOLDER"
    if not path.is_file():
        raise FileError(f"{path}: no weights of {name} there; {remedy}")
    try:
        refuse_impostor(path, str(path))
    except FileError as error:
        raise FileError(f"{error}; {remedy}") from None
    if sha256(path) != file.sha256:
        raise FileError(f"{path}: not the published {file.name}: sha256 is not {file.sha256}; {remedy}")
    return path
