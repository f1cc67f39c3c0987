"""Where a detector's weights lie: a file of the user's, or what `fer weights pull` brought."""

from __future__ import annotations

from pathlib import Path

from fer.config import nearest
from fer.io.files import FileError, below, refuse_impostor, sha256
from fer.weights import registry

PUBLISHED = {"retinaface": "retinaface_mobilenet025", "yunet": "yunet_2023mar"}
"""Detector -> its entry in the register of published weights."""


def locate(name: str, given: str | None, root: Path, parent: Path | None = None) -> Path:
    """The weights of a detector, which are what they should be by their sha256.

    Args:
        name: of the detector.
        given: their file, or a folder somewhere below which it lies, relative to `root`; None is the cache of
            `fer weights pull`.
        root: the project's folder.
        parent: where what `root` lacks is looked for.

    Raises:
        FileError: not there, or another file; it says how to get the right one.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"no weights of detector {name!r}{nearest(name, list(PUBLISHED))}; known: {', '.join(PUBLISHED)}"
        )
    published = PUBLISHED[name]
    (file,) = registry.entry(published).files
    if given is None:
        path = registry.find(published)
    else:
        path = below(Path(given).expanduser(), root, parent)
        if path.is_dir():
            path = next(iter(sorted(path.rglob(file.name))), path / file.name)
    remedy = f"`fer weights pull {published}` brings {file.name}, --from FOLDER where there is no network"
    if not path.is_file():
        raise FileError(f"{path}: no weights of {name} there; {remedy}")
    try:
        refuse_impostor(path, str(path))
    except FileError as error:
        raise FileError(f"{error}; {remedy}") from None
    if sha256(path) != file.sha256:
        raise FileError(f"{path}: not the published {file.name}: sha256 is another than {file.sha256}; {remedy}")
    return path
