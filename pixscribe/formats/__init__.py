"""What an image file says about itself: type, size, orientation, frames, and whether it is all there.

Only the structure is read, never a pixel, so that an image that is sent as it is costs a fraction of a millisecond.
What cannot be seen this way (a flipped bit inside compressed pixels) is left to the service. One file per format.
"""

from collections.abc import Callable

from pixscribe.errors import DecodeError
from pixscribe.formats.bmp import is_bmp, read_bmp
from pixscribe.formats.container import Container, foreign_errors_translated
from pixscribe.formats.gif import is_gif, read_gif
from pixscribe.formats.isobmff import avif_type, heif_type, read_avif, read_heif
from pixscribe.formats.jpeg import is_jpeg, read_jpeg
from pixscribe.formats.png import is_png, read_png
from pixscribe.formats.tiff import is_tiff, read_tiff
from pixscribe.formats.webp import is_webp, read_webp

__all__ = ["Container", "foreign_errors_translated", "read_container"]

_SHORTEST_FILE_BYTES = 16

_READERS: tuple[tuple[Callable[[bytes], object], Callable[[bytes], Container], str], ...] = (
    (is_jpeg, read_jpeg, "JPEG"),
    (is_png, read_png, "PNG"),
    (is_webp, read_webp, "WEBP"),
    (avif_type, read_avif, "AVIF"),
    (heif_type, read_heif, "HEIF"),
    (is_gif, read_gif, "GIF"),
    (is_tiff, read_tiff, "TIFF"),
    (is_bmp, read_bmp, "BMP"),
)


def read_container(data: bytes) -> Container:
    """Read the facts; the type comes from the content, never from a name.

    Raises `DecodeError`: `unsupported_type` for content that is none of the known types, `decode_error` for a broken or
    cut file, `too_large` for a bomb.
    """
    read, name = _reader(data)
    with foreign_errors_translated(name):
        container = read(data)
    if container.width < 1 or container.height < 1:
        raise DecodeError(f"{name} of {container.width}x{container.height} px has no pixels")
    return container


def _reader(data: bytes) -> tuple[Callable[[bytes], Container], str]:
    if len(data) < _SHORTEST_FILE_BYTES:
        raise DecodeError(f"{len(data)} bytes are too few for an image")
    for is_type, read, name in _READERS:
        if is_type(data):
            return read, name
    raise DecodeError(f"content starting {data[:8]!r} is no supported image type", code="unsupported_type")
