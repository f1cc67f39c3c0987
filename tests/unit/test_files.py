"""Files are whole or absent, whatever happens while they are written or fetched."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer import files

BODY = bytes(range(256)) * 8192  # 2 MiB


class _Server(BaseHTTPRequestHandler):
    """Serves BODY in the ways that real servers fail."""

    cut_once = True

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/login":
            self._answer(b"<!DOCTYPE html><html>please log in</html>")
            return
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if self.path == "/cut" and type(self).cut_once:
            type(self).cut_once = False
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: len(BODY) // 3])
            return
        self._answer(BODY[start:], 206 if start else 200)

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        _Server.cut_once = True
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/whole", "/redirect", "/cut"])
def test_download_brings_the_whole_file(server: str, tmp_path: Path, path: str) -> None:
    target = tmp_path / "data.bin"
    files.download(server + path, target, sha256_hex=hashlib.sha256(BODY).hexdigest())
    assert target.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("path", "text"), [("/missing", "404"), ("/login", "web page")])
def test_a_failed_download_leaves_no_file(server: str, tmp_path: Path, path: str, text: str) -> None:
    with pytest.raises(files.FileError, match=text):
        files.download(server + path, tmp_path / "data.bin")
    assert not (tmp_path / "data.bin").exists()


def test_a_wrong_digest_is_refused_and_the_old_file_stays(server: str, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(b"old")
    with pytest.raises(files.FileError, match="sha256"):
        files.download(server + "/whole", target, sha256_hex="0" * 64)
    assert target.read_bytes() == b"old"


def test_a_download_goes_on_where_it_was_cut(server: str, tmp_path: Path) -> None:
    (tmp_path / ".data.bin.part").write_bytes(BODY[:1000])
    files.download(server + "/whole", tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_a_lfs_pointer_is_no_data(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer.csv"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(files.FileError, match="git lfs pull"):
        files.download(str(pointer), tmp_path / "out.csv")


def test_urls_are_told_without_secrets() -> None:
    assert files.public_url("https://me:secret@host/a.csv?token=abc") == "https://host/a.csv"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with files.publish_directory(final) as folder:
        (folder / "a").write_text("1")

    def fail_half_way() -> None:
        with files.publish_directory(final) as folder:
            (folder / "b").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in final.iterdir()] == ["a"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"version": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"version": 2})
    monkeypatch.undo()
    assert files.read_json(path) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from fer import files\n"
        "with files.publish_directory(Path(sys.argv[1])) as d:\n"
        "    (d / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with files.publish_directory(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(files.FileError, match=r"m\.json"):
        files.read_json(tmp_path / "m.json")


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_picture_becomes_upright_rgb() -> None:
    red_left = np.zeros((40, 60, 3), np.uint8)
    red_left[:, :30, 0] = 255
    image = Image.fromarray(red_left)
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter: upright is 60 high
    assert files.decode_image(_encoded(image, "PNG")).shape == (40, 60, 3)
    assert files.decode_image(_encoded(image, "JPEG", exif=exif.tobytes())).shape == (60, 40, 3)
    assert files.decode_image(_encoded(image.convert("CMYK"), "JPEG")).shape == (40, 60, 3)
    grey16 = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    assert files.decode_image(_encoded(grey16, "PNG"))[0, 0].tolist() == [156, 156, 156]
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert files.decode_image(_encoded(clear, "PNG"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"hello", "not_an_image")])
def test_what_is_no_picture_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(files.ImageError) as caught:
        files.decode_image(data)
    assert caught.value.reason == reason


def test_a_truncated_picture_and_a_bomb_have_reasons() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    with pytest.raises(files.ImageError) as caught:
        files.decode_image(_encoded(Image.fromarray(noise), "JPEG")[:5000])
    assert caught.value.reason == "truncated"
    bomb = _encoded(Image.new("1", (20000, 20000)), "PNG")
    with pytest.raises(files.ImageError) as caught:
        files.decode_image(bomb)
    assert caught.value.reason == "too_large"
