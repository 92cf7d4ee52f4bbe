"""Buckets as places for images and tables: `s3://bucket/prefix`, `gs://bucket/prefix`, `abfs://container@account…/path`.

Credentials and endpoints come from the usual environment variables of each cloud; `objects.py` says which.
"""

import io
import tempfile
from builtins import list as list_of  # `list` is a verb of Storage
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from pixscribe.errors import OutputError, ReadError
from pixscribe.objects import Address, Found, Objects, objects_at
from pixscribe.rest import Changed
from pixscribe.storage import REPLACED, Storage, as_output_errors, check_range, check_size, quoted, reason
from pixscribe.types import ImageRef

SPOOLED_BYTES = 16 * 1024 * 1024
"""What is written to a bucket waits in memory up to this size, then in a temporary file."""
WHOLE_BYTES = 1024 * 1024
"""What is opened and is no larger is read at once, in the request that opens it."""
AHEAD_BYTES = 64 * 1024


class Bucket(Storage):
    """A prefix in a bucket of any cloud."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._address = Address.of_place(uri)
        self._last_folder = "", self._address.uri_of("")

    def walk(self) -> Iterator[ImageRef]:
        prefix, last, is_there = self._key(""), "", False
        for page in self._objects().pages(prefix):
            is_there = True
            for key, size_bytes, version in page:
                # code points sort as their UTF-8 bytes do
                if key <= last:
                    raise OSError(f"the service lists {key!r} after {last!r}, not in the byte order of the keys")
                last = key
                folder, slash, name = key.rpartition("/")
                uri = self._uri_of_folder(folder + slash) + quoted(name)
                yield ImageRef(key[len(prefix) :], uri, size_bytes, version=version or None)
        if prefix and not is_there:
            raise FileNotFoundError(f"there is nothing below {self.uri}")

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        # nothing is sent before all of it is there, so that what breaks off leaves nothing
        with tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as spooled, self._refusals(key, "written"):
            yield cast(BinaryIO, spooled)
            spooled.seek(0, io.SEEK_END)
            is_small = spooled.tell() <= SPOOLED_BYTES
            spooled.seek(0)
            self._objects().put(self._key(key), spooled.read() if is_small else cast(BinaryIO, spooled))

    def write(self, key: str, data: bytes) -> None:
        with self._refusals(key, "written"):
            self._objects().put(self._key(key), data)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with as_output_errors(self.uri_of(key), "read"), _opened(self._objects(), self._key(key)) as file:
            yield file

    def read(self, key: str) -> bytes:
        with as_output_errors(self.uri_of(key), "read"):
            return self._objects().get(self._key(key)).read()

    def exists(self, key: str) -> bool:
        with as_output_errors(self.uri_of(key), "looked up"):
            return self._objects().exists(self._key(key))

    def list(self, folder: str) -> list_of[str]:
        with as_output_errors(self.uri_of(folder), "listed"):
            return sorted(self._objects().names(self._key(folder).rstrip("/")))

    def delete(self, key: str) -> None:
        with as_output_errors(self.uri_of(key), "deleted"):
            self._objects().delete(self._key(key))

    def swap(self, key: str, old: bytes | None, new: bytes) -> bool:
        with self._refusals(key, "locked"):
            found = self._found(key)
            there = found.read() if found else None
            return there == old and self._objects().put_over(self._key(key), new, found.version if found else None)

    def commit(self, key: str, data: bytes, check: Callable[[], None]) -> None:
        check()
        with self._refusals(key, "written"):
            is_new = self._objects().put_over(self._key(key), data, None)
        if not is_new:
            # it is there already: from before a resume, which may be replaced, or from whoever has taken over
            check()
            self.write(key, data)

    def check_swaps(self, key: str) -> None:
        objects, whole_key = self._objects(), self._key(key)
        if objects.keeps_conditions:
            return
        with self._refusals(key, "locked"):
            old = objects.version(whole_key)
            objects.put(whole_key, b"replaced")
            is_kept = old and not any(objects.put_over(whole_key, b"swapped", version) for version in (None, old))
        if not is_kept:
            raise OutputError(
                f"{self.uri}: this service replaces objects even where a write forbids it (If-None-Match, If-Match), "
                "so no two runs could be kept apart; write to a folder or to another service"
            )
        objects.keeps_conditions = True

    def _found(self, key: str) -> Found | None:
        try:
            return self._objects().get(self._key(key))
        except FileNotFoundError:
            return None

    @contextmanager
    def _refusals(self, key: str, done: str) -> Iterator[None]:
        """For what writes: a place that is not there is a refusal too."""
        try:
            with as_output_errors(self.uri_of(key), done):
                yield
        except FileNotFoundError as error:
            raise OutputError(f"{self.uri_of(key)}: cannot be {done}: {reason(error)}") from error

    def _uri_of_folder(self, folder: str) -> str:
        """The last one is kept: a listing comes folder by folder."""
        if folder != self._last_folder[0]:
            self._last_folder = folder, self._address.uri_of(folder)
        return self._last_folder[1]

    def _key(self, key: str) -> str:
        return f"{self._address.key}/{key}" if self._address.key else key

    def _objects(self) -> Objects:
        return objects_at(self._address)


def read_object(uri: str) -> bytes:
    """The object behind an exact URI, in one request.

    Raises OSError or `ReadError` when it cannot be had or changes while it is read, `DecodeError` (too_large) above
    512 MiB.
    """
    objects, key = _object_at(uri)
    found = objects.get(key)
    try:
        check_size(found.size_bytes)
        data = found.read()
    finally:
        found.drop()
    if len(data) != found.size_bytes:
        raise ReadError("changed while it was read", code="changed_during_run")
    return data


def read_object_range(uri: str, start: int, length: int, version: str | None = None) -> bytes:
    """`length` bytes of it from `start`, in one request, of the version that `version_of` told, if one is given.

    Raises as `read_object` does, and when there are fewer or the version is another.
    """
    check_range(start, length)
    if length == 0:
        return b""
    objects, key = _object_at(uri)
    try:
        data = objects.get_range(key, start, length, version)
    except Changed:
        raise ReadError(REPLACED, code="changed_during_run") from None
    if len(data) != length:
        raise ReadError(f"ends before byte {start + length}", code="changed_during_run")
    return data


@contextmanager
def open_object(uri: str) -> Iterator[BinaryIO]:
    """The object behind an exact URI, to read at random. Raises FileNotFoundError, OSError."""
    with _opened(*_object_at(uri)) as file:
        yield file


def version_of_object(uri: str) -> str:
    """The ETag or generation of the object behind an exact URI. Raises FileNotFoundError, OSError."""
    objects, key = _object_at(uri)
    return objects.version(key)


def _object_at(uri: str) -> tuple[Objects, str]:
    address = Address.of_object(uri)
    return objects_at(address), address.key


@contextmanager
def _opened(objects: Objects, key: str) -> Iterator[BinaryIO]:
    found = objects.get(key)
    if found.size_bytes <= WHOLE_BYTES:
        yield io.BytesIO(found.read())
        return
    found.drop()
    with io.BufferedReader(_Ranges(objects, key, found), AHEAD_BYTES) as file:
        yield cast(BinaryIO, file)


class _Ranges(io.RawIOBase):
    """An object as a file, each read of which is a request for a range of the version that was opened."""

    def __init__(self, objects: Objects, key: str, found: Found) -> None:
        super().__init__()
        self._objects, self._object_key, self._found = objects, key, found
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._found.size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._next(self._found.size_bytes)

    def _next(self, at_most: int) -> bytes:
        length = min(at_most, self._found.size_bytes - self._at)
        if length <= 0:
            return b""
        data = self._objects.get_range(self._object_key, self._at, length, self._found.version)
        if len(data) != length:
            raise Changed("changed while it was read")
        self._at += length
        return data
