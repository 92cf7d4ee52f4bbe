"""JPEG: marker segments up to the first scan, compressed data, an end marker.

A phone's JPEG with a gain map or a second view (MPO) is its first picture, and is sent with whatever follows it.
"""

import re
import struct
from collections.abc import Iterator

from pixscribe.errors import DecodeError
from pixscribe.formats.container import Container, counted, cut, unsupported
from pixscribe.formats.tiff import exif_orientation

_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOF_USUAL = frozenset({0xC0, 0xC1, 0xC2})
_SOS, _APP1 = 0xDA, 0xE1
_WITHOUT_PAYLOAD = frozenset({0x01, *range(0xD0, 0xD8)})
_END_MARKER = b"\xff\xd9"
_NO_FILL_BYTE = re.compile(rb"[^\xff]")


def is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff")


def read_jpeg(data: bytes) -> Container:
    frame_header, orientation, scan_start = _headers(data)
    depth_bits, height, width, components = struct.unpack_from(">BHHB", frame_header)
    if depth_bits != 8 or components not in (1, 3, 4):
        raise unsupported(f"JPEG with {components} components of {depth_bits} bits")
    # Inside compressed data FF is never followed by D9: the last end marker is as good as the first, and found at once.
    if data.rfind(_END_MARKER, scan_start) < 0:
        raise cut("JPEG without an end marker")
    return Container("image/jpeg", width, height, orientation, orientation, sendable=components != 4)


def _headers(data: bytes) -> tuple[bytes, int, int]:
    """The frame header, the orientation, and where the compressed data starts."""
    frame_header, orientation = b"", None
    for marker, start, end in counted(_segments(data)):
        if marker in _SOF_MARKERS:
            frame_header = _usual_frame_header(marker, data[start:end])
        elif marker == _APP1 and orientation is None and data.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(data[start:end])
        elif marker == _SOS:
            return frame_header, orientation or 1, end
    raise cut("JPEG without a scan")


def _usual_frame_header(marker: int, header: bytes) -> bytes:
    if marker not in _SOF_USUAL:
        raise unsupported(f"JPEG of the rare kind SOF{marker - 0xC0} (lossless, hierarchical or arithmetic)")
    return header


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start and end of its payload)"""
    position = 2
    while position < len(data):
        position = _after_fill_bytes(data, position)
        marker = data[position]
        position += 1
        if marker in _WITHOUT_PAYLOAD:
            yield marker, position, position
            continue
        end = position + struct.unpack_from(">H", data, position)[0]
        if end < position + 2 or end > len(data):
            raise cut(f"JPEG segment {marker:02X} ends at byte {end} of {len(data)}")
        yield marker, position + 2, end
        position = end


def _after_fill_bytes(data: bytes, position: int) -> int:
    if data[position] != 0xFF:
        raise DecodeError(f"JPEG has no marker at byte {position}")
    after = _NO_FILL_BYTE.search(data, position)
    if after is None:
        raise cut("JPEG ends in fill bytes")
    return after.start()
