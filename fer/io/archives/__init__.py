"""Opening archives that strangers made: everything or nothing, and never a byte outside the destination.

    zips.py tars.py    one kind each
    streams.py         what they share
    tree.py            the folder that is filled: names, limits

What is hostile or broken is refused with its reason: names that lead elsewhere or collide, links, devices, encryption,
bombs, cut-off files. Nothing of an archive is believed: sizes are counted as they are written, and the content decides
what kind of archive it is.
"""

from __future__ import annotations

from pathlib import Path

from fer.console import progress
from fer.io.archives.streams import chunks, damage_named, opener_of
from fer.io.archives.tars import HEAD_BYTES, is_tar, refuse_tar_without_end, unpack_tar
from fer.io.archives.tree import DEFAULT, Budget, Limits, Tree
from fer.io.archives.zips import end_of_zip, is_zip, unpack_zip
from fer.io.files import FileError, publish_directory

__all__ = ["Limits", "extract", "refuse_truncated"]


def extract(archive: Path, destination: Path, *, limits: Limits = DEFAULT, encoding: str | None = None) -> None:
    """Unpacks a zip or tar archive (plain, gz, bz2, xz) into a new folder, which appears complete, by rename.

    Only plain files and folders come out, with the permissions of new files: no set-uid bit, no time, no owner.

    Names of a zip that are flagged as UTF-8 are UTF-8. The others have no stated encoding: they are read as `encoding`
    where it is given; else as UTF-8 where all of them are valid UTF-8; else as CP949 (what Korean Windows writes) where
    all are valid CP949; else as CP437, which the zip format names. The same holds for a tar, each name for itself.

    Args:
        archive: the file. Its content decides what it is, not its name.
        destination: folder that does not exist yet. What a killed extraction left beside it is removed.
        limits: against bombs.
        encoding: of names without a stated one, e.g. "cp949".

    Raises:
        FileError: no archive, or one that is damaged, cut off, encrypted or hostile, names in another encoding or an
            encoding that does not exist, or too little disk space; nothing is left of it.
    """
    if destination.exists():
        raise FileError(f"{destination}: exists already; remove it to extract {archive.name} anew")
    if not archive.is_file():
        raise FileError(f"{archive}: {'is a folder, no archive' if archive.is_dir() else 'no such file'}")
    _refuse_unknown(encoding, archive)
    head = _head(archive)
    if not head:
        raise FileError(f"{archive}: the file is empty; fetch it again")
    budget = Budget(str(archive), archive.stat().st_size, limits)
    with publish_directory(destination, many_files=True) as folder:
        tree = Tree(folder, budget)
        with damage_named(archive):
            if is_zip(head):
                unpack_zip(archive, tree, encoding)
            else:
                unpack_tar(archive, head, tree, encoding)
        if not tree.files:
            raise FileError(f"{archive}: the archive holds no file")


def refuse_truncated(path: Path, name: str) -> None:
    """FileError where a file is an archive by its first bytes and has no proper end. Other files pass.

    A compressed file is read through, which also finds damage inside; of a zip and of a plain tar only the end is.

    Args:
        path: the file.
        name: what messages call it.
    """
    head = _head(path)
    with open(path, "rb") as handle:
        if is_zip(head):
            end_of_zip(handle, name)
        elif is_tar(head):
            refuse_tar_without_end(handle, name)
        elif opener := opener_of(head):
            budget = Budget(name, path.stat().st_size, DEFAULT)
            with damage_named(name), progress(None, f"check {path.name}", "B") as bar:
                for chunk in chunks(opener(handle), budget):
                    bar.update(len(chunk))


def _refuse_unknown(encoding: str | None, archive: Path) -> None:
    try:
        " ".encode(encoding or "utf-8")  # the empty text would not be looked at
    except LookupError:
        raise FileError(f"{archive}: no encoding is called {encoding!r}; for Korean Windows it is 'cp949'") from None


def _head(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return handle.read(HEAD_BYTES)
