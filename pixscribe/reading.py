"""The bytes of one image, wherever its exact URI says that they are."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urldefrag

import pyarrow as pa

from pixscribe.errors import ReadError
from pixscribe.parquet_images import read_row
from pixscribe.storage import is_bucket, local_path, read_file, read_file_range, reason
from pixscribe.web import fetch

_URL = re.compile(r"https?://", re.IGNORECASE)
_PART = re.compile(r"(?:offset|column)=")


def read_image(uri: str, *, allow_private_hosts: bool = False, is_over: Callable[[], bool] = lambda: False) -> bytes:
    """The bytes behind an exact URI of the manifest, read once and in one go: of a file, an object, a URL or a part.

    What is fetched from the web is given up soon after `is_over`. Raises `ReadError` when the bytes cannot be had or
    change while they are read, `DecodeError` (too_large) above 512 MiB.
    """
    try:
        if is_url(uri):
            return fetch(uri, allow_private_hosts=allow_private_hosts, is_over=is_over)
        container, part = urldefrag(uri)
        return _read_part(container, part) if _PART.match(part) else _read_whole(uri)
    except (OSError, pa.ArrowException) as error:
        raise ReadError(f"cannot be read: {reason(error)}") from error


def is_url(uri: str) -> bool:
    """Whether it is fetched from the web."""
    return _URL.match(uri) is not None


def _read_part(container: str, part: str) -> bytes:
    """Raises what its reader raises, and `ReadError` for a fragment that says nothing."""
    said = {key: values[0] for key, values in parse_qs(part, keep_blank_values=True).items()}
    numbers = [int(said[key]) for key in ("offset", "size", "row") if said.get(key, "").isdecimal()]
    if "column" in said and len(numbers) == 1 and "row" in said:
        return read_row(container, said["column"], numbers[0])
    if len(numbers) == 2 and "row" not in said:
        return _read_range(container, *numbers)
    raise ReadError(f"the part {part[:80]!r} of a file should be offset and size, or column and row")


def _read_whole(uri: str) -> bytes:
    if not is_bucket(uri):
        return read_file(local_path(uri))
    from pixscribe.buckets import read_object  # brings a library for each cloud, which most runs do without

    return read_object(uri)


def _read_range(uri: str, start: int, length: int) -> bytes:
    if not is_bucket(uri):
        return read_file_range(local_path(uri), start, length)
    from pixscribe.buckets import read_object_range

    return read_object_range(uri, start, length)
