"""Canaries: each private part of Pillow or of the standard library that `fer.io.compat` uses still works as assumed."""

import io
import tarfile
import zipfile

import numpy as np
import PIL
import pytest
from builders.archives import member, raw_zip, tar_of
from builders.images import encoded, scene
from flaky_server import Site, serve
from PIL import Image

from fer.io import compat, remote

ADAPT = "fer/io/compat.py must be adapted to this version: "


def test_zip_name_is_the_stored_one_even_behind_a_nul() -> None:
    with zipfile.ZipFile(io.BytesIO(raw_zip([(b"a\0b", 0), ("기쁨".encode(), 0x800)]))) as archive:
        names = [compat.zip_name(info) for info in archive.infolist()]
    assert names == [b"a\0b", "기쁨"], f"{ADAPT}zipfile.ZipInfo.orig_filename"


def test_tar_stream_has_what_follows_the_last_member_and_members_can_be_forgotten() -> None:
    data = tar_of(member("a"), member("b")) + b"behind"
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        names = []
        while (info := tar.next()) is not None:
            names.append(info.name)
            compat.forget_tar_members(tar)
        assert names == ["a", "b"], f"{ADAPT}tarfile.TarFile.members"
        assert compat.tar_stream(tar).read(1 << 20).endswith(b"behind"), f"{ADAPT}tarfile.TarFile.fileobj"


def test_http_socket_has_bytes_beyond_the_announced_length() -> None:
    with serve(Site(faults=["short"])) as site, remote._open(remote._request(f"{site.url}/a"), "a", 5.0) as response:
        connection = compat.http_socket(response)
        count = 0
        while chunk := connection.read1(1 << 20):
            count += len(chunk)
    assert count == len(site.body) > int(response.headers["Content-Length"]), f"{ADAPT}http.client.HTTPResponse.fp"


@pytest.mark.parametrize("portion", [1 << 20, 100], ids=["whole", "portions"])
def test_jpeg_decoder_takes_portions(portion: int) -> None:
    data = encoded(scene(), "JPEG")
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened)
    image = Image.new("RGB", (scene().shape[1], scene().shape[0]), None)
    decoder = compat.jpeg_decoder(image, "RGB")
    rest, given = b"", 0
    while given < len(data):
        rest, given = rest + data[given : given + portion], given + portion
        taken, error = decoder.decode(rest)
        rest = b"" if taken < 0 else rest[taken:]
    assert (taken, error) == (-1, 0), f"{ADAPT}the JPEG decoder of Pillow {PIL.__version__}"
    assert np.array_equal(np.asarray(image), expected), f"{ADAPT}the JPEG decoder of Pillow {PIL.__version__}"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_image_bytes_are_those_of_tobytes(mode: str) -> None:
    image = Image.fromarray(scene()).convert(mode)
    assert compat.image_bytes(image) == image.tobytes(), f"{ADAPT}the raw encoder of Pillow {PIL.__version__}"


def test_pillow_has_its_library_where_libtiff_is_silenced() -> None:
    compat.silence_libtiff()  # False is allowed: where libtiff is linked in another way, its messages stay
    assert hasattr(PIL, "_imaging"), f"{ADAPT}PIL._imaging of Pillow {PIL.__version__}"
