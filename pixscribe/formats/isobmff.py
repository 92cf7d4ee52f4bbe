"""HEIF and AVIF: boxes of stated length, of which `ftyp` comes first, `meta` describes and `mdat` holds the pixels."""

import io
import struct
from collections.abc import Iterator

from PIL.AvifImagePlugin import AvifImageFile
from PIL.ExifTags import Base
from pillow_heif import open_heif

from pixscribe.errors import DecodeError
from pixscribe.formats.container import Container, check_frames, counted, cut
from pixscribe.formats.tiff import exif_orientation

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis"})
_HEIF_BRANDS = frozenset({b"mif1", b"mif2"})
_HEIC_SEQUENCE_BRANDS = frozenset({b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF_SEQUENCE_BRANDS = frozenset({b"msf1"})
_NEEDED_WHOLE = frozenset({b"ftyp", b"meta", b"mdat", b"moov"})


def avif_type(data: bytes) -> str | None:
    major, compatible = _brands(data)
    is_avif = major in _AVIF_BRANDS or (compatible & _AVIF_BRANDS and not compatible & _HEIC_BRANDS)
    return "image/avif" if is_avif else None


def heif_type(data: bytes) -> str | None:
    """The major brand decides between HEIC and HEIF; an unknown one leaves it to the compatible brands."""
    major, compatible = _brands(data)
    for brands in ({major}, compatible):
        if brands & (_HEIC_BRANDS | _HEIC_SEQUENCE_BRANDS):
            return "image/heic"
        if brands & (_HEIF_BRANDS | _HEIF_SEQUENCE_BRANDS):
            return "image/heif"
    return None


def read_avif(data: bytes) -> Container:
    """Pillow tells the file's own rotation boxes as an EXIF orientation, and does not apply them."""
    _check_boxes(data)
    with AvifImageFile(io.BytesIO(data)) as image:
        width, height = image.size
        orientation = image.getexif().get(Base.Orientation, 1)
        frames = check_frames(image.n_frames)
    return Container("image/avif", width, height, orientation, orientation, frames, sendable=False)


def read_heif(data: bytes) -> Container:
    """The size is that after the file's own crop, rotation and mirroring, which every HEIF decoder applies."""
    _check_boxes(data)
    heif = open_heif(data)
    width, height = heif.size
    is_sequence = _brands(data)[0] in _HEIC_SEQUENCE_BRANDS | _HEIF_SEQUENCE_BRANDS
    return Container(
        heif_type(data) or "image/heif",
        width,
        height,
        exif_orientation=exif_orientation(heif.info.get("exif") or b""),
        frames=check_frames(len(heif)),
        sendable=not is_sequence,
    )


def _brands(data: bytes) -> tuple[bytes, set[bytes]]:
    """(major brand, compatible brands); nothing when the file is of another family."""
    if data[4:8] != b"ftyp":
        return b"", set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 1024)
    return data[8:12], {data[at : at + 4] for at in range(16, end, 4)}


def _check_boxes(data: bytes) -> None:
    """Phones append boxes and trailers of their own, so only what the picture needs has to be whole."""
    seen: dict[bytes, memoryview] = {}
    for kind, start, end in counted(_boxes(data)):
        if end > len(data):
            if kind in _NEEDED_WHOLE or b"meta" not in seen:
                raise cut(f"box {kind!r} ends at byte {end} of {len(data)}")
            break
        seen[kind] = memoryview(data)[start:end]
    if b"meta" not in seen:
        raise DecodeError("no description of the picture (meta box)")
    if b"mdat" not in seen and b"idat" not in bytes(seen[b"meta"]):
        raise cut("the pixels (mdat box) are missing")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the boxes at the top; the last one may end beyond the data."""
    position = 0
    while position + 8 <= len(data):
        size_bytes, kind = struct.unpack_from(">I4s", data, position)
        if size_bytes == 1:
            (size_bytes,) = struct.unpack_from(">Q", data, position + 8)
        end = position + size_bytes if size_bytes else len(data)
        yield kind, position, end
        position = max(end, position + 8)
