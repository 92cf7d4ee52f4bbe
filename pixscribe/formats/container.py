"""The facts of one image file, and how its faults are named."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from pixscribe.errors import DecodeError

MAX_FRAMES = 10_000
"""Nearly three minutes at 60 frames a second; a file with more is made to hurt."""
MAX_PARTS = 250_000
"""Segments, chunks, boxes or blocks of one file. A PNG of 512 MiB in chunks of 8 KiB has 65,536; empty ones, of which
there would be a hundred million, keep a thread busy for a minute."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Container:
    """What can be said of a file without decoding it.

    `width` and `height` are those of the stored pixels. `exif_orientation` is the source's tag (1 when absent or
    invalid); `turn` is the orientation that must be applied to the stored pixels to see them upright. They differ in
    HEIF, whose rotation is part of decoding and whose EXIF tag does not count. `sendable` means that the service takes
    the bytes as they are, as far as their type and encoding go.
    """

    mime_type: str
    width: int
    height: int
    exif_orientation: int = 1
    turn: int = 1
    frames: int = 1
    sendable: bool = True


@contextmanager
def foreign_errors_translated(name: str) -> Iterator[None]:
    """Turn whatever a decoder chooses to raise into a `DecodeError`."""
    try:
        yield
    except DecodeError:
        raise
    except (MemoryError, Image.DecompressionBombError) as cause:
        raise DecodeError(f"{name} needs too much memory: {cause or 'none left'}", code="too_large") from cause
    # On broken files Pillow raises a dozen unrelated classes, and other ones with every release.
    except Exception as cause:
        raise DecodeError(f"{name} cannot be decoded: {type(cause).__name__}: {cause}") from cause


def check_frames(frames: int) -> int:
    if frames > MAX_FRAMES:
        raise DecodeError(f"{frames} or more frames exceed the limit of {MAX_FRAMES}", code="too_large")
    return frames


def counted(parts: Iterable[T]) -> Iterator[T]:
    """The parts of a file, as long as there are not absurdly many."""
    for number, part in enumerate(parts):
        if number == MAX_PARTS:
            raise DecodeError(f"the file is cut into more than {MAX_PARTS} pieces", code="too_large")
        yield part


def cut(what: str) -> DecodeError:
    return DecodeError(f"the file is cut: {what}")


def unsupported(what: str) -> DecodeError:
    return DecodeError(what, code="unsupported_type")
