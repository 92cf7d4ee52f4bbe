"""WEBP: chunks inside a RIFF of stated length; bytes after that are nobody's business."""

import struct
from collections.abc import Callable, Iterator

from pixscribe.errors import DecodeError
from pixscribe.formats.container import Container, check_frames, counted, cut
from pixscribe.formats.tiff import exif_orientation
from pixscribe.types import Size


def is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> Container:
    chunks: dict[bytes, bytes] = {}
    frames = 0
    for kind, body in counted(_chunks(data)):
        frames = check_frames(frames + (kind == b"ANMF"))
        chunks.setdefault(kind, bytes(body) if kind == b"EXIF" else bytes(body[:10]))
    if not chunks.keys() & {b"VP8 ", b"VP8L", b"ANMF"}:
        raise DecodeError("WEBP without pixels")
    width, height = _size(chunks)
    orientation = exif_orientation(chunks.get(b"EXIF", b""))
    return Container("image/webp", width, height, orientation, orientation, frames or 1, sendable=frames == 0)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    riff_end = 8 + struct.unpack_from("<I", data, 4)[0]
    if riff_end > len(data):
        raise cut(f"WEBP says {riff_end} bytes and has {len(data)}")
    view, position = memoryview(data), 12
    while position + 8 <= riff_end:
        kind, length_bytes = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length_bytes
        if end > riff_end:
            raise DecodeError(f"WEBP chunk {kind!r} ends at byte {end} of {riff_end}")
        yield kind, view[position + 8 : end]
        position = end + length_bytes % 2


def _size(chunks: dict[bytes, bytes]) -> Size:
    for kind, read_size in _SIZE_READERS.items():
        if kind in chunks:
            return read_size(chunks[kind])
    raise DecodeError("WEBP without a size")


def _canvas_size(body: bytes) -> Size:
    return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")


def _lossy_size(body: bytes) -> Size:
    start_code, width, height = struct.unpack_from("<3x3sHH", body)
    if start_code != b"\x9d\x01\x2a":
        raise DecodeError("WEBP key frame without its start code")
    return width & 0x3FFF, height & 0x3FFF


def _lossless_size(body: bytes) -> Size:
    signature, bits = struct.unpack_from("<BI", body)
    if signature != 0x2F:
        raise DecodeError("WEBP lossless data without its signature")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


_SIZE_READERS: dict[bytes, Callable[[bytes], Size]] = {
    b"VP8X": _canvas_size,
    b"VP8 ": _lossy_size,
    b"VP8L": _lossless_size,
}
