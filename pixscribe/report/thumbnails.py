"""Small pictures of the images of a run, within so many bytes and so many seconds."""

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from PIL import Image

from pixscribe.errors import ImageError
from pixscribe.image import ImageRules, decode_picture, read_header
from pixscribe.pictures import read_source
from pixscribe.report.gallery import Picture
from pixscribe.storage import is_bucket
from pixscribe.tables import Row

logger = logging.getLogger(__name__)

SIDE_PX = 640
LIMIT_S = 60.0
"""How long pictures are waited for: their sources may be slow."""
STEPS = ((640, 75), (640, 55), (448, 60), (320, 55), (224, 50), (160, 40), (96, 30))
"""Longer side in px and quality; the first that fits into its bytes is taken."""
READERS = 16
"""Threads, where reading means waiting."""
DECODERS = min(4, os.cpu_count() or 1)
LARGE_PX = 40_000_000
"""Larger images are decoded one at a time: they take 4 bytes a pixel and more."""
LOOK_S = 0.2
"""How often it is asked whether the work is over."""
MAX_PROFILE_BYTES = 4096
"""A colour profile above this size would take more than the picture."""
LATE = "not shown: its source did not answer in time"

_decoders = threading.BoundedSemaphore(DECODERS)
_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What the run allowed: `max_pixels` of an image, and whether a URL may lead into the own network."""

    max_pixels: int = ImageRules().max_pixels
    allow_private_hosts: bool = False


def load_pictures(
    images: Sequence[Row],
    limit_bytes: int,
    rules: SourceRules | None = None,
    limit_s: float = LIMIT_S,
    is_over: Callable[[], bool] = lambda: False,
) -> list[Picture | str]:
    """The picture of each row of `images`, or a few words that say why there is none. Never raises.

    Together they take at most `limit_bytes`, as data URIs. After `limit_s`, or soon after `is_over`, those that are not
    there yet are given up.
    """
    each_bytes = limit_bytes * 3 // 4 // max(1, len(images))
    until_s = time.monotonic() + limit_s

    def is_late() -> bool:
        return time.monotonic() > until_s or is_over()

    load = partial(_load, each_bytes=each_bytes, rules=rules or SourceRules(), is_over=is_late)
    with _Loaders(_threads(images)) as pool:
        loading = [pool.submit(load, image) for image in images]
        waiting = set[Future[Picture | str]](loading)
        while waiting and not is_late():
            waiting = wait(waiting, timeout=min(LOOK_S, limit_s)).not_done
        return [_loaded(future) for future in loading]


def thumbnail(data: bytes, limit_bytes: int, max_pixels: int = ImageRules().max_pixels) -> Picture:
    """A WebP picture of at most `limit_bytes`, upright. Raises `DecodeError`; nothing fits into less than 1 kB or so,
    where the smallest there is comes back.
    """
    rules = ImageRules(max_side_px=SIDE_PX, max_pixels=max_pixels)
    if read_header(data, rules).decode_px > LARGE_PX:
        with _large:
            picture = decode_picture(data, rules, is_preview=True)
    else:
        picture = decode_picture(data, rules, is_preview=True)
    profile = picture.icc_profile if len(picture.icc_profile or b"") <= MAX_PROFILE_BYTES else None
    encoded = b""
    for side_px, quality in STEPS:
        encoded = _encode(picture.image, side_px, quality, profile or b"")
        if len(encoded) <= limit_bytes:
            break
    return Picture(encoded, "image/webp")


class _Loaders(ThreadPoolExecutor):
    """Threads that are not waited for at the end."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "pixscribe-pictures")

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)


def _threads(images: Sequence[Row]) -> int:
    is_far = any(is_bucket(image["uri"]) or image["uri"].lower().startswith("http") for image in images)
    return READERS if is_far else DECODERS


def _load(image: Row, *, each_bytes: int, rules: SourceRules, is_over: Callable[[], bool]) -> Picture | str:
    try:
        data = read_source(image, allow_private_hosts=rules.allow_private_hosts, is_over=is_over)
        with _decoders:
            return LATE if is_over() else thumbnail(data, each_bytes, rules.max_pixels)
    except ImageError as error:
        return LATE if is_over() else f"{error.code}: {error}"
    except Exception as error:  # of some library, about a hostile file: a page must not fail for one picture
        logger.debug("%s has no picture", image["file_name"], exc_info=error)
        return f"not shown: {type(error).__name__}"


def _loaded(future: Future[Picture | str]) -> Picture | str:
    return future.result() if future.done() else LATE


def _encode(image: Image.Image, side_px: int, quality: int, icc_profile: bytes) -> bytes:
    if max(image.size) > side_px:
        image = image.copy()
        image.thumbnail((side_px, side_px), Image.Resampling.BILINEAR)
    with io.BytesIO() as file:
        # for a quarter more bytes than the default takes, a quarter of its time
        image.save(file, "WEBP", quality=quality, method=1, icc_profile=icc_profile)
        return file.getvalue()
