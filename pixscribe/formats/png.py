"""PNG: chunks with checksums from IHDR to IEND; bytes after that are nobody's business."""

import struct
import zlib
from collections.abc import Callable, Iterator

from pixscribe.errors import DecodeError
from pixscribe.formats.container import Container, check_frames, counted, cut
from pixscribe.formats.tiff import exif_orientation

MAX_CHUNK_BYTES = 1 << 20
"""What one compressed text or colour profile may unpack to; Pillow draws the same line."""

MAX_CHUNKS_BYTES = 1 << 26
"""What all of them may unpack to together; Pillow draws the same line."""


def is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def read_png(data: bytes) -> Container:
    chunks: dict[bytes, memoryview] = {}
    unpacked_bytes = 0
    for kind, body in counted(_chunks(data)):
        if kind in _COMPRESSED_PART:
            unpacked_bytes += _unpacked_bytes(kind, bytes(body), MAX_CHUNKS_BYTES - unpacked_bytes)
        chunks.setdefault(kind, body)
    if b"IDAT" not in chunks:
        raise DecodeError("PNG without pixels")
    width, height, depth_bits = struct.unpack_from(">IIB", chunks[b"IHDR"])
    orientation = exif_orientation(bytes(chunks.get(b"eXIf", b"")))
    frames = struct.unpack_from(">I", chunks[b"acTL"])[0] if b"acTL" in chunks else 1
    sendable = depth_bits <= 8 and b"acTL" not in chunks
    return Container("image/png", width, height, orientation, orientation, check_frames(frames), sendable)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, position, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise cut("PNG without IEND")
        length_bytes, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length_bytes
        if end + 4 > len(data):
            raise cut(f"PNG chunk {kind!r} ends at byte {end + 4} of {len(data)}")
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DecodeError(f"PNG chunk {kind!r} at byte {position} has a wrong checksum")
        yield kind, view[position + 8 : end]
        position = end + 4


def _unpacked_bytes(kind: bytes, body: bytes, left_bytes: int) -> int:
    """What a compressed chunk unpacks to; beyond the limit it is refused without finding out."""
    limit_bytes = min(MAX_CHUNK_BYTES, left_bytes)
    try:
        size_bytes = len(zlib.decompressobj().decompress(_COMPRESSED_PART[kind](body), limit_bytes + 1))
    except zlib.error:
        return 0  # an unreadable comment does not spoil the picture
    if size_bytes > limit_bytes:
        raise DecodeError(f"PNG chunk {kind!r} unpacks to more than {limit_bytes} bytes", code="too_large")
    return size_bytes


def _after_name(body: bytes) -> bytes:
    """Layout: name, 0, method, compressed."""
    return body.partition(b"\0")[2][1:]


def _after_languages(body: bytes) -> bytes:
    """Layout: name, 0, is compressed, method, language, 0, translated name, 0, text."""
    rest = body.partition(b"\0")[2]
    is_compressed = rest[:1] == b"\1"
    return rest[2:].partition(b"\0")[2].partition(b"\0")[2] if is_compressed else b""


_COMPRESSED_PART: dict[bytes, Callable[[bytes], bytes]] = {
    b"zTXt": _after_name,
    b"iCCP": _after_name,
    b"iTXt": _after_languages,
}
