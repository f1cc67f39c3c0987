"""Files that are whole or absent: atomic writes, whole folders by rename, checksums.

Nothing here leaves a half-written file under its final name: bytes go to a temporary name in the same folder, are
synced to disk, and take their name by rename. A temporary name carries the process id of its writer, so that what a
killed process left behind can be told from what a living one is writing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_SEAL = "sha256_of_the_rest"
_JSON_KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "keys and values"}


class FileError(ValueError):
    """A file that cannot be used; the message names it, what is wrong, and the remedy."""


def below(path: str | Path, root: Path, parent: Path | None = None) -> Path:
    """A relative path of the user's below `root`, or below `parent` where it is there alone."""
    found = root / path
    return parent / path if parent is not None and not found.exists() else found


# ------------------------------------------------------------------------------------------------ writing


def fsync_directory(path: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Where a disk refuses what is written to an open file, the OSError names none: here it gets `path`."""
    try:
        yield
    except OSError as error:
        _name(error, path)
        raise


def _name(error: BaseException, path: Path) -> None:
    of_writing = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    if isinstance(error, OSError) and error.filename is None and error.errno in of_writing:
        error.filename = str(path)


@contextmanager
def open_atomic(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes its name only when the block ends without an error.

    Args:
        path: final path; its folder is made.
        mode: "wb" or "w" (UTF-8, newlines as written).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as handle:  # type: ignore[call-overload]
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        _name(error, path)
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file by rename."""
    with open_atomic(path, "wb" if isinstance(data, bytes) else "w") as handle:
        handle.write(data)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Writes JSON that is the same bytes for the same value: sorted keys, two spaces, a newline at the end.

    Args:
        sealed: with a digest of all the rest in it, by which `read_json` finds any later change; for an object.
    """
    write_atomic(path, _json_text({**value, _SEAL: _seal_of(value)} if sealed else value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Reads JSON; FileError names the file where it is absent or broken, or was sealed and is not what was sealed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # Python refuses numbers of thousands of digits by a ValueError
        raise FileError(f"{path}: not valid JSON ({error})") from None
    if isinstance(value, dict) and _SEAL in value and value.pop(_SEAL) != _seal_of(value):
        raise FileError(f"{path}: altered since it was written; make it anew")
    return value


def read_object(path: Path, expected: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """The JSON object in a file, which has these keys with values of these types.

    Raises:
        FileError: as `read_json`, or another content; one line with the file, the key and the remedy.
    """
    try:
        value = read_json(path)
    except FileError as error:
        raise FileError(f"{error}; {remedy}") from None
    if not isinstance(value, dict):
        raise FileError(f"{path}: holds {value!r:.40}, expected keys and values; {remedy}")
    for key, kind in expected.items():
        if key not in value:
            raise FileError(f"{path}: lacks the key {key!r}; {remedy}")
        if type(value[key]) is not kind:
            raise FileError(f"{path}: {key} = {value[key]!r:.40}, expected {_JSON_KINDS[kind]}; {remedy}")
    return value


def _seal_of(value: Any) -> str | None:
    """None for what `write_json` does not write: other constants than JSON's, halves of characters."""
    try:
        return hashlib.sha256(_json_text(value).encode()).hexdigest()
    except ValueError:
        return None


@contextmanager
def publish_directory(
    final: Path, *, keep: Callable[[Path], Iterable[Path]] = lambda final: (), many_files: bool = False
) -> Iterator[Path]:
    """A folder that appears complete, by rename, replacing what stood there.

    Yields a temporary folder beside `final`; when the block ends without an error its files are synced and it takes
    the name. On an error it is removed and what stood at `final` stays as it was. Whether that may be replaced is for
    the caller to know (`fer.outputs`).

    Args:
        keep: names what stood in the old folder and shall stand in the new one too.
        many_files: sync everything at once, which for thousands of files is far quicker than one after the other.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, final.name)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    old = final.parent / f".{final.name}.tmp-{os.getpid()}-old"
    temporary.mkdir()
    try:
        yield temporary
        for path in keep(final) if final.is_dir() else ():
            _copy(path, temporary / path.name)
        if many_files:
            os.sync()
        for folder, _, names in () if many_files else os.walk(temporary):
            for path in (Path(folder, name) for name in names):
                if not path.is_symlink():
                    with open(path, "rb") as handle:
                        os.fsync(handle.fileno())
            fsync_directory(Path(folder))
        if final.exists():
            # A rename cannot replace a full folder: move the old one aside first, so that a crash between the two
            # renames leaves a folder missing, which the next writer mends, and never one that is half old and half new.
            os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old)
        else:
            os.rename(temporary, final)
    except BaseException as error:
        _name(error, final)
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            with suppress(OSError):  # else the next writer brings it back
                os.rename(old, final)
        raise
    fsync_directory(final.parent)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed writers of `folder/name` left behind; what a living process is writing stays.

    A folder that was moved aside for one that never took its name comes back.
    """
    pattern = re.compile(re.escape(f".{name}.tmp-") + r"(\d+)(-old)?")
    for path in sorted(folder.glob(f".{_escape_glob(name)}.tmp-*")):
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            if match[2] and not (folder / name).exists():
                os.rename(path, folder / name)
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _escape_glob(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def refuse_impostor(path: Path, name: str) -> None:
    """FileError where a web page or a Git LFS pointer stands in place of the data, or nothing at all."""
    with open(path, "rb") as handle:
        head = handle.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise FileError(f"{name}: the file is empty; fetch it again")
    if head[:9].lower() == b"<!doctype" or head[:5].lower() == b"<html":
        raise FileError(f"{name}: this is a web page, not the data; the link probably needs a login: fetch it by hand")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise FileError(f"{name}: this is a Git LFS pointer, not the data; run `git lfs pull` where it came from")
