"""BMP: a file header and a bitmap header, whose length tells the variant."""

import struct

from pixscribe.formats.container import Container

_CORE_HEADER_BYTES = 12
_HEADER_BYTES = frozenset({_CORE_HEADER_BYTES, 40, 52, 56, 64, 108, 124})


def is_bmp(data: bytes) -> bool:
    """Text may start with BM as well, so the length of the bitmap header has to be a known one."""
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _HEADER_BYTES


def read_bmp(data: bytes) -> Container:
    is_core = int.from_bytes(data[14:18], "little") == _CORE_HEADER_BYTES
    width, height = struct.unpack_from("<HH" if is_core else "<ii", data, 18)
    # A negative height means that the rows are stored from the top.
    return Container("image/bmp", width, abs(height), sendable=False)
