"""Folders and buckets, behind one interface: nothing above this file knows which it is.

A *key* is a relative path with `/`, of plain ASCII: the names that runs give their files. What a source holds is never
addressed by key but by its exact, percent-encoded URI.
"""

import builtins
import configparser
import fcntl
import os
import shutil
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote, unquote, unquote_to_bytes
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from pixscribe.errors import DecodeError, OutputError, ReadError
from pixscribe.types import ImageRef

if TYPE_CHECKING:
    from obstore import PutMode

SPOOLED_BYTES = 16 * 1024 * 1024
"""What is written to a bucket waits in memory up to this size, then in a temporary file."""
SWAP_TRIES = 100
MAX_IMAGE_BYTES = 512 * 1024 * 1024
"""A larger file is no image that a model would be asked about, and one that has to fit into memory."""


class Storage(ABC):
    """One place: a folder or a prefix in a bucket. What the place refuses comes out as `OutputError`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"

    @abstractmethod
    def walk(self) -> Iterator[ImageRef]:
        """Every file below, ordered by the bytes of its name. Links to folders are not followed.

        Raises FileNotFoundError if the place does not exist, OSError if it cannot be listed.
        """

    @abstractmethod
    def create(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A file to write into, which appears under `key` whole, when the context ends, or not at all."""

    @abstractmethod
    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The file under `key`, to read at random. Raises FileNotFoundError."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a file under `key`."""

    @abstractmethod
    def list(self, folder: str) -> builtins.list[str]:
        """The names directly below `folder`, sorted; empty if there is no such folder."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the file under `key`, if there is one."""

    @abstractmethod
    def swap(self, key: str, old: bytes | None, new: bytes) -> bool:
        """Put `new` under `key` if `old` is there (None: nothing), as one step for every process and machine.

        False, and nothing has changed, if something else is there.
        """

    @abstractmethod
    def commit(self, key: str, data: bytes, check: Callable[[], None]) -> None:
        """Write `key` whole after `check` has passed, so that nobody who fails the check later can have written it."""

    def sweep(self, folder: str) -> None:  # noqa: B027 (a bucket shows nothing of a write that was broken off)
        """Remove what killed processes left of their writes directly below `folder`, while nobody else writes there."""

    def tidy(self, folder: str) -> None:  # noqa: B027 (most places have no folders to remove)
        """Remove `folder` if nothing is left in it, where there are folders."""

    def read(self, key: str) -> bytes:
        """The content of `key`. Raises FileNotFoundError."""
        with self.open(key) as file:
            return file.read()

    def write(self, key: str, data: bytes) -> None:
        """Write `key`, whole or not at all."""
        with self.create(key) as file:
            file.write(data)

    def probe(self) -> None:
        """Fail now, with one sentence, if nothing could be written here later."""
        key = f"runs/.probe-{uuid4().hex}"
        self.write(key, b"pixscribe")
        self.delete(key)

    def uri_of(self, key: str) -> str:
        """The URI of `key`, for people and for run.json."""
        return f"{self.uri}/{key}"


def open_storage(uri: str) -> Storage:
    """The place that a URI of the configuration names: `s3://bucket/prefix`, or a folder with or without `file://`."""
    if uri.startswith("s3://"):
        return Bucket(uri)
    return Folder(uri)


def read_image(uri: str) -> bytes:
    """The bytes behind an exact URI of the manifest, read once and in one go.

    Raises `ReadError` when they cannot be had or change while they are read, `DecodeError` (too_large) above 512 MiB.
    """
    try:
        return _read_object(uri) if uri.startswith("s3://") else _read_file(_local_path(uri))
    except (OSError, pa.ArrowException) as error:
        raise ReadError(f"cannot be read: {_reason(error)}") from error


class Folder(Storage):
    """A directory of this machine."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.root = Path(uri.removeprefix("file://")).absolute()

    def walk(self) -> Iterator[ImageRef]:
        root = os.fsencode(self.root)
        yield from _walk_tree(root, os.path.realpath(root))

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        path = self.root / key
        # no reader of the tables takes a name with a leading dot and this ending for a part
        beside = path.parent / f".{path.name}.{uuid4().hex[:12]}.tmp"
        try:
            with _translated(str(path), "written"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with beside.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(path)
                _sync_folder(path.parent)
        except FileNotFoundError as error:
            raise OutputError(f"{path}: cannot be written: {_reason(error)}") from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with _translated(str(self.root / key), "read"), (self.root / key).open("rb") as file:
            yield file

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def list(self, folder: str) -> builtins.list[str]:
        try:
            with _translated(str(self.root / folder), "listed"):
                return sorted(entry.name for entry in (self.root / folder).iterdir() if not entry.name.startswith("."))
        except FileNotFoundError:
            return []

    def swap(self, key: str, old: bytes | None, new: bytes) -> bool:
        with self._alone(key):
            try:
                there: bytes | None = self.read(key)
            except FileNotFoundError:
                there = None
            if there != old:
                return False
            self.write(key, new)
            return True

    def commit(self, key: str, data: bytes, check: Callable[[], None]) -> None:
        with self.create(key) as file:
            file.write(data)
            # the last step before the file gets its name
            check()

    def sweep(self, folder: str) -> None:
        for left_over in (self.root / folder).glob(".*.tmp"):
            with suppress(OSError):
                left_over.unlink()

    def tidy(self, folder: str) -> None:
        with suppress(OSError):
            (self.root / folder).rmdir()

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Hold off every other process of this machine for the moment that a swap takes."""
        path = self.root / key
        guard = path.with_name(".guard")
        with _translated(str(path), "locked"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with guard.open("ab") as file:
                _lock_soon(file)
                yield

    def delete(self, key: str) -> None:
        with _translated(str(self.root / key), "deleted"):
            (self.root / key).unlink(missing_ok=True)


class Bucket(Storage):
    """A prefix in an S3 bucket, with the credentials and endpoint of the usual AWS environment variables."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.root = self.uri[5:]

    def walk(self) -> Iterator[ImageRef]:
        selector = pafs.FileSelector(self.root, recursive=True)
        files = [info for info in _s3(self.root).get_file_info(selector) if info.type == pafs.FileType.File]
        for info in sorted(files, key=lambda info: info.path):
            yield ImageRef(info.path[len(self.root) + 1 :], _object_uri(info.path), info.size)

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        # Arrow completes an upload even when it is dropped half-way, so nothing is sent before all of it is there
        try:
            with tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as spooled:
                yield cast(BinaryIO, spooled)
                spooled.seek(0)
                with (
                    _translated(self.uri_of(key), "written"),
                    _s3(self.root).open_output_stream(self._path(key)) as stream,
                ):
                    shutil.copyfileobj(spooled, stream, SPOOLED_BYTES)
        except FileNotFoundError as error:
            raise OutputError(f"{self.uri_of(key)}: cannot be written: {error}") from error

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with _translated(self.uri_of(key), "read"), _s3(self.root).open_input_file(self._path(key)) as file:
            yield cast(BinaryIO, file)

    def exists(self, key: str) -> bool:
        with _translated(self.uri_of(key), "looked up"):
            return bool(_s3(self.root).get_file_info(self._path(key)).type == pafs.FileType.File)

    def list(self, folder: str) -> builtins.list[str]:
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        with _translated(self.uri_of(folder), "listed"):
            return sorted(info.base_name for info in _s3(self.root).get_file_info(selector))

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), _translated(self.uri_of(key), "deleted"):
            _s3(self.root).delete_file(self._path(key))

    def swap(self, key: str, old: bytes | None, new: bytes) -> bool:
        store, path = self._conditional(), self._path(key).partition("/")[2]
        with _translated(self.uri_of(key), "locked"):
            try:
                found = store.get(path)
                mode: PutMode = {"e_tag": str(found.meta["e_tag"])}
                there: bytes | None = bytes(found.bytes())
            except FileNotFoundError:
                there, mode = None, "create"
            if there != old:
                return False
            try:
                store.put(path, new, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def commit(self, key: str, data: bytes, check: Callable[[], None]) -> None:
        check()
        if not self.swap(key, None, data):
            # it is there already: from before a resume, which may be replaced, or from whoever has taken over
            check()
            self.write(key, data)

    def _conditional(self) -> S3Store:
        """The same bucket by way of a library that can write on condition, which Arrow cannot."""
        return _conditional_store(*_place_of_bucket(self.root.partition("/")[0]))

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"


def _lock_soon(file: BinaryIO) -> None:
    """Wait for a lock that is held for moments; a process that was stopped in such a moment must not stop us too."""
    for _ in range(SWAP_TRIES):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
    raise OutputError(f"{file.name}: is held by another process")


def _walk_tree(root: bytes, real_root: bytes) -> Iterator[ImageRef]:
    """With a stack of its own: a tree may be deeper than Python recurses."""
    waiting = [b""]  # relative names, that of a folder with its slash; the next one is last
    while waiting:
        relative = waiting.pop()
        path = os.path.join(root, relative)  # noqa: PTH118 (pathlib knows no bytes)
        if relative and not relative.endswith(b"/"):
            yield from _look_at_file(path, relative, real_root)
            continue
        try:
            waiting += [relative + name for name in reversed(_names_in(path))]
        except OSError as error:
            if not relative:
                raise
            yield ImageRef(_display(relative), _file_uri(path), None, f"folder cannot be listed: {_reason(error)}")


def _names_in(folder: bytes) -> list[bytes]:
    with os.scandir(folder) as entries:
        # a folder sorts as its name with a slash, which makes the order that of the whole relative names
        return sorted(entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"") for entry in entries)


def _look_at_file(path: bytes, relative: bytes, root: bytes) -> Iterator[ImageRef]:
    """One reference, with `error` for what cannot be an image, or none for a link to a folder."""
    name, uri = _display(relative), _file_uri(path)
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        yield ImageRef(name, uri, None, f"dangling link or unreadable entry: {_reason(error)}")
        return
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        yield ImageRef(name, uri, None, "is no regular file (a pipe, socket or device)")
    elif os.path.islink(path) and not _is_below(os.path.realpath(path), root):  # noqa: PTH114
        yield ImageRef(name, uri, None, "is a link that leads out of the source")
    else:
        yield ImageRef(name, uri, status.st_size)


def _is_below(path: bytes, root: bytes) -> bool:
    return path.startswith(root.rstrip(b"/") + b"/")


def _display(relative: bytes) -> str:
    return relative.decode("utf-8", "backslashreplace")


def _file_uri(path: bytes) -> str:
    return "file://" + quote(path, safe="/")


def _object_uri(path: str) -> str:
    return "s3://" + quote(path, safe="/")


def _local_path(uri: str) -> bytes:
    return unquote_to_bytes(uri.removeprefix("file://"))


def _read_file(path: bytes) -> bytes:
    # without O_NONBLOCK, a pipe that took the file's place since the scan would hang the run
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise ReadError("is no regular file any more")
        _check_size(before.st_size)
        data = file.readall()
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ReadError("changed while it was read", code="changed_during_run")
    return data


def _read_object(uri: str) -> bytes:
    path = unquote(uri[5:])
    with _s3(path).open_input_file(path) as file:
        size_bytes = file.size()
        _check_size(size_bytes)
        data = cast(bytes, file.read())
    if len(data) != size_bytes:
        raise ReadError("changed while it was read", code="changed_during_run")
    return data


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_IMAGE_BYTES:
        raise DecodeError(f"{size_bytes} bytes exceed the {MAX_IMAGE_BYTES} that are read", code="too_large")


def _s3(path: str) -> pafs.S3FileSystem:
    return _arrow_filesystem(*_place_of_bucket(path.partition("/")[0])[1:])


def _place_of_bucket(bucket: str) -> tuple[str, str, str | None]:
    """Bucket, region and endpoint, by the usual environment variables."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return bucket, region or ("us-east-1" if endpoint else _region_of(bucket)), endpoint


@lru_cache(maxsize=16)
def _region_of(bucket: str) -> str:
    return str(pafs.resolve_s3_region(bucket))


@lru_cache(maxsize=16)
def _arrow_filesystem(region: str, endpoint: str | None) -> pafs.S3FileSystem:
    options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
    return pafs.S3FileSystem(region=region, **options)


@lru_cache(maxsize=16)
def _conditional_store(bucket: str, region: str, endpoint: str | None) -> S3Store:
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if not any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")):
        options |= _profile_credentials()
    is_plain = bool(endpoint and endpoint.startswith("http://"))
    return S3Store(bucket, region=region, client_options={"allow_http": is_plain}, **options)


def _profile_credentials() -> dict[str, str]:
    """Those of the active AWS profile, which Arrow finds by itself and obstore does not."""
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")  # noqa: PTH111
    profiles = configparser.RawConfigParser()
    try:
        profiles.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    name = os.environ.get("AWS_PROFILE") or "default"
    values = dict(profiles[name]) if profiles.has_section(name) else {}
    return {
        option: values[f"aws_{option}"]
        for option in ("access_key_id", "secret_access_key", "session_token")
        if f"aws_{option}" in values
    }


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets folders be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _translated(place: str, done: str) -> Iterator[None]:
    """What a place refuses comes out as `OutputError`; only "not there" stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # below a file there is nothing either
        raise FileNotFoundError(*error.args) from error
    except (OSError, pa.ArrowException, BaseError) as error:
        raise OutputError(f"{place}: cannot be {done}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]  # some add the whole history of their tries
