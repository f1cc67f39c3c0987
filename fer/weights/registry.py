"""The register of published weight files (where each is, what it is, the order of its classes), and their cache.

`published.yaml` beside this module is the register. Files are looked for in the cache and in the user's folders before
the network, and a file whose checksum is wrong is never used. Most authors publish no checksum; then the digest of the
first fetch is kept beside the file, so that later changes are detected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from fer.config import Config, nearest, parse, read_yaml
from fer.environment import environment
from fer.io.files import FileError, below, read_object, sha256, write_json
from fer.io.transfer import download
from fer.labels import SPACES, LabelSpace

_RECORD = "fetched.json"


class PublishedFile(Config):
    """One file. At least one of `url` (answers with the file) and `page` (where a person finds it) is given."""

    name: str
    url: str | None = None
    page: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{8,64}$", description="whole, or its first digits")
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$", description="where its authors give that alone")

    def matches(self, path: Path) -> bool | None:
        """Whether a file has the published checksum; None where there is none."""
        if self.sha256 is not None:
            return sha256(path).startswith(self.sha256)
        if self.md5 is None:
            return None
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "md5").hexdigest() == self.md5

    @property
    def checksum(self) -> str | None:
        """For people."""
        return f"sha256 {self.sha256}" if self.sha256 else f"md5 {self.md5}" if self.md5 else None

    @model_validator(mode="after")
    def _is_somewhere(self) -> PublishedFile:
        if not (self.url or self.page):
            raise ValueError("neither url nor page is given")
        return self


class PublishedWeights(Config):
    """An entry of the register; the keys are explained at the top of published.yaml."""

    model: str
    description: str
    source: str
    licence: str
    dataset: str
    labels: list[str] | Literal["unknown", "none"]
    evidence: str | None = None
    accuracy: float | None = Field(default=None, gt=0, le=100)
    protocol: str | None = None
    input: str
    channels: Literal["rgb", "bgr"] = "rgb"
    files: list[PublishedFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_complete(self) -> PublishedWeights:
        if isinstance(self.labels, list):
            label_space(self.labels)
        if (self.labels == "none") != (self.evidence is None):
            raise ValueError("evidence belongs to labels that are known or unknown, and to no others")
        if (self.accuracy is None) != (self.protocol is None):
            raise ValueError("accuracy and protocol belong together")
        return self


class _Register(Config):
    weights: dict[str, PublishedWeights]


@cache
def register() -> dict[str, PublishedWeights]:
    """The register, by name."""
    with as_file(files("fer.weights") / "published.yaml") as path:
        return parse(_Register, {"weights": read_yaml(path)}, path.name).weights


def entry(name: str) -> PublishedWeights:
    """The entry of that name; ValueError lists the known ones."""
    known = register()
    if name not in known:
        raise ValueError(f"no published weights {name!r}{nearest(name, list(known))}; known: {', '.join(known)}")
    return known[name]


def label_space(labels: list[str] | tuple[str, ...]) -> LabelSpace:
    """The space that the labels are an order of; ValueError where they are of none."""
    for space in SPACES.values():
        if sorted(space.labels) == sorted(labels):
            return space
    spaces = "; ".join(", ".join(space.labels) for space in SPACES.values())
    raise ValueError(
        f"labels {', '.join(labels)}: not an order of the classes of any label space. The spaces: {spaces}"
    )


# ------------------------------------------------------------------------------------------------ cache


def cache_folder() -> Path:
    """The folder of fetched weights: `weights` in FER_CACHE, or else in the user's own cache."""
    return environment().cache.expanduser() / "weights"


def find(name: str, *, folder: Path | None = None) -> Path:
    """The file to load of published weights that were fetched (the index, or the xml, of several).

    Args:
        folder: of the files; None is their place in the cache.

    Raises:
        FileError: not fetched, or not completely; it names the command.
    """
    listed = entry(name).files
    folder = folder or cache_folder() / name
    for file in listed:
        if not (folder / file.name).is_file():
            raise FileError(f"{folder / file.name}: not there; run `fer weights pull {name}`")
    return folder / listed[0].name


def missing_weights(weights: Iterable[str], root: Path) -> Iterator[str]:
    """The weights that are not there, each with its remedy; a name of `fer weights list`, or a path below `root`."""
    for source in weights:
        try:
            if source not in register() and not below(source, root).is_file():
                raise FileError(f"{source}: not there")
            if source in register():
                find(source)
        except FileError as error:
            yield f"weights {source}: {str(error).partition('; ')[2] or 'put the file there'}"


def pull(name: str, *, given: Path | None = None, to: Path | None = None) -> list[Path]:
    """The files of published weights, all present and with the right checksums; fetched where they are not.

    Args:
        given: a folder (or, for a single file, the file) of the user's, searched before the network is used.
        to: the folder for the files; None is their place in the cache.

    Raises:
        FileError: it cannot be fetched, or its checksum is wrong; the message says how to proceed by hand.
    """
    listed = entry(name).files
    folder = to or cache_folder() / name
    if given is not None and not given.exists():
        raise FileError(f"{given}: no such file or folder")
    for file in listed:
        target = folder / file.name
        if target.is_file() and _is_whole(file, target) is not False:
            continue
        near = [cache_folder() / name / file.name] if to else []
        if given is not None:
            near += [given] if given.is_file() and len(listed) == 1 else sorted(given.rglob(file.name))
        _fetch(name, file, target, [path for path in near if path.is_file()])
        if to is None:
            write_json(folder / _RECORD, _recorded(folder) | {file.name: sha256(target)})
    return [folder / file.name for file in listed]


def _fetch(name: str, file: PublishedFile, target: Path, near: list[Path]) -> None:
    for path in near:
        if file.matches(path) is not False:
            download(str(path), target)
            return
    by_hand = f"`fer weights pull {name} --from FOLDER` takes it from a folder of yours"
    if near:
        raise FileError(f"{near[0]}: not the published {file.name}: its checksum is not {file.checksum}")
    if file.url is None:
        raise FileError(f"{file.name}: has no address for a direct download. Fetch it from {file.page}; {by_hand}")
    digest = file.sha256 if file.sha256 and len(file.sha256) == 64 else None
    fetched = target if digest or not file.checksum else target.with_name(f".{target.name}.unchecked")
    try:
        download(file.url, fetched, sha256_hex=digest)
        if fetched != target:
            if not file.matches(fetched):
                fetched.unlink()
                raise FileError(f"{file.url}: its checksum is not {file.checksum}: another or a damaged file")
            os.replace(fetched, target)
    except FileError as error:
        raise FileError(f"{error}. Fetch {file.name} by hand from {file.page or file.url}; {by_hand}") from None


def _is_whole(file: PublishedFile, path: Path) -> bool | None:
    """Whether a file is the published one, or else the one that was fetched; None where neither is known."""
    if (published := file.matches(path)) is not None:
        return published
    recorded = _recorded(path.parent).get(path.name)
    return None if recorded is None else sha256(path) == recorded


def _recorded(folder: Path) -> dict[str, str]:
    """Digests of the files in a folder as they were fetched."""
    return read_object(folder / _RECORD, {}, "remove it") if (folder / _RECORD).is_file() else {}


class Finding(NamedTuple):
    """A file in the cache: `state` is "ok", "as fetched" (no checksum is published), "corrupt" or "unknown"."""

    path: Path
    state: Literal["ok", "as fetched", "corrupt", "unknown"]


def verify() -> Iterator[Finding]:
    """Reads every file of the cache again and compares it with its checksum."""
    folder = cache_folder()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == _RECORD or path.name.startswith("."):  # a broken transfer's part
            continue
        name = path.relative_to(folder).parts[0]
        listed = register()[name].files if name in register() else []
        file = {folder / name / file.name: file for file in listed}.get(path)
        whole = _is_whole(file, path) if file else None
        if file is None or whole is None:
            yield Finding(path, "unknown")
        elif not whole:
            yield Finding(path, "corrupt")
        else:
            yield Finding(path, "ok" if file.checksum else "as fetched")
