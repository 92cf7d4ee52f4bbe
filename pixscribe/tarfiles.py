"""Plain tar files that hold images, as WebDataset shards do: where each member lies, so that it is read by itself.

Only headers are read here, and nothing is ever unpacked: a member's name is a name and never a path.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from pixscribe.errors import ConfigError
from pixscribe.places import SourceFile, plain_name, with_part
from pixscribe.storage import is_bucket, open_uri, version_of
from pixscribe.types import ImageRef

BLOCK = 512
AHEAD_BYTES = 1024 * 1024
"""Of a tar in a bucket, read at once: a request takes about as long as so much of its answer."""
MAX_EXTENSION_BYTES = 1024 * 1024
"""Of a header that only holds the long name of the next member."""
_EXTENSIONS = {
    tarfile.XHDTYPE: "pax",
    tarfile.SOLARIS_XHDTYPE: "pax",
    tarfile.GNUTYPE_LONGNAME: "name",
    tarfile.GNUTYPE_LONGLINK: "",
    tarfile.XGLTYPE: "",
}
_PACKED = re.compile(rb"(?P<gzip>\x1f\x8b)|(?P<bzip2>BZh[1-9])|(?P<xz>\xfd7zXZ\0)|(?P<zstd>\x28\xb5\x2f\xfd)")


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    offset: int
    size: int
    error: str | None


class _Damaged(Exception):
    """From here on, the file is no tar."""


def list_tar(file: SourceFile) -> Iterator[ImageRef]:
    """Every member but folders, called `<name of the tar>/<name of the member>`, in the order of the file.

    Links, sparse members, cut ones and those whose name leads out come with `error`. After damage nothing more can be
    found, which is one more such row. Raises OSError, and `ConfigError` if the file is no plain tar at all.
    """
    version = version_of(file.uri)
    with open_uri(file.uri) as opened:
        end = opened.seek(0, io.SEEK_END)
        opened.seek(0)
        raw = io.BufferedReader(cast(io.RawIOBase, opened), AHEAD_BYTES) if is_bucket(file.uri) else opened
        _check_kind(raw.read(BLOCK), file)
        try:
            yield from (_ref(member, file, version) for member in _members(raw, end))
        except _Damaged as damage:
            yield ImageRef(f"{file.name}:end", file.uri, None, f"the tar {damage}; what comes after is not read")


def _check_kind(head: bytes, file: SourceFile) -> None:
    if not head or head == bytes(BLOCK) or _header(head, 0) is not None:
        return
    if packed := _PACKED.match(head):
        raise ConfigError(f"source.uri: {file.name!r} is packed by {packed.lastgroup}; decompress it to a plain .tar")
    raise ConfigError(f"source.uri: {file.name!r} is no tar file")


def _members(raw: BinaryIO, end: int) -> Iterator[_Member]:
    at, extended = 0, dict[bytes, bytes]()
    while at < end:
        raw.seek(at)
        block = raw.read(BLOCK)
        if block == bytes(BLOCK):
            return
        header = _header(block, at)
        if header is None:
            raise _Damaged(f"is damaged or cut off at byte {at}")
        at += BLOCK
        if header.type in _EXTENSIONS:
            extended |= _extension(raw, header)
            at += _padded(header.size)
            continue
        at += _skip_sparse_map(raw, header, block)
        size = _size(header, extended)
        if not (header.isdir() or extended.get(b"path", b"").endswith(b"/")):
            yield _member(header, extended, at, size, end)
        at += _padded(size)
        extended = {}


def _header(block: bytes, at: int) -> tarfile.TarInfo | None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return header if header.size >= 0 else None


def _extension(raw: BinaryIO, header: tarfile.TarInfo) -> dict[bytes, bytes]:
    """What a header for the next member says: its long name, or the records `<length> <key>=<value>\\n` of pax."""
    kind = _EXTENSIONS[header.type]
    if not kind:
        return {}
    if header.size > MAX_EXTENSION_BYTES:
        raise _Damaged(f"has a header of {header.size} bytes")
    data = raw.read(header.size)
    if kind == "name":
        return {b"path": data.partition(b"\0")[0]}
    return dict(_records(data))


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        digits = data[at : at + 9].partition(b" ")[0]
        stop = at + int(digits) if digits.isdigit() and len(digits) < 8 else at
        key, separator, value = data[at + len(digits) + 1 : stop - 1].partition(b"=")
        if not separator or data[stop - 1 : stop] != b"\n":
            raise _Damaged("has a damaged header")
        yield key, value
        at = stop


def _skip_sparse_map(raw: BinaryIO, header: tarfile.TarInfo, block: bytes) -> int:
    """The bytes of the blocks that go on listing the pieces of an old GNU sparse member."""
    skipped = 0
    is_extended = header.type == tarfile.GNUTYPE_SPARSE and block[482]
    while is_extended:
        more = raw.read(BLOCK)
        skipped += BLOCK
        is_extended = len(more) == BLOCK and more[504]
    return skipped


def _size(header: tarfile.TarInfo, extended: dict[bytes, bytes]) -> int:
    """The bytes that follow: none for links, folders and devices, whatever their header says."""
    if not header.isreg() and header.type in tarfile.SUPPORTED_TYPES:
        return 0
    told = extended.get(b"size", b"")
    return int(told) if told.isdigit() and len(told) < 20 else header.size


def _member(header: tarfile.TarInfo, extended: dict[bytes, bytes], at: int, size: int, end: int) -> _Member:
    is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in extended)
    told = extended.get(b"GNU.sparse.name") or extended.get(b"path")
    name = told or header.name.encode("utf-8", "surrogateescape")
    return _Member(name, at, size, _error(header, name, is_sparse, is_cut=at + size > end))


def _error(header: tarfile.TarInfo, name: bytes, is_sparse: bool, is_cut: bool) -> str | None:
    if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name or not plain_name(name):
        return f"is a member of a tar with the name {name[:80]!r}, which leads out of it"
    if header.islnk() or header.issym():
        return "is a link inside a tar"
    if is_sparse:
        return "is a sparse member of a tar"
    if not header.isreg():
        return "is no regular file (a pipe or device in a tar)"
    return "is cut off: the tar ends before it does" if is_cut else None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _ref(member: _Member, file: SourceFile, version: str) -> ImageRef:
    name = plain_name(member.name)
    uri = with_part(file.uri, offset=member.offset, size=member.size, version=version, member=member.name)
    size_bytes = None if member.error else member.size
    return ImageRef(f"{file.stem}/{name}", uri, size_bytes, member.error, version=version or None)
