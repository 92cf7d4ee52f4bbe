"""Folders and buckets, behind one interface: nothing above this file knows which it is.

A *key* is a relative path with `/`, of plain ASCII: the names that runs give their files. What a source holds is never
addressed by key but by its exact, percent-encoded URI.
"""

import builtins
import fcntl
import os
import re
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes
from uuid import uuid4

import pyarrow as pa

from pixscribe.errors import DecodeError, OutputError, ReadError
from pixscribe.objects import BUCKET_SCHEMES
from pixscribe.types import ImageRef

SWAP_TRIES = 100
MAX_IMAGE_BYTES = 512 * 1024 * 1024
"""A larger file is no image that a model would be asked about, and one that has to fit into memory."""
MAX_OFFSET = 2**63 - 1
"""Of a byte in a file, as far as the system counts."""
REPLACED = "changed since it was listed"


_is_plain = re.compile(r"[A-Za-z0-9_.~-]+").fullmatch
_is_plain_bytes = re.compile(rb"[A-Za-z0-9_.~-]+").fullmatch


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
        try:
            self.check_swaps(key)
        finally:
            self.delete(key)

    def check_swaps(self, key: str) -> None:  # noqa: B027 (those of a folder are our own)
        """Fail with one sentence, if `swap` would keep nobody out. What lies under `key` is written over."""

    def uri_of(self, key: str) -> str:
        """The URI of `key`, for people and for run.json."""
        return f"{self.uri}/{key}"


def open_storage(uri: str) -> Storage:
    """The place that a URI of the configuration names: a bucket of any cloud, or a folder with or without `file://`."""
    if not is_bucket(uri):
        return Folder(uri)
    from pixscribe.buckets import Bucket  # brings a library for each cloud, which most runs do without

    return Bucket(uri)


def is_bucket(uri: str) -> bool:
    """Whether a URI leads into a bucket."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme in BUCKET_SCHEMES


def as_link(uri: str) -> str:
    """A place that `Storage.uri_of` names, as a link in Markdown or in a browser."""
    if not is_bucket(uri):
        return Path(uri.removeprefix("file://")).absolute().as_uri()
    return quote(uri, safe="/:@%")


@contextmanager
def open_uri(uri: str) -> Iterator[BinaryIO]:
    """What an exact URI leads to, to read at random. Raises FileNotFoundError, OSError."""
    if is_bucket(uri):
        from pixscribe.buckets import open_object

        with open_object(uri) as file:
            yield file
    else:
        with open(_opened(local_path(uri)), "rb") as file:
            yield file


def version_of(uri: str) -> str:
    """What is another after each change of a file or object: size and time of change, ETag or generation.

    Empty if a bucket keeps no versions. Raises FileNotFoundError, OSError, `ReadError` for what is no file.
    """
    if not is_bucket(uri):
        with open(_opened(local_path(uri)), "rb", buffering=0) as file:
            return version_in(os.fstat(file.fileno()))
    from pixscribe.buckets import version_of_object

    return version_of_object(uri)


def local_path(uri: str) -> bytes:
    """The path that an exact `file://` URI means."""
    return unquote_to_bytes(uri.removeprefix("file://").encode("utf-8", "surrogatepass"))


def quoted(name: str | bytes) -> str:
    """One part of an exact URI, percent-encoded; what most names look like needs no look at each letter."""
    if isinstance(name, str):
        return name if _is_plain(name) else quote(name, safe="")
    return name.decode("ascii") if _is_plain_bytes(name) else quote(name, safe="")


def read_file(path: bytes) -> bytes:
    """All of a file. Raises OSError or `ReadError` when it cannot be had or changes, `DecodeError` above 512 MiB."""
    with open(_opened(path), "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        check_size(before.st_size)
        data = file.readall()
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ReadError("changed while it was read", code="changed_during_run")
    return data


def read_file_range(path: bytes, start: int, length: int, version: str | None = None) -> bytes:
    """`length` bytes of a file from `start`, of the version that `version_of` told, if one is given.

    Raises as `read_file` does, and when there are fewer or the version is another.
    """
    check_range(start, length)
    with open(_opened(path), "rb") as file:
        file.seek(start)
        data = file.read(length)
        if version and version_in(os.fstat(file.fileno())) != version:
            raise ReadError(REPLACED, code="changed_during_run")
    if len(data) != length:
        raise ReadError(f"ends before byte {start + length}", code="changed_during_run")
    return data


def check_size(size_bytes: int) -> None:
    """Raise `DecodeError` (too_large) for what is no image that would be asked about."""
    if size_bytes > MAX_IMAGE_BYTES:
        raise DecodeError(f"{size_bytes} bytes exceed the {MAX_IMAGE_BYTES} that are read", code="too_large")


def check_range(start: int, length: int) -> None:
    """Raise `ReadError` for a range that lies in no file, as `check_size` does for its length."""
    check_size(length)
    if min(start, length) < 0 or start + length > MAX_OFFSET:
        raise ReadError("the part begins or ends where no file has a byte")


def version_in(status: os.stat_result) -> str:
    """The version of a file, as `version_of` tells it."""
    return f"{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def as_output_errors(place: str, done: str) -> Iterator[None]:
    """What a place refuses comes out as `OutputError`; only "not there" stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # below a file there is nothing either
        raise FileNotFoundError(*error.args) from error
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{place}: cannot be {done}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """One line of what is the matter."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]  # some add the whole history of their tries


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
            with as_output_errors(str(path), "written"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with beside.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(path)
                _sync_folder(path.parent)
        except FileNotFoundError as error:
            raise OutputError(f"{path}: cannot be written: {reason(error)}") from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with as_output_errors(str(self.root / key), "read"), (self.root / key).open("rb") as file:
            yield file

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def list(self, folder: str) -> builtins.list[str]:
        try:
            with as_output_errors(str(self.root / folder), "listed"):
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
        with as_output_errors(str(path), "locked"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with guard.open("ab") as file:
                _lock_soon(file)
                yield

    def delete(self, key: str) -> None:
        with as_output_errors(str(self.root / key), "deleted"):
            (self.root / key).unlink(missing_ok=True)


def _lock_soon(file: BinaryIO) -> None:
    """Wait for a lock that is held for moments; a process that was stopped in such a moment must not stop us too."""
    for _ in range(SWAP_TRIES):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
    raise OutputError(f"{file.name}: is held by another process")


LINK = b"\0"
"""Behind the name of a link, where a folder has its slash: no name holds it, and it sorts before all that do."""


def _walk_tree(root: bytes, real_root: bytes) -> Iterator[ImageRef]:
    """With a stack of its own: a tree may be deeper than Python recurses. It holds the names of the open folders."""
    open_folders = [_Names(root, b"", real_root)]
    while open_folders:
        folder = open_folders[-1]
        name = folder.next()
        if name is None:
            open_folders.pop()
        elif name.endswith(b"/"):
            try:
                open_folders.append(_Names(folder.path + name, folder.relative + name, real_root))
            except OSError as error:
                said = f"folder cannot be listed: {reason(error)}"
                yield ImageRef(folder.display + _display(name), folder.uri + quoted(name[:-1]) + "/", None, said)
        elif ref := folder.look_at(name):
            yield ref


class _Names:
    """What is still to be looked at in one folder, whose names in front of each of its files are made only once."""

    __slots__ = ("_root", "_waiting", "display", "path", "relative", "uri")

    def __init__(self, path: bytes, relative: bytes, root: bytes) -> None:
        self.path, self.relative, self._root = path.rstrip(b"/") + b"/", relative, root
        with os.scandir(self.path) as entries:
            # a folder sorts as its name with a slash, which makes the order that of the whole relative names
            self._waiting = sorted((entry.name + _mark(entry) for entry in entries), reverse=True)
        self.display, self.uri = _display(relative), "file://" + quote(self.path, safe="/")

    def next(self) -> bytes | None:
        return self._waiting.pop() if self._waiting else None

    def look_at(self, marked: bytes) -> ImageRef | None:
        """One reference, with `error` for what cannot be an image, or None for a link to a folder."""
        name = marked.removesuffix(LINK)
        path, shown, uri = self.path + name, self.display + _display(name), self.uri + quoted(name)
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            return ImageRef(shown, uri, None, f"dangling link or unreadable entry: {reason(error)}")
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            return ImageRef(shown, uri, None, "is no regular file (a pipe, socket or device)")
        if marked is not name and not _is_below(os.path.realpath(path), self._root):
            return ImageRef(shown, uri, None, "is a link that leads out of the source")
        return ImageRef(shown, uri, status.st_size, version=version_in(status))


def _mark(entry: os.DirEntry[bytes]) -> bytes:
    if entry.is_dir(follow_symlinks=False):
        return b"/"
    return LINK if entry.is_symlink() else b""


def _is_below(path: bytes, root: bytes) -> bool:
    return path.startswith(root.rstrip(b"/") + b"/")


def _display(relative: bytes) -> str:
    return relative.decode("utf-8", "backslashreplace")


def _opened(path: bytes) -> int:
    if b"\0" in path:
        raise ReadError("the path holds a NUL character, as that of no file does")
    # without O_NONBLOCK, a pipe that took the file's place since the scan would hang the run
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ReadError("is no regular file any more")
    return descriptor


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets folders be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
