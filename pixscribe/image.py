"""From the bytes of an image file to what the model is sent.

What the service takes, and what stands upright, goes byte for byte as it is, without its pixels ever being decoded. The
rest is turned upright, converted or made smaller, and encoded again.
"""

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, BinaryIO

import numpy as np
from PIL import Image, _imaging
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pillow_heif import HeifImageFile

from pixscribe.errors import DecodeError
from pixscribe.formats import Container, foreign_errors_translated, read_container
from pixscribe.types import PreparedImage, Size

# Pillow's pixels in blocks that malloc always gives back to the system. Smaller ones (16 MB) stay with the thread that
# used them, and each thread would keep what the largest image took that it ever decoded.
_imaging.set_block_size(64 * 1024 * 1024)
# Four of them are kept for the next image, 256 MB at most in all: fresh ones cost a fifth of the time of a 12 megapixel
# JPEG in page faults. What is being decoded may take three times as much anyway.
_imaging.set_blocks_max(4)


@dataclass(frozen=True, slots=True)
class ImageRules:
    """The section `image` of the configuration.

    `max_side_px` bounds the longer side of what is sent, `max_pixels` the stored pixels of what is accepted.
    """

    max_side_px: int | None = None
    max_pixels: int = 200_000_000


@dataclass(frozen=True, slots=True)
class Header:
    """What can be said of an image without decoding it.

    `width` and `height` are those of the upright image. `needs_pixels` says that it has to be decoded and encoded again
    under the rules it was read with, `decode_px` how many pixels that would hold in memory.
    """

    mime_type: str
    width: int
    height: int
    exif_orientation: int
    frames: int
    needs_pixels: bool
    decode_px: int


def read_header(data: bytes, rules: ImageRules) -> Header:
    """Read what the file says about itself and check that it is whole. Raises `DecodeError`."""
    return _header(_accepted_container(data, rules), rules)


def prepare_image(data: bytes, rules: ImageRules) -> PreparedImage:
    """Make an image ready to send. Thread-safe; the same bytes and rules always give the same result.

    Raises `DecodeError` with code `decode_error`, `too_large` or `unsupported_type`, and nothing else.
    """
    container = _accepted_container(data, rules)
    header = _header(container, rules)
    sent = _Sent(data, header.mime_type, (header.width, header.height))
    if header.needs_pixels:
        with foreign_errors_translated(header.mime_type):
            sent = _encoded_again(data, container, rules)
    image_id = sha256(data).hexdigest()
    return PreparedImage(
        image_id=image_id,
        size_bytes=len(data),
        width=header.width,
        height=header.height,
        exif_orientation=header.exif_orientation,
        mime_type=header.mime_type,
        data=sent.data,
        sent_mime_type=sent.mime_type,
        sent_width=sent.size[0],
        sent_height=sent.size[1],
        sent_sha256=sha256(sent.data).hexdigest() if header.needs_pixels else image_id,
        flags=("first_frame",) if header.frames > 1 else (),
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """Upright pixels (grey or RGB, 8 bits, with alpha if anything is transparent) and what they are best written as:
    one of Pillow's formats JPEG, PNG and WEBP (lossless), with a colour profile that fits the pixels.
    """

    image: Image.Image
    format_name: str
    icc_profile: bytes | None

    def encode(self) -> bytes:
        """The file."""
        return _encode(self.image, self.format_name, self.icc_profile)


def decode_picture(data: bytes, rules: ImageRules, *, is_preview: bool = False) -> Picture:
    """The pixels of an image, upright and within `max_side_px`, for whoever shows it or hands it on. Thread-safe.

    A preview is made smaller in a third of the time, which an eye hardly sees and a model might. Raises `DecodeError`
    as `prepare_image` does.
    """
    container = _accepted_container(data, rules)
    with foreign_errors_translated(container.mime_type):
        return _picture(data, container, rules, _QUICK if is_preview else _FINE)


@dataclass(frozen=True, slots=True)
class _Reduction:
    """How an image is made smaller: from pixels that are at least `spare` times as many, if a JPEG offers them."""

    filter: Image.Resampling
    spare: int


_FINE = _Reduction(Image.Resampling.LANCZOS, 2)
_QUICK = _Reduction(Image.Resampling.BILINEAR, 1)


@dataclass(frozen=True, slots=True)
class _Sent:
    data: bytes
    mime_type: str
    size: Size


def _accepted_container(data: bytes, rules: ImageRules) -> Container:
    container = read_container(data)
    _check_pixels((container.width, container.height), rules)
    return container


def _check_pixels(size: Size, rules: ImageRules) -> None:
    width, height = size
    if width * height > rules.max_pixels:
        raise DecodeError(f"{width}x{height} px exceeds image.max_pixels={rules.max_pixels}", code="too_large")


def _header(container: Container, rules: ImageRules) -> Header:
    width, height = _turned_size((container.width, container.height), container.turn)
    is_too_big = rules.max_side_px is not None and max(width, height) > rules.max_side_px
    return Header(
        mime_type=container.mime_type,
        width=width,
        height=height,
        exif_orientation=container.exif_orientation,
        frames=container.frames,
        needs_pixels=not container.sendable or container.turn != 1 or is_too_big,
        decode_px=container.width * container.height,
    )


def _encoded_again(data: bytes, container: Container, rules: ImageRules) -> _Sent:
    picture = _picture(data, container, rules)
    return _Sent(picture.encode(), Image.MIME[picture.format_name], picture.image.size)


def _picture(data: bytes, container: Container, rules: ImageRules, reduction: _Reduction = _FINE) -> Picture:
    stored_size = (container.width, container.height)
    wanted_size = _reduced_size(stored_size, rules.max_side_px)
    # each step lets go of the pixels of the one before: at 100 megapixels a copy is 400 MB
    image, box, format_name, icc_profile = _decoded(data, container, wanted_size, reduction.spare)
    if image.size != wanted_size:
        image = image.resize(wanted_size, reduction.filter, box=box)
    if container.turn != 1:
        image = image.transpose(_TURNS[container.turn])
    return Picture(image, format_name, icc_profile)


def _decoded(
    data: bytes, container: Container, wanted_size: Size, spare: int
) -> tuple[Image.Image, tuple[float, float, float, float] | None, str, bytes | None]:
    """Plain pixels, which part of them is the picture, and what to write them as: format and colour profile."""
    with _open(data, container.mime_type) as source:
        box = _load(source, (container.width, container.height), wanted_size, spare)
        image = _plain(source)
        return image, box, _format_to_send(source), _matching_profile(source.info.get("icc_profile"), image.mode)


class _Tiff(TiffImageFile):
    """As stored, where Pillow would turn it while loading, by tag or by XMP; and without Pillow's limit on the size,
    which is the process's and not ours to move.
    """

    def _open(self) -> None:
        super()._open()
        self._size = self._tile_size
        self.info.pop("xmp", None)
        self.getexif().pop(Base.Orientation, None)

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        super().load_prepare()


# The plugins are called by name: `Image.open` would try other formats, and has a size limit that is global to the
# process and half as high as ours. (Only in WEBP does that limit hold here too: 179 million pixels.)
_PLUGINS: dict[str, Callable[[IO[bytes]], ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/heic": HeifImageFile,
    "image/heif": HeifImageFile,
    "image/avif": AvifImageFile,
    "image/tiff": _Tiff,
    "image/bmp": BmpImageFile,
    "image/gif": GifImageFile,
}
_warning_filters = threading.Lock()


def _open(data: bytes, mime_type: str) -> ImageFile:
    """Pillow warns of odd metadata, which changes no pixel. Warning filters belong to the process, hence the lock."""
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _PLUGINS[mime_type](io.BytesIO(data))


def _reduced_size(size: Size, max_side_px: int | None) -> Size:
    longer_px = max(size)
    if max_side_px is None or longer_px <= max_side_px:
        return size
    width, height = (max(1, round(side_px * max_side_px / longer_px)) for side_px in size)
    return width, height


def _load(
    source: ImageFile, stored_size: Size, sent_size: Size, spare: int
) -> tuple[float, float, float, float] | None:
    """Decode. Returns what part of the pixels is the picture, or None for all.

    A JPEG may be decoded at half, quarter or eighth size, but never below `spare` times of what is wanted. Twice, which
    LANCZOS then reduces, loses too little to measure.
    """
    _check_size(source, stored_size)
    if sent_size != stored_size and isinstance(source, JpegImageFile):
        drafted = source.draft(None, (spare * sent_size[0], spare * sent_size[1]))
        if drafted:
            source.load()
            return drafted[1]
    source.load()
    _check_size(source, stored_size)  # a HEIF knows its true size only now
    return None


def _check_size(source: ImageFile, stored_size: Size) -> None:
    if source.size != stored_size:
        raise DecodeError(f"the header says {stored_size} px and the pixels are {source.size}")


_LOSSLESS = {"PNG": "PNG", "WEBP": "WEBP", "TIFF": "PNG", "BMP": "PNG", "GIF": "PNG"}


def _format_to_send(source: ImageFile) -> str:
    """Photographs stay JPEG, whatever they came in; alpha and flat colours need a lossless type."""
    if source.mode == "CMYK":
        return "JPEG"
    if source.format in _LOSSLESS:
        return _LOSSLESS[source.format]
    return "PNG" if source.has_transparency_data else "JPEG"


# What each mode becomes: (opaque, with transparency).
_PLAIN_MODES = {
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "La": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBX": ("RGB", "RGB"),
    "RGBA": ("RGBA", "RGBA"),
    "RGBa": ("RGBA", "RGBA"),
    "CMYK": ("RGB", "RGB"),
    "YCbCr": ("RGB", "RGB"),
}


def _plain(source: ImageFile) -> Image.Image:
    """8-bit grey or RGB, with alpha if anything is transparent. CMYK is inverted without its profile."""
    if source.mode.startswith("I;16"):
        return _eight_bits(source)
    modes = _PLAIN_MODES.get(source.mode)
    if modes is None:
        raise DecodeError(
            f"{source.format} with pixels of type {source.mode} has no true 8-bit form", code="unsupported_type"
        )
    mode = modes[source.has_transparency_data]
    # `convert` would copy what needs no converting, an eighth of all the time that a photograph takes
    image = source._new(source.im) if mode == source.mode else source.convert(mode)
    image.info = {}
    return image


def _eight_bits(source: ImageFile) -> Image.Image:
    """0 stays 0 and 65535 becomes 255."""
    deep = np.asarray(source).astype(np.uint32)
    return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))


def _matching_profile(icc_profile: bytes | None, mode: str) -> bytes | None:
    """A profile for other channels than the pixels now have would be worse than none."""
    color_space = b"GRAY" if mode in ("L", "LA") else b"RGB "
    return icc_profile if icc_profile and icc_profile[16:20] == color_space else None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turned_size(size: Size, turn: int) -> Size:
    return (size[1], size[0]) if turn >= 5 else size


def _encode(image: Image.Image, format_name: str, icc_profile: bytes | None) -> bytes:
    if format_name == "JPEG":
        with _memory_file() as file:
            image.save(file, "JPEG", quality=95, subsampling="4:4:4", icc_profile=icc_profile)
            file.seek(0)
            return file.read()
    target = io.BytesIO()
    match format_name:
        case "WEBP":
            # For a lossless file quality means effort: 0 is 7 times as fast as the default and 1 % larger.
            image.save(target, "WEBP", lossless=True, exact=True, method=1, quality=0, icc_profile=icc_profile or b"")
        case _:
            # A third of the default's time for a tenth more bytes.
            image.save(target, "PNG", compress_level=3, icc_profile=icc_profile)
    return target.getvalue()


def _memory_file() -> BinaryIO:
    """A file without a disk, if the system has such: into one with a number, Pillow writes a JPEG without the GIL.

    Into a BytesIO it lets go of the GIL for moments only, so that photographs are encoded one after the other, whatever
    the number of threads, and the event loop waits for each of its turns.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            return os.fdopen(os.memfd_create("pixscribe"), "w+b")
    return io.BytesIO()
