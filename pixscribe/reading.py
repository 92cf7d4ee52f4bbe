"""The bytes of one image, wherever its exact URI says that they are."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs

import pyarrow as pa

from pixscribe.errors import ReadError
from pixscribe.parquet_images import read_row
from pixscribe.places import split_part
from pixscribe.rest import Changed
from pixscribe.storage import is_bucket, local_path, read_file, read_file_range, reason
from pixscribe.web import fetch

_URL = re.compile(r"https?://", re.IGNORECASE)
_is_number = re.compile(r"[0-9]{1,18}").fullmatch


def read_image(uri: str, *, allow_private_hosts: bool = False, is_over: Callable[[], bool] = lambda: False) -> bytes:
    """The bytes behind an exact URI of the manifest, read once and in one go: of a file, an object, a URL or a part.

    What is fetched from the web is given up soon after `is_over`. Raises `ReadError` when the bytes cannot be had or
    change while they are read, `DecodeError` (too_large) above 512 MiB.
    """
    try:
        if is_url(uri):
            return fetch(uri, allow_private_hosts=allow_private_hosts, is_over=is_over)
        container, part = split_part(uri)
        return _read_part(container, part) if part else _read_whole(uri)
    except Changed as error:
        raise ReadError(str(error), code="changed_during_run") from error
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, OverflowError) as error:
        # a list of URIs may come from anywhere, and what it says may be as wrong as it likes
        raise ReadError(f"cannot be read: {reason(error)}") from error


def is_url(uri: str) -> bool:
    """Whether it is fetched from the web."""
    return _URL.match(uri) is not None


def _read_part(container: str, part: str) -> bytes:
    """Raises what its reader raises, and `ReadError` for a fragment that says nothing."""
    said = {key: values[0] for key, values in parse_qs(part, keep_blank_values=True).items()}
    numbers = [int(said[key]) for key in ("offset", "size", "row") if _is_number(said.get(key, ""))]
    version = said.get("version")
    if "column" in said and len(numbers) == 1 and "row" in said:
        return read_row(container, said["column"], numbers[0], version)
    if len(numbers) == 2 and "row" not in said:
        return _read_range(container, numbers[0], numbers[1], version)
    raise ReadError(f"the part {part[:80]!r} of a file should be offset and size, or column and row")


def _read_whole(uri: str) -> bytes:
    if not is_bucket(uri):
        return read_file(local_path(uri))
    from pixscribe.buckets import read_object  # brings a library for each cloud, which most runs do without

    return read_object(uri)


def _read_range(uri: str, start: int, length: int, version: str | None) -> bytes:
    if not is_bucket(uri):
        return read_file_range(local_path(uri), start, length, version)
    from pixscribe.buckets import read_object_range

    return read_object_range(uri, start, length, version)
