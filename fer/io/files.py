"""Atomic writes, folders published by rename, checksums, free-space checks and disk-full errors.

No half-written file has its final name: bytes go to a temporary name in the same folder, are synced to disk, and take
their name by rename. A temporary name holds the process id of its writer and where that id counts, which separates the
leftovers of a killed process from the files of a running one, here or on another machine that sees the folder.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeGuard

_SEAL = "sha256_of_the_rest"
_JSON_KINDS = {str: "a string", int: "an integer", list: "a list", dict: "an object"}
_ELSEWHERE_SECONDS = 7 * 86_400.0
_MOVING_SECONDS = 60.0
"""More than lies between the two renames of a publication."""
_RETRY = "run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"make room and {_RETRY}",
    errno.EDQUOT: f"make room, or have the quota raised, and {_RETRY}",
    errno.EFBIG: f"raise the limit of file sizes (ulimit -f) and {_RETRY}",
    errno.EROFS: f"make it writable, or work in another folder, and {_RETRY}",
    errno.EACCES: f"grant this user the permission and {_RETRY}",
    errno.EPERM: f"grant this user the permission and {_RETRY}",
    errno.EIO: "the disk or its network connection is failing: see the kernel's log (dmesg)",
    errno.ENAMETOOLONG: "use shorter names, or a folder higher up",
    errno.EMFILE: f"raise the limit of open files (ulimit -n) and {_RETRY}",
    errno.ENFILE: f"too many files are open on this machine: close some and {_RETRY}",
    errno.ENOTDIR: "a part of this path is not a folder: move it away",
    errno.EEXIST: "this path exists already: move it away",
    errno.EISDIR: "this path is a folder: move it away",
}


class FileError(ValueError):
    """A file that cannot be used; the message names it, what is wrong, and the remedy."""


def below(path: str | Path, root: Path, parent: Path | None = None) -> Path:
    """A user's relative path below `root`, or below `parent` where it exists only there."""
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
def name_in_errors(path: Path) -> Iterator[None]:
    """Adds `path` to a disk-full error: for a write to an open file, the OSError names no file."""
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
        path: final path; its folder is created.
        mode: "wb" or "w" (UTF-8, newlines as written).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary = temporary_path(path)
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


def link_or_copy(file: Path, target: Path) -> None:
    """A finished file under a second name: the same file where the disk can do so, else a copy."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Writes JSON with the same bytes for the same value: sorted keys, two spaces, a newline at the end.

    Args:
        sealed: add a digest of the object, by which `read_json` detects any later change.
    """
    write_atomic(path, json_text({**value, _SEAL: _seal_of(value)} if sealed else value))


def json_text(value: Any) -> str:
    """JSON as `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Reads JSON; FileError names the file where it is missing or malformed, or was altered after it was sealed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # Python refuses numbers of thousands of digits by a ValueError
        raise FileError(f"{path}: not valid JSON ({error})") from None
    if isinstance(value, dict) and _SEAL in value and value.pop(_SEAL) != _seal_of(value):
        raise FileError(f"{path}: altered since it was written; create it again")
    return value


def read_json_if_there(path: Path) -> Any:
    """The same; None where there is no such file."""
    return read_json(path) if path.is_file() else None


def read_object(path: Path, expected: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """The JSON object in a file, which must have these keys with values of these types.

    Raises:
        FileError: as `read_json`, or another structure; one line with the file, the key and the remedy.
    """
    try:
        value = read_json(path)
    except FileError as error:
        raise FileError(f"{error}; {remedy}") from None
    if not isinstance(value, dict):
        raise FileError(f"{path}: holds {value!r:.40}, expected an object; {remedy}")
    for key, kind in expected.items():
        if key not in value:
            raise FileError(f"{path}: missing key {key!r}; {remedy}")
        if type(value[key]) is not kind:
            raise FileError(f"{path}: {key} = {value[key]!r:.40}, expected {_JSON_KINDS[kind]}; {remedy}")
    return value


def _seal_of(value: Any) -> str | None:
    """None for a value that `write_json` refuses: NaN, infinity, lone surrogates."""
    try:
        return hashlib.sha256(json_text(value).encode()).hexdigest()
    except ValueError:
        return None


@contextmanager
def publish_directory(
    final: Path, *, keep: Callable[[Path], Iterable[Path]] = lambda final: (), many_files: bool = False
) -> Iterator[Path]:
    """A folder that appears complete, by rename, and replaces the previous one.

    Yields a temporary folder beside `final`. When the block ends without an error, its files are synced and it takes
    the name. On an error it is removed, and `final` stays as it was. The caller decides whether `final` may be replaced
    (`fer.outputs`).

    Args:
        keep: paths in the previous folder that are copied into the new one.
        many_files: sync everything at once, far quicker for thousands of files than one after the other.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, final.name)
    temporary = temporary_path(final)
    old = temporary.with_name(f"{temporary.name}-old")
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
            # A rename cannot replace a non-empty folder, so the old one is moved aside first. A crash between the two
            # renames leaves no folder, which the next writer repairs, and never a mixture of old and new.
            os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old)
        else:
            os.rename(temporary, final)
    except BaseException as error:
        _name(error, final)
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            with suppress(OSError):  # else the next writer restores it
                os.rename(old, final)
        raise
    fsync_directory(final.parent)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes the leftovers of killed writers of `folder/name`; the files of running processes stay.

    Whether a process of another machine runs cannot be seen: its files stay for a week after their last change. A
    folder that was moved aside for one that never took its name is restored.
    """
    pattern = re.compile(re.escape(f".{name}.tmp-") + r"(\d+)-([0-9a-f]{8})(-old)?")
    for path in sorted(folder.glob(f".{glob.escape(name)}.tmp-*")):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        lost = match[3] and not (folder / name).exists()
        if match[2] == _here():
            dead = int(match[1]) == os.getpid() or not process_is_alive(int(match[1]))
        else:
            dead = time.time() - path.lstat().st_ctime > (_MOVING_SECONDS if lost else _ELSEWHERE_SECONDS)
        if dead and lost:
            os.rename(path, folder / name)
        elif dead:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Beside `path`, for this process to write, until it is complete."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{_here()}")


@cache
def _here() -> str:
    """Where a process id counts: this machine, or container."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def process_is_alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine, under whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# ------------------------------------------------------------------------------------------------ disks


def is_storage_error(error: object) -> TypeGuard[OSError]:
    """Whether an error is due to the disk, a limit or a permission, and not to a defect of the program."""
    return isinstance(error, OSError) and error.errno in _REMEDIES


def storage_error_message(error: OSError) -> str:
    """One line of path, cause and remedy for an error that `is_storage_error`."""
    assert error.errno is not None
    path = error.filename2 or error.filename  # of the two paths of a rename, the second is the one written
    where = f"{path.decode(errors='replace') if isinstance(path, bytes) else path}: " if path is not None else ""
    return f"{where}{os.strerror(error.errno)}; {_REMEDIES[error.errno]}"


@contextmanager
def disk_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turns an OSError while `path` is written into a FileError with the path, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}; {remedy}") from error


def write_all(handle: IO[bytes], data: bytes) -> None:
    """Writes all of `data` to an unbuffered file, which may take it in pieces."""
    rest = memoryview(data)
    while rest:
        rest = rest[handle.write(rest) :]


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """FileError, naming `what`, where the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(f"{what}: needs {needed / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are free")


# ------------------------------------------------------------------------------------------------ content


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def refuse_impostor(path: Path, name: str) -> None:
    """FileError where the file is empty, a web page or a Git LFS pointer instead of the data."""
    with open(path, "rb") as handle:
        head = handle.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise FileError(f"{name}: the file is empty; fetch it again")
    if head[:9].lower() == b"<!doctype" or head[:5].lower() == b"<html":
        raise FileError(f"{name}: this is a web page, not the data; the link probably needs a login: fetch it by hand")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise FileError(f"{name}: this is a Git LFS pointer, not the data; run `git lfs pull` in its repository")
