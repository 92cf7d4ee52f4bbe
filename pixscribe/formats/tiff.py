"""TIFF: a chain of directories of tags, one per page. EXIF is a TIFF without pixels.

Orientation comes from the tag alone: a rotation that only XMP mentions is ignored, as browsers do.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pixscribe.errors import DecodeError
from pixscribe.formats.container import Container, check_frames, unsupported
from pixscribe.types import Size

_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 254, 256, 257, 258, 262, 274, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_REDUCED_RESOLUTION = 1
_WHITE_IS_ZERO = 0
_UNSIGNED_OR_UNSTATED = (1, 4)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Byte order and field widths; `offset` is a struct code, `entry` one tag: id, type, count, value or offset."""

    order: str
    offset: str
    count: str
    first_ifd_at: int

    @property
    def entry(self) -> str:
        return f"{self.order}HH{self.offset}{self.offset}"


_LAYOUTS = {
    b"II*\0": _Layout("<", "I", "H", 4),
    b"MM\0*": _Layout(">", "I", "H", 4),
    b"II+\0": _Layout("<", "Q", "Q", 8),
    b"MM\0+": _Layout(">", "Q", "Q", 8),
}
MAX_TILE_PIXELS = 1 << 24
"""A tile is decoded whole, however little of it the image shows; none is larger than this or than its image."""

_INTEGER_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def is_tiff(data: bytes) -> bool:
    return data[:4] in _LAYOUTS


def read_tiff(data: bytes) -> Container:
    layout = _LAYOUTS[data[:4]]
    pages = list(_page_starts(layout, data))
    if not pages:
        raise DecodeError("TIFF without pages")
    first = _tags(layout, data, pages[0])
    _refuse_what_would_lie(data, first)
    orientation = _valid_orientation(first.get(_ORIENTATION, 1))
    width, height = first[_WIDTH], first[_HEIGHT]
    _check_tile((first.get(_TILE_WIDTH, 0), first.get(_TILE_HEIGHT, 0)), (width, height))
    return Container("image/tiff", width, height, orientation, orientation, len(pages), sendable=False)


def exif_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block, with or without its leading `Exif\\0\\0`; 1 when absent or invalid."""
    block = exif.removeprefix(b"Exif\0\0")
    try:
        layout = _LAYOUTS[block[:4]]
        first = _tags(layout, block, next(_page_starts(layout, block)))
    except (struct.error, KeyError, StopIteration, OverflowError):
        return 1
    return _valid_orientation(first.get(_ORIENTATION, 1))


def _refuse_what_would_lie(data: bytes, first: dict[int, int]) -> None:
    """A raw photo's first page is its thumbnail; Pillow shows deep greys of unusual scale or polarity wrongly."""
    if first.get(_SUBFILE_TYPE, 0) & _REDUCED_RESOLUTION or data[8:10] == b"CR":
        raise unsupported("TIFF whose first page is a thumbnail, probably a camera's raw file")
    if first.get(_SAMPLE_FORMAT, 1) not in _UNSIGNED_OR_UNSTATED:
        raise unsupported(f"TIFF with signed or floating-point samples (sample format {first[_SAMPLE_FORMAT]})")
    bits = first.get(_BITS, 1)
    if bits > 8 and (bits != 16 or first.get(_PHOTOMETRIC) == _WHITE_IS_ZERO):
        raise unsupported(f"TIFF of {bits} bits with photometric interpretation {first.get(_PHOTOMETRIC)}")


def _check_tile(tile: Size, size: Size) -> None:
    if tile[0] * tile[1] > max(MAX_TILE_PIXELS, size[0] * size[1]):
        raise DecodeError(f"TIFF of {size[0]}x{size[1]} px in tiles of {tile[0]}x{tile[1]}", code="too_large")


def _valid_orientation(value: int) -> int:
    return value if 1 <= value <= 8 else 1


def _page_starts(layout: _Layout, data: bytes) -> Iterator[int]:
    """Where each directory starts; a chain that bites its tail ends there."""
    next_at, seen = layout.first_ifd_at, set[int]()
    while (start := _unpack(layout, layout.offset, data, next_at)) and start not in seen:
        seen.add(start)
        check_frames(len(seen))
        yield start
        count = _unpack(layout, layout.count, data, start)
        next_at = start + struct.calcsize(layout.count) + count * struct.calcsize(layout.entry)


def _tags(layout: _Layout, data: bytes, start: int) -> dict[int, int]:
    """The integer tags of one directory, of lists the first value."""
    count = _unpack(layout, layout.count, data, start)
    entries_at = start + struct.calcsize(layout.count)
    entry_bytes = struct.calcsize(layout.entry)
    found = (_tag(layout, data, at) for at in range(entries_at, entries_at + count * entry_bytes, entry_bytes))
    return dict(tag for tag in found if tag is not None)


def _tag(layout: _Layout, data: bytes, at: int) -> tuple[int, int] | None:
    tag, kind, count, offset = struct.unpack_from(layout.entry, data, at)
    code = _INTEGER_CODES.get(kind)
    if code is None or count == 0:
        return None
    value_bytes = struct.calcsize(layout.order + layout.offset)
    is_inline = count * struct.calcsize(code) <= value_bytes
    value_at = at + struct.calcsize(layout.entry) - value_bytes if is_inline else offset
    return tag, _unpack(layout, code, data, value_at)


def _unpack(layout: _Layout, code: str, data: bytes, at: int) -> int:
    value: int = struct.unpack_from(layout.order + code, data, at)[0]
    return value
