"""Images to measure with: all different, all of one size in bytes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PX = 512


def make_pictures(
    folder: Path, *, count: int, size_bytes: int, wh: tuple[int, int] = (SIDE_PX, SIDE_PX), first: int = 0
) -> None:
    """Write `count` JPEG files of exactly `size_bytes`, which differ in their last bytes, numbered from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = _jpeg_below(size_bytes, wh)
    for index in range(first, first + count):
        # bytes after the end of a JPEG are legal and ignored, and make each file one of its own
        tail = f"{index:012d}".encode()
        (folder / f"{index:06d}.jpg").write_bytes(data + tail.rjust(size_bytes - len(data), b"\0"))


def _jpeg_below(size_bytes: int, wh: tuple[int, int]) -> bytes:
    """The noisiest picture that still fits."""
    pixels = np.random.default_rng(7).integers(0, 256, (wh[1], wh[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for quality in range(95, 0, -5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() + 12 <= size_bytes:
            return buffer.getvalue()
    raise ValueError(f"no quality fits {wh[0]} x {wh[1]} px into {size_bytes} bytes")
