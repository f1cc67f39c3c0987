"""The register of published weights is right in itself; what it fetches is what it should be, or is refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from fer.config import ConfigError, parse
from fer.environment import environment
from fer.io.files import FileError
from fer.labels import SPACES
from fer.models import list_models
from fer.weights import registry
from fer.weights.registry import PublishedWeights

BODY = bytes(range(256)) * 512


class _Server(BaseHTTPRequestHandler):
    """Serves files as authors' pages do."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        body = b"<!DOCTYPE html><html>virus scan warning" if self.path.startswith("/page") else BODY[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server() -> Iterator[str]:
    _Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def known(monkeypatch: pytest.MonkeyPatch, *files: dict[str, str]) -> None:
    """A register of one entry."""
    data = registry.entry("mfn_msceleb").model_dump() | {"files": files}
    made = parse(PublishedWeights, data, "test")
    monkeypatch.setattr(registry, "register", lambda: {"tiny": made})


DIGEST = hashlib.sha256(BODY).hexdigest()


# ------------------------------------------------------------------------------------------------ the register


def test_every_order_of_labels_is_one_of_a_label_space_or_unknown() -> None:
    for name, weights in registry.register().items():
        if isinstance(weights.labels, list):
            assert sorted(weights.labels) in [sorted(space.labels) for space in SPACES.values()], name
        else:
            assert weights.labels in ("unknown", "none"), name


def test_every_entry_names_a_model_of_the_zoo_or_none() -> None:
    for name, weights in registry.register().items():
        assert weights.model in (*list_models(), "none"), name


def test_the_five_works_are_there() -> None:
    models = {weights.model for weights in registry.register().values()}
    assert models >= {"poster_v2", "poster_v1_large", "ddamfn", "mfn", "lhc_net", "lhc_netc", "ir50"}
    assert models >= {"dynamic_vit_tiny", "dynamic_vit_small", "dynamic_vit_base", "mobilefacenet_landmarks"}


def test_every_address_is_https_and_every_digest_is_of_one_file() -> None:
    files = [file for weights in registry.register().values() for file in weights.files]
    assert all((address or "https://").startswith("https://") for file in files for address in (file.url, file.page))
    digests = [file.sha256 for file in files if file.sha256]
    assert len(digests) == len(set(digests))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["neutral", "joy"]}, "not an order of the classes"),
        ({"labels": "unknown", "evidence": None}, "evidence belongs to"),
        ({"accuracy": 90.0, "protocol": None}, "accuracy and protocol belong together"),
        ({"accuracy": 0.9, "protocol": "x", "acuracy": 1}, "unknown key"),
        ({"files": [{"name": "a"}]}, "neither url nor page"),
        ({"files": [{"name": "a", "url": "b", "sha256": "ABC"}]}, "sha256"),
        ({"licence": None}, "licence"),
    ],
)
def test_an_invalid_entry_is_rejected(change: dict[str, object], message: str) -> None:
    data = registry.entry("ddamfn_rafdb").model_dump() | change
    with pytest.raises(ConfigError, match=message):
        parse(PublishedWeights, data, "published.yaml")


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'ddamfn_rafdb'.*lhc_netc"):
        registry.entry("ddamfn_raf")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environment().cache == tmp_path / "cache"
    monkeypatch.delenv("FER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert environment().cache == tmp_path / "xdg" / "fer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / ".cache" / "fer" / "weights"


# ------------------------------------------------------------------------------------------------ fetching


def test_a_file_is_fetched_once_and_found_again(server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, {"name": "a.pth", "url": f"{server}/a?download=1", "sha256": DIGEST})
    with pytest.raises(FileError, match="fer weights pull tiny"):
        registry.find("tiny")
    assert registry.pull("tiny") == registry.pull("tiny") == [cache / "tiny" / "a.pth"]
    assert registry.find("tiny").read_bytes() == BODY
    assert _Server.asked == ["/a?download=1"]
    assert [found.state for found in registry.verify()] == ["ok"]


def test_a_broken_transfer_resumes_where_it_stopped(server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, {"name": "a.pth", "url": f"{server}/a", "sha256": DIGEST})
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / ".a.pth.part").write_bytes(BODY[:1000])
    assert list(registry.verify()) == []
    assert registry.pull("tiny")[0].read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "digest", "message"),
    [
        ("gone", DIGEST, "404"),
        ("page", None, "web page"),
        ("a", "0" * 64, "sha256 is"),
        ("a", "0" * 8, "its checksum is not sha256 00000000"),
    ],
)
def test_a_wrong_download_is_rejected_with_the_remedy(
    path: str, digest: str | None, message: str, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = {"name": "a.pth", "url": f"{server}/{path}", "page": "https://somewhere"}
    known(monkeypatch, file | ({"sha256": digest} if digest else {}))
    with pytest.raises(
        FileError, match=rf"{message}.*by hand from https://somewhere; `fer weights pull tiny --from FOLDER`"
    ):
        registry.pull("tiny")
    assert list((cache / "tiny").iterdir()) == []


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_shorter_checksum_of_the_authors_counts(
    kind: str, server: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = hashlib.md5(BODY).hexdigest() if kind == "md5" else DIGEST[:8]
    known(monkeypatch, {"name": "a.pth", "url": f"{server}/a", kind: checksum})
    (tmp_path / "a.pth").write_bytes(b"another version")
    with pytest.raises(FileError, match=rf"a\.pth: not the published a\.pth: its checksum is not {kind} {checksum}"):
        registry.pull("tiny", given=tmp_path / "a.pth")
    (path,) = registry.pull("tiny")
    assert [found.state for found in registry.verify()] == ["ok"]
    path.write_bytes(b"changed")
    assert [found.state for found in registry.verify()] == ["corrupt"]
    assert registry.pull("tiny")[0].read_bytes() == BODY


def test_a_folder_of_the_user_is_enough_offline(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, {"name": "a.pth", "url": "https://127.0.0.1:9/a", "sha256": DIGEST})
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "a.pth").write_bytes(b"another version")
    with pytest.raises(FileError, match=r"mine/a\.pth: not the published a\.pth"):
        registry.pull("tiny", given=tmp_path / "mine")
    (tmp_path / "mine" / "deep" / "a.pth").write_bytes(BODY)
    assert registry.pull("tiny", given=tmp_path / "mine") == [cache / "tiny" / "a.pth"]
    assert registry.pull("tiny", to=tmp_path / "there") == [tmp_path / "there" / "a.pth"]
    assert registry.find("tiny", folder=tmp_path / "there").read_bytes() == BODY
    with pytest.raises(FileError, match="no such file or folder"):
        registry.pull("tiny", given=tmp_path / "nowhere")


def test_a_file_that_only_people_can_fetch_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, {"name": "a.pth", "page": "https://drive"})
    with pytest.raises(FileError, match="Fetch it from https://drive; `fer weights pull tiny --from FOLDER`"):
        registry.pull("tiny")
    renamed = tmp_path / "download(1).pth"
    renamed.write_bytes(BODY)
    assert registry.pull("tiny", given=renamed)[0].read_bytes() == BODY


def test_all_files_of_several_are_fetched(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, {"name": "a.index", "page": "https://x"}, {"name": "a.data", "page": "https://x"})
    (tmp_path / "a.index").write_bytes(b"one")
    with pytest.raises(FileError, match=r"a\.data"):
        registry.pull("tiny", given=tmp_path)
    with pytest.raises(FileError, match=r"a\.data: not there"):
        registry.find("tiny")
    (tmp_path / "a.data").write_bytes(b"two")
    assert registry.pull("tiny", given=tmp_path) == [cache / "tiny" / "a.index", cache / "tiny" / "a.data"]


def test_a_changed_file_in_the_cache_is_detected_and_fetched_again(
    server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, {"name": "a.pth", "url": f"{server}/a"})
    (path,) = registry.pull("tiny")
    assert [found.state for found in registry.verify()] == ["as fetched"]
    path.write_bytes(BODY[:-1] + b"\1")
    (cache / "unknown.bin").write_bytes(b"what is this")
    (cache / "tiny" / "more.pth").write_bytes(b"and this")
    assert {found.path.name: found.state for found in registry.verify()} == {
        "a.pth": "corrupt",
        "unknown.bin": "unknown",
        "more.pth": "unknown",
    }
    assert registry.pull("tiny")[0].read_bytes() == BODY
    assert len(_Server.asked) == 2


def test_the_published_landmarks_are_what_the_register_says(test_data: Path) -> None:
    paths = registry.pull("mobilefacenet_landmarks", given=test_data / "weights")
    assert [path.name for path in paths] == ["mobilefacenet.xml", "mobilefacenet.bin"]
    registry.pull("retinaface_mobilenet025", given=test_data / "weights")
    registry.pull("yunet_2023mar", given=test_data / "weights")
    registry.pull("mobilefacenet_casia", given=test_data / "weights")
    assert {found.state for found in registry.verify()} == {"ok"}
