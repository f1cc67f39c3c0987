"""One attempt to bring a file from an object store (s3://, gs://, az://, ...), by way of fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from fer.console import progress
from fer.io.disk import refuse_full_disk
from fer.io.files import FileError
from fer.io.transfer.part import InterruptionError, Part, Version, without_secrets

_RANGE = 8 << 20  # bytes of a request
_VALIDATORS = ("ETag", "etag", "generation", "LastModified", "last_modified", "updated", "mtime", "modified", "created")

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
}


def fetch(url: str, part: Part, name: str) -> None:
    """Brings what is missing of a part, range by range.

    Args:
        url: of any scheme that fsspec knows.
        part: held by the caller.
        name: public form of the URL.

    Raises:
        InterruptionError: it may work later.
        FileError: it will not.
    """
    system, path = open_store(url, name)
    with store_errors(url, name):
        version = _version(system, path, name)
    assert version.total is not None
    have, known = part.usable()
    if known != version:
        part.start(version)
        have = 0
    refuse_full_disk(part.path.parent, version.total - have, name)
    with (
        progress(version.total, f"download {name.rpartition('/')[2]}", "B", have) as bar,
        part.writer(bar) as write,
    ):
        while have < version.total:
            with store_errors(url, name):
                data = system.cat_file(path, start=have, end=min(have + _RANGE, version.total))
            if not data:
                break
            write(data)
            have += len(data)
    with store_errors(url, name):
        system.invalidate_cache()
        changed = _version(system, path, name) != version
    if changed or have != version.total:
        part.empty()
        raise InterruptionError("it changed while it was fetched")


def validator(url: str, name: str, timeout: float) -> str:
    """What tells the version of an object that a store has now from others, without fetching it.

    Args:
        timeout: seconds that the store may take, where its driver knows one.

    Raises:
        InterruptionError, FileError: as `fetch`.
    """
    system, path = open_store(url, name)
    with store_errors(url, name):
        system.invalidate_cache()
        version = _version(system, path, name, timeout)
    return version.validator or str(version.total)


def open_store(url: str, name: str) -> tuple[Any, str]:
    """The store of a URL, and the path in it.

    Raises:
        FileError: no store of that kind, or the package that reads it is not installed.
    """
    import fsspec  # type: ignore[import-untyped]

    scheme = urlsplit(url).scheme
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError:
        package = _PACKAGES.get(scheme, f"for {scheme} that https://filesystem-spec.readthedocs.io names")
        raise FileError(
            f"{name}: to read {scheme}:// the package {package} is needed: `pip install {package}`"
        ) from None
    except ValueError:
        raise FileError(f"{name}: nothing here reads {scheme}://; known are http, https, file, s3, gs and az") from None
    return system, path


@contextmanager
def store_errors(url: str, name: str) -> Iterator[None]:
    """What a store's driver says, as an InterruptionError where it may work later, else as a FileError."""
    try:
        yield
    except (FileError, InterruptionError):
        raise
    except FileNotFoundError:
        raise FileError(f"{name}: no such object") from None
    except IsADirectoryError:
        raise FileError(f"{name}: is a folder, expected one file") from None
    except Exception as error:  # noqa: BLE001 - drivers raise whatever their clients do
        said = without_secrets(str(error) or type(error).__name__, url)
        if isinstance(error, PermissionError) or "credential" in f"{type(error).__name__} {said}".lower():
            raise FileError(
                f"{name}: the store refuses ({said}): set its credentials as its own tools expect them"
            ) from None
        raise InterruptionError(said) from None


def _version(system: Any, path: str, name: str, timeout: float | None = None) -> Version:
    if timeout is not None and system.async_impl:
        from fsspec.asyn import sync  # type: ignore[import-untyped]

        info = sync(system.loop, system._info, path, timeout=timeout)
    else:
        info = system.info(path)
    if info["type"] == "directory" or info.get("size") is None:
        raise IsADirectoryError(path)
    found = next((info[key] for key in _VALIDATORS if info.get(key)), None)
    return Version(source=name, validator=None if found is None else str(found), total=int(info["size"]))
