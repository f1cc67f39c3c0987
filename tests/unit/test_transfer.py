"""What is fetched is whole and verified, or has no name."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fer import files, transfer

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
    transfer.download(server + path, target, sha256_hex=hashlib.sha256(BODY).hexdigest())
    assert target.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("path", "text"), [("/missing", "404"), ("/login", "web page")])
def test_a_failed_download_leaves_no_file(server: str, tmp_path: Path, path: str, text: str) -> None:
    with pytest.raises(files.FileError, match=text):
        transfer.download(server + path, tmp_path / "data.bin")
    assert not (tmp_path / "data.bin").exists()


def test_a_wrong_digest_is_refused_and_the_old_file_stays(server: str, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(b"old")
    with pytest.raises(files.FileError, match="sha256"):
        transfer.download(server + "/whole", target, sha256_hex="0" * 64)
    assert target.read_bytes() == b"old"


def test_a_download_goes_on_where_it_was_cut(server: str, tmp_path: Path) -> None:
    (tmp_path / ".data.bin.part").write_bytes(BODY[:1000])
    transfer.download(server + "/whole", tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_a_lfs_pointer_is_no_data(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer.csv"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(files.FileError, match="git lfs pull"):
        transfer.download(str(pointer), tmp_path / "out.csv")


def test_urls_are_told_without_secrets() -> None:
    assert transfer.public_url("https://me:secret@host/a.csv?token=abc") == "https://host/a.csv"
