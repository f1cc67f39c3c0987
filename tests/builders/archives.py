"""Hostile and damaged archives."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping


def zip_of(members: Mapping[str, bytes], *, modes: Mapping[str, int] | None = None) -> bytes:
    """A zip; `modes` are Unix modes with the kind of file, e.g. stat.S_IFLNK | 0o777."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return out.getvalue()


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    """A tar; mode "w:gz" and so on compress it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    """A member for `tar_of`."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    return info, data


def raw_zip(members: list[tuple[bytes, int]], data: bytes = b"x") -> bytes:
    """A zip whose names are bytes, with their flags; nothing is checked."""
    body, directory = b"", b""
    crc = zlib.crc32(data)
    for name, flags in members:
        common = struct.pack("<HHHHHLLLHH", 20, flags, 0, 0, 33, crc, len(data), len(data), len(name), 0)
        directory += b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + name
        body += b"PK\x03\x04" + common + name + data
    return body + directory + _end(len(members), len(directory), len(body))


def zip_of_zeros(total: int) -> bytes:
    """A zip with one member of `total` zeros, a multiple of 16 MiB, made without writing them all."""
    name, data = b"zeros.csv", _zeros(total)
    sizes = struct.pack("<LL", len(data), min(total, 0xFFFFFFFF))
    extra = struct.pack("<HHQ", 1, 8, total) if total > 0xFFFFFFFE else b""
    common = struct.pack("<HHHHHL", 45, 0, 8, 0, 33, 0) + sizes + struct.pack("<HH", len(name), len(extra))
    body = b"PK\x03\x04" + common + name + extra + data
    directory = b"PK\x01\x02\x2d\x00" + common + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name + extra
    return body + directory + _end(1, len(directory), len(body))


def tar_gz_of_zeros(total: int) -> bytes:
    """A tar.gz with one member of `total` zeros, a multiple of 16 MiB, made without writing them all."""
    info = tarfile.TarInfo("zeros.csv")
    info.size = total
    head = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = head.compress(info.tobuf()) + head.flush(zlib.Z_FULL_FLUSH) + _zeros(total)
    return gzip.compress(b"")[:10] + stream + bytes(8)


def _zeros(total: int) -> bytes:
    """A raw deflate stream."""
    piece = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = piece.compress(bytes(16 << 20)) + piece.flush(zlib.Z_FULL_FLUSH)
    assert total % (16 << 20) == 0
    return block * (total >> 24) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def overlapping_zip(files: int = 50) -> bytes:
    """Every member's data holds all members behind it, their headers quoted as stored blocks (Fifield 2019)."""
    plain = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(plain) + packer.flush()
    header, entries = b"", []
    for index in range(files):
        if header:
            data = b"\x00" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF) + header + data
            plain = header + plain
        name = b"%d" % index
        common = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 33, zlib.crc32(plain), len(data), len(plain), len(name), 0)
        header = b"PK\x03\x04" + common + name
        entries.append((len(header) + len(data), common, name))
    body = header + data
    listing = b"".join(
        b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHLL", 0, 0, 0, 0, len(body) - length) + name
        for length, common, name in entries
    )
    return body + listing + _end(files, len(listing), len(body))


def _end(entries: int, length: int, offset: int) -> bytes:
    return b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, entries, entries, length, offset, 0)


def encrypted(data: bytes) -> bytes:
    """A zip whose first member says that it is encrypted."""
    out = bytearray(data)
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        out[out.find(magic) + place] |= 1
    return bytes(out)
