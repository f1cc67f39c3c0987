"""Files that are whole or absent: atomic writes, whole folders by rename, checksums, downloads, safe decoding.

Nothing here leaves a half-written file under its final name: bytes go to a temporary name in the same folder, are
synced to disk, and take their name by rename. A temporary name carries the process id of its writer, so that what a
killed process left behind can be told from what a living one is writing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from fer.console import log, progress

_CHUNK = 1 << 20
# 100 megapixels decode to 300 MB of RGB; no face photograph needs more, and a bomb of a few bytes asks for far more.
MAX_PIXELS = 100_000_000


class FileError(ValueError):
    """A file that cannot be used; the message names it, what is wrong, and the remedy."""


class ImageError(ValueError):
    """Bytes that are no usable picture; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


# ------------------------------------------------------------------------------------------------ writing


def fsync_directory(path: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file by rename."""
    with open_atomic(path, "wb" if isinstance(data, bytes) else "w") as handle:
        handle.write(data)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that is the same bytes for the same value: sorted keys, two spaces, a newline at the end."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; FileError names the file where it is absent or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not valid JSON ({error})") from None


@contextmanager
def publish_directory(final: Path) -> Iterator[Path]:
    """A folder that appears complete, by rename, replacing what stood there.

    Yields a temporary folder beside `final`; when the block ends without an error its files are synced and it takes
    the name. On an error it is removed and what stood at `final` stays as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, final.name)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(Path(folder) / name, "rb") as handle:
                    os.fsync(handle.fileno())
            fsync_directory(Path(folder))
        if final.exists():
            # A rename cannot replace a full folder: move the old one aside first, so that a crash between the two
            # renames leaves a folder missing, which is noticed, and never one that is half old and half new.
            old = final.parent / f".{final.name}.tmp-{os.getpid()}-old"
            os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old)
        else:
            os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(final.parent)


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed writers of `folder/name` left behind; what a living process is writing stays."""
    pattern = re.compile(re.escape(f".{name}.tmp-") + r"(\d+)(-old)?")
    for path in folder.glob(f".{_escape_glob(name)}.tmp-*"):
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
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


# ------------------------------------------------------------------------------------------------ download


def download(source: str, destination: Path, *, sha256_hex: str | None = None) -> None:
    """Brings one file from a URL or a local path; it has its name only when it is whole and verified.

    A broken transfer goes on where it stopped (HTTP Range) when the same source is asked for again. An HTML page or a
    Git LFS pointer in place of the data is refused.

    Args:
        source: http(s) URL, file URL or path.
        destination: final path of the file.
        sha256_hex: expected digest, or None when the publisher gives none.

    Raises:
        FileError: unreachable, cut off, of another digest, or no data at all.
    """
    if destination.exists() and sha256_hex and sha256(destination) == sha256_hex:
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.parent / f".{destination.name}.part"
    name = public_url(source)
    if urlsplit(source).scheme in ("http", "https"):
        _fetch(source, part, name)
    else:
        path = Path(urllib.request.url2pathname(urlsplit(source).path) if source.startswith("file:") else source)
        _copy(path.expanduser(), part)
    try:
        refuse_impostor(part, name)
        if sha256_hex and (found := sha256(part)) != sha256_hex.lower():
            raise FileError(f"{name}: sha256 is {found}, expected {sha256_hex}: another or a damaged file")
    except FileError:
        part.unlink()
        raise
    with open(part, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(part, destination)
    fsync_directory(destination.parent)


def public_url(url: str) -> str:
    """A URL without user name, password and query, fit for logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.scheme else url


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


def _copy(path: Path, part: Path) -> None:
    if not path.is_file():
        raise FileError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    with open(path, "rb") as reader, open(part, "wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)


def _fetch(url: str, part: Path, name: str, attempts: int = 4) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _fetch_once(url, part, name)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file: it belongs to another version
                part.unlink(missing_ok=True)
            elif error.code not in (408, 425, 429, 500, 502, 503, 504):
                raise FileError(f"{name}: the server answered {error.code} {error.reason}") from None
            problem = f"the server answered {error.code}"
        except (OSError, EOFError) as error:
            problem = str(error) or type(error).__name__
        log.warning("%s: %s (attempt %d of %d)", name, problem, attempt, attempts)
    raise FileError(f"{name}: {problem}; run the same command again to go on from {part.name}")


def _fetch_once(url: str, part: Path, name: str) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fer"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        resumed = have > 0 and response.status == 206
        length = response.headers.get("Content-Length")
        total = (have if resumed else 0) + int(length) if length else None
        with (
            open(part, "ab" if resumed else "wb") as writer,
            progress(total, f"download {destination_label(name)}", "B", have if resumed else 0) as bar,
        ):
            while chunk := response.read(_CHUNK):
                writer.write(chunk)
                bar.update(len(chunk))
    if total is not None and (size := part.stat().st_size) < total:
        raise EOFError(f"connection closed after {size} of {total} bytes")


def destination_label(name: str) -> str:
    """The last part of a URL or path, for a progress bar."""
    return name.rstrip("/").rpartition("/")[2] or name


# ------------------------------------------------------------------------------------------------ pictures


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """The one way from foreign picture bytes to pixels.

    EXIF orientation is applied; grey, palette, CMYK and 16-bit pictures become RGB; of several frames the first counts;
    transparency is laid over white.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: reason "empty", "not_an_image", "truncated" or "too_large".
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise ImageError("empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError("too_large", f"{image.width} x {image.height} pixels, at most {MAX_PIXELS}")
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _to_rgb(upright)
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            if isinstance(error, Image.DecompressionBombError):
                raise ImageError("too_large", str(error)) from None
            # Pillow's own text holds a memory address, which would differ on every run.
            raise ImageError("not_an_image", f"no known picture format in {len(data)} bytes") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError("truncated", str(error)) from None


def _to_rgb(image: Any) -> npt.NDArray[np.uint8]:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit grey spans 0..65535 (PIL calls it I;16 or I), float TIFF 0..1 or 0..255: scale to 8 bits, never clip.
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0 if values.max(initial=0) <= 255.0 else 65535.0
        grey = np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
