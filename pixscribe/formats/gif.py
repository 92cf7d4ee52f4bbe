"""GIF: blocks up to the trailer. Only the first frame is ever used."""

import struct
from collections.abc import Iterator

from pixscribe.errors import DecodeError
from pixscribe.formats.container import Container, check_frames, counted
from pixscribe.types import Size

_EXTENSION, _IMAGE, _TRAILER, _PADDING = b"!,;\0"


def is_gif(data: bytes) -> bool:
    return data.startswith((b"GIF87a", b"GIF89a"))


def read_gif(data: bytes) -> Container:
    image_positions = _image_positions(data)
    if not image_positions:
        raise DecodeError("GIF without pixels")
    width, height = _canvas_size(data, image_positions[0])
    return Container("image/gif", width, height, frames=len(image_positions), sendable=False)


def _canvas_size(data: bytes, first_image: int) -> Size:
    """A first frame that sticks out of the screen enlarges it."""
    width, height = struct.unpack_from("<HH", data, 6)
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, first_image + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


def _image_positions(data: bytes) -> list[int]:
    positions: list[int] = []
    for position in counted(_block_positions(data)):
        if data[position] == _IMAGE:
            positions.append(position)
            check_frames(len(positions))
    return positions


def _block_positions(data: bytes) -> Iterator[int]:
    position = 13 + _color_table_bytes(data[10])
    while (block := data[position]) != _TRAILER:
        yield position
        position = _block_end(data, position, block)


def _block_end(data: bytes, position: int, block: int) -> int:
    if block == _EXTENSION:
        return _after_data(data, position + 2)
    if block == _IMAGE:
        return _after_data(data, position + 11 + _color_table_bytes(data[position + 9]))
    if block == _PADDING:
        return position + 1
    raise DecodeError(f"GIF has no block at byte {position}")


def _after_data(data: bytes, position: int) -> int:
    while length_bytes := data[position]:
        position += 1 + length_bytes
    return position + 1


def _color_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
