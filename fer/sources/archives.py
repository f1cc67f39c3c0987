"""The user's folder, archive or URL, and archives within these, as one folder to read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fer.hashing import stable_hash
from fer.io.files import FileError, sha256
from fer.sources.layout import list_files

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def fetch(path: str, cache: Path, *, sha256_hex: str | None = None) -> Path:
    """The user's file or folder at a path, or the file at a URL, downloaded to `cache`.

    Raises:
        FileError: absent, or a file of another digest.
    """
    if "://" in path:
        from fer.io.transfer import download

        local = cache / public_name(path)
        if sha256_hex or not local.exists():
            download(path, local, sha256_hex=sha256_hex)
        return local
    local = Path(path)
    if not local.exists():
        raise FileError(f"{path}: no such file or folder; set the key `path` of this dataset to where it is")
    if sha256_hex and local.is_file() and (digest := sha256(local)) != sha256_hex.lower():
        raise FileError(f"{path}: sha256 is {digest}, expected {sha256_hex}: another or a damaged file")
    return local


def open_tree(path: str | Sequence[str], cache: Path, *, sha256_hex: str | None = None) -> Path:
    """The folder that holds a layout: the user's own, or one in `cache` with the content of an archive.

    Args:
        path: folder, archive or URL of one; of several, each has a folder of its own name in the one returned.
        cache: keeps what was downloaded and extracted, so that the same call resumes where the last was stopped.
        sha256_hex: of a single archive.

    Raises:
        FileError: absent, not an archive, a damaged or a hostile one.
    """
    if not isinstance(path, str):
        joined = cache / "parts"
        joined.mkdir(parents=True, exist_ok=True)
        for one in path:
            link = joined / _stem(public_name(one))
            link.unlink(missing_ok=True)
            link.symlink_to(open_tree(one, cache / f"of-{link.name}").resolve(), target_is_directory=True)
        return joined
    archive = fetch(path, cache, sha256_hex=sha256_hex)
    if archive.is_dir():
        return archive
    from fer.io.archives import extract

    found = archive.stat()
    tree = cache / f"{_stem(public_name(path))}-{stable_hash(found.st_size, found.st_mtime_ns, bits=32):08x}.tree"
    if not tree.is_dir():  # an archive that was replaced meanwhile has another name
        try:
            extract(archive, tree)
        except FileError:
            if "://" in path:
                archive.unlink()  # the next attempt must download it again
            raise
    return tree


def open_nested(
    tree: Path, cache: Path, *, opens: Callable[[str], bool] = lambda _: True, encoding: str | None = None
) -> Path:
    """A folder as if the archives in it were extracted in place, each into a folder of its name.

    The folder itself is not written to: what is extracted stays in `cache`, with a tree of links to it and to the
    rest. Archives within these archives are opened too. An archive beside a folder of its name counts as extracted.

    Args:
        opens: which archives to open, by their paths.
        encoding: of the names in archives that do not state it; None: `fer.io.archives.extract` detects it.

    Returns:
        `tree` where it holds no such archive.

    Raises:
        FileError: a damaged or a hostile archive.
    """
    from fer.io.archives import extract

    opened = tree
    for level in ("outer", "inner"):
        extracted: dict[str, Path] = {}
        for archive in list_files(opened, _ENDINGS):
            if not opens(archive) or (opened / _stem(archive)).is_dir():
                continue
            about = (opened / archive).stat()
            target = cache / f"unpacked-{stable_hash(archive, about.st_size, about.st_mtime_ns):016x}"
            if not target.is_dir():
                extract(opened / archive, target, encoding=encoding)
            extracted[archive] = target
        if not extracted:
            break
        links = cache / f"links-{level}"
        if links.is_dir():
            shutil.rmtree(links)  # which removes links, never what they lead to
        _link(opened, links, "", extracted)
        opened = links
    return opened


def public_name(path: str) -> str:
    """The last part of a path or URL; "data" where that is not a file's name."""
    name = Path(unquote(urlsplit(path).path) if "://" in path else path).name
    return "data" if name in ("", "..") else name


def _link(source: Path, target: Path, prefix: str, extracted: Mapping[str, Path]) -> None:
    """A folder of links to what `source` holds, with what was extracted in the places of the archives."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        relative = f"{prefix}{path.name}"
        if relative in extracted:
            (target / _stem(path.name)).symlink_to(extracted[relative].resolve(), target_is_directory=True)
        elif any(archive.startswith(f"{relative}/") for archive in extracted):
            _link(path, target / path.name, f"{relative}/", extracted)
        else:
            (target / path.name).symlink_to(path.resolve())


def _stem(name: str) -> str:
    """A file's name without the endings of archives."""
    return re.sub(r"\.(zip|tar|tgz|tbz2|txz|tar\.(gz|bz2|xz))$", "", name, flags=re.IGNORECASE)
