"""The pictures of a data set: upright, and of types that every tool opens.

JPEG, PNG and WEBP that stand upright go byte for byte, or as links. The rest is encoded again, at full size, as it
would be for the model: HEIC and AVIF as JPEG (PNG with transparency), TIFF, BMP and GIF as PNG, and what is turned by a
tag in its own type, without the tag.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pixscribe.errors import ImageError
from pixscribe.image import Header, ImageRules, decode_picture, read_header
from pixscribe.pictures import read_source
from pixscribe.places import split_part
from pixscribe.reading import is_url
from pixscribe.results import ImageRows, RunResults
from pixscribe.storage import is_bucket, local_path
from pixscribe.tables import Row

PictureMode = Literal["copy", "link"]

READERS = 16
"""Pictures that are read at a time: on a bucket and on the web each takes several round trips."""
DECODERS = max(2, os.cpu_count() or 1)
LARGE_PX = 25_000_000
"""Larger ones are decoded one at a time: 200 megapixels are 800 MB."""

_FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
_decoders = threading.BoundedSemaphore(DECODERS)
_large = threading.Lock()

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Picture:
    """What is put into the data set: bytes of one of Pillow's formats JPEG, PNG and WEBP, or a link to such a file."""

    format_name: str
    data: bytes
    link_to: bytes | None = None

    def put(self, path: Path) -> None:
        """Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.link_to is not None:
            os.symlink(self.link_to, os.fsencode(path))  # noqa: PTH211 (the name may be no text)
        else:
            path.write_bytes(self.data)


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that is gone, or another one by now."""

    why: str


def get_pictures(
    images: Iterable[tuple[RunResults, ImageRows]], mode: PictureMode
) -> Iterator[tuple[ImageRows, Picture | Missing]]:
    """The picture of each image, in order, a few of them read ahead."""

    def get(run: RunResults, image: ImageRows) -> tuple[ImageRows, Picture | Missing]:
        try:
            return image, get_picture(run, image.image, mode)
        except ImageError as error:
            return image, Missing(str(error))

    return _ahead(get, images)


def get_picture(run: RunResults, image: Row, mode: PictureMode) -> Picture:
    """The picture that a row of `images` is about. Raises `ReadError`, `DecodeError`."""
    config = run.config
    data = read_source(image, allow_private_hosts=config.source.allow_private_hosts)
    rules = ImageRules(max_pixels=config.image.max_pixels)
    header = read_header(data, rules)
    format_name = _FORMATS.get(header.mime_type)
    if format_name is None or header.needs_pixels:
        return _encoded_again(data, header, rules)
    link_to = _file_of(image["uri"]) if mode == "link" else None
    return Picture(format_name, b"" if link_to else data, link_to)


def _encoded_again(data: bytes, header: Header, rules: ImageRules) -> Picture:
    with _large if header.decode_px > LARGE_PX else nullcontext(), _decoders:
        picture = decode_picture(data, rules)
        return Picture(picture.format_name, picture.encode())


def _file_of(uri: str) -> bytes | None:
    """The path that a link can lead to: of a whole file of this machine."""
    if is_url(uri) or is_bucket(uri) or split_part(uri)[1]:
        return None
    return os.path.abspath(local_path(uri))  # noqa: PTH100 (the name may be no text)


def _ahead(
    function: Callable[[RunResults, ImageRows], R], items: Iterable[tuple[RunResults, ImageRows]]
) -> Iterator[R]:
    with ThreadPoolExecutor(READERS, "pixscribe-pictures") as readers:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                begun.append(readers.submit(function, *item))
                if len(begun) >= READERS:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
