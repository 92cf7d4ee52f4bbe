"""Lists of images: the lines of a .csv, .jsonl, .txt or Parquet file that name paths and URLs.

Every line is one image, in the manifest's own order. A line that names none comes with `error`; empty lines count,
except those at the end of the file. Only a line whose URI and name are both those of an earlier line of the same
manifest is left out. Of two URLs that differ in their query only, the later has the query in its name.

Whether a line came before is told by 64 bits of a hash, so a line takes 16 bytes of memory and no more, and of ten
million lines one is taken for another by mistake once in 300,000 runs.
"""

import csv
import gzip
import logging
import os
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError
from pixscribe.objects import BUCKET_SCHEMES
from pixscribe.places import SourceFile, file_uri, name_of_uri, plain_name, scheme_of
from pixscribe.storage import open_uri, reason
from pixscribe.types import ImageRef

logger = logging.getLogger(__name__)

URI_COLUMNS = ("uri", "url", "path", "image", "image_url", "file_name", "filename")
"""Without `source.uri_column`, the first of these that there is."""
SCHEMES = frozenset(("file", *BUCKET_SCHEMES, "http", "https"))
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_NAME_BYTES = 32 * 1024
"""No path and no URL that anybody serves is longer."""
LINES_LOOKED_AT = 20
"""If none of so many is JSON, the file is no list of JSON objects."""
READ_BYTES = 1024 * 1024
FIRST_BATCH, LARGEST_BATCH = 64, 65_536

_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?::\d{1,4})?(?:[/?#]|$)")

Numbers = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Line:
    """What a line says: `value` names the image, `name` what it is to be called; `error` why it says nothing."""

    number: int
    value: bytes | None
    name: bytes | None = None
    error: str | None = None


def list_text(file: SourceFile, source: SourceConfig) -> Iterator[ImageRef]:
    """The images that a .csv, .jsonl or .txt file lists, gzipped or not. Raises `ConfigError` if it is no such file."""
    try:
        with open_uri(file.uri) as raw:
            is_packed = file.name.lower().endswith(".gz")
            lines = _lines(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_packed else raw)
            yield from refs_of(_read(lines, file, source), file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"source.uri: {file.name!r} is no whole gzip file: {reason(error)}") from error


def refs_of(lines: Iterable[Line], file: SourceFile) -> Iterator[ImageRef]:
    """The images that lines name, relative paths being relative to the place of the file."""
    rows, names, left_out = Seen(), Seen(), 0
    for batch in _growing_batches(lines):
        refs = [_ref(line, file) for line in batch]
        fresh = rows.add(_numbers(f"{ref.file_name}\0{ref.uri}" for ref in refs))
        left_out += len(refs) - int(fresh.sum())
        refs = [ref for ref, is_fresh in zip(refs, fresh, strict=True) if is_fresh]
        fresh = names.add(_numbers(ref.file_name for ref in refs))
        yield from (ref if is_fresh else _told_apart(ref) for ref, is_fresh in zip(refs, fresh, strict=True))
    if left_out:
        logger.warning("%s: %d lines that repeat an earlier one were left out", file.name, left_out)


def choose_column(names: Sequence[str], wanted: str | None, key: str, file: SourceFile) -> str:
    """The column that is meant. Raises `ConfigError` that names those that there are."""
    found = next((name for name in ((wanted,) if wanted else URI_COLUMNS) if name in names), None)
    if found is not None:
        return found
    there = ", ".join(repr(name[:80]) for name in names[:20]) + (", …" if len(names) > 20 else "")
    what = f"{wanted!r} is no column" if wanted else f"null finds no column {', '.join(URI_COLUMNS)}"
    raise ConfigError(f"source.{key}: {what} of {file.name!r}, which has {there or 'none'}")


class Seen:
    """Numbers that came before, in eight bytes each: sorted runs, of which similar ones are merged."""

    def __init__(self) -> None:
        self._runs: list[Numbers] = []

    def add(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Where a number is there for the first time."""
        fresh = np.zeros(len(numbers), bool)
        fresh[np.unique(numbers, return_index=True)[1]] = True
        for run in self._runs:
            places = np.minimum(run.searchsorted(numbers), len(run) - 1)
            fresh &= run[places] != numbers
        if fresh.any():
            self._runs.append(np.sort(numbers[fresh]))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        return fresh


def _growing_batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Small ones first: whoever only asks whether there is an image should not wait for thousands."""
    remaining, size = iter(lines), FIRST_BATCH
    while batch := list(islice(remaining, size)):
        yield batch
        size = min(2 * size, LARGEST_BATCH)


def _numbers(texts: Iterable[str]) -> Numbers:
    digests = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)


def _told_apart(ref: ImageRef) -> ImageRef:
    """The name with the query of the URL, where it has one and is not given by a column."""
    query = urlsplit(ref.uri).query if ref.uri.startswith("http") else ""
    if not query or ref.file_name != name_of_uri(ref.uri):
        return ref
    return replace(ref, file_name=f"{ref.file_name}?{query}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends; of a longer one than `MAX_LINE_BYTES`, a little more than so much."""
    rest, is_skipping = b"", False
    while block := file.read(READ_BYTES):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            if not is_skipping:
                yield line.removesuffix(b"\r")
            is_skipping = False
        if len(rest) > MAX_LINE_BYTES:
            if not is_skipping:
                yield rest
            rest, is_skipping = b"", True
    if rest and not is_skipping:
        yield rest


def _read(lines: Iterator[bytes], file: SourceFile, source: SourceConfig) -> Iterator[Line]:
    first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
    lines = _chain(first, lines)
    kind = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "csv":
        return _read_csv(lines, file, source)
    if kind == "jsonl":
        return _read_jsonl(lines, file, source)
    return _without_empty_end(Line(number, line) for number, line in enumerate(lines, 1))


def _chain(first: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from lines


def _without_empty_end(lines: Iterable[Line]) -> Iterator[Line]:
    """Leave out the empty lines at the end; those before are lines like any other."""
    first, count = 0, 0
    for line in lines:
        if not line.value and not line.error:
            first, count = first or line.number, count + 1
            continue
        yield from (Line(number, b"") for number in range(first, first + count))
        first, count = 0, 0
        yield line


def _read_csv(lines: Iterator[bytes], file: SourceFile, source: SourceConfig) -> Iterator[Line]:
    rows = csv.reader(line.decode("utf-8", "surrogateescape") + "\n" for line in lines)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise ConfigError(f"source.uri: {file.name!r} is no CSV file: {error}") from error
    place = header.index(choose_column(header, source.uri_column, "uri_column", file))
    named = header.index(choose_column(header, source.name_column, "name_column", file)) if source.name_column else None
    yield from _without_empty_end(_csv_line(rows, row, len(header), place, named) for row in _csv_rows(rows))


def _csv_rows(rows: Any) -> Iterator[list[str] | str]:
    """Rows, or what is wrong with one."""
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"is no CSV: {error}"


def _csv_line(rows: Any, row: list[str] | str, columns: int, place: int, named: int | None) -> Line:
    number: int = rows.line_num
    if isinstance(row, str):
        return Line(number, None, error=row)
    if not row:
        return Line(number, b"")
    if len(row) != columns:
        return Line(number, None, error=f"has {len(row)} columns where the first line has {columns}")
    name = None if named is None else os.fsencode(row[named])
    return Line(number, os.fsencode(row[place]) or None, name, None if row[place] else "names no image")


def _read_jsonl(lines: Iterator[bytes], file: SourceFile, source: SourceConfig) -> Iterator[Line]:
    head = [_parse(line) for line in islice(lines, LINES_LOOKED_AT)]
    example = next((each for each in head if isinstance(each, dict)), None)
    if example is None:
        if head:
            raise ConfigError(f"source.uri: {file.name!r} does not hold a JSON object in each line")
        return
    column = choose_column(list(example), source.uri_column, "uri_column", file)
    if source.name_column:
        choose_column(list(example), source.name_column, "name_column", file)
    rows = _chain_rows(head, lines)
    yield from _without_empty_end(_json_line(n, row, column, source.name_column) for n, row in enumerate(rows, 1))


def _parse(line: bytes) -> dict[str, Any] | str | None:
    """The object, what is wrong, or None for an empty line."""
    if not line.strip():
        return None
    if len(line) > MAX_LINE_BYTES:
        return f"is longer than {MAX_LINE_BYTES} bytes"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"is no JSON: {error}"
    return value if isinstance(value, dict) else "is no JSON object"


def _chain_rows(
    head: list[dict[str, Any] | str | None], lines: Iterator[bytes]
) -> Iterator[dict[str, Any] | str | None]:
    yield from head
    yield from map(_parse, lines)


def _json_line(number: int, row: dict[str, Any] | str | None, column: str, name_column: str | None) -> Line:
    if row is None:
        return Line(number, b"")
    if isinstance(row, str):
        return Line(number, None, error=row)
    value, name = row.get(column), row.get(name_column) if name_column else None
    if not isinstance(value, str) or not value:
        return Line(number, None, error=f"has no text under {column!r}")
    return Line(number, value.encode(), None if name is None else str(name).encode("utf-8", "replace"))


def _ref(line: Line, file: SourceFile) -> ImageRef:
    value, error = line.value or b"", line.error
    if error is None:
        try:
            return _named(_resolve(value, file), line.name)
        except ValueError as problem:
            error = str(problem)
    return ImageRef(f"{file.name}:{line.number}", f"{file.uri}#line={line.number}", None, f"its line {error}")


def _named(ref: ImageRef, name: bytes | None) -> ImageRef:
    if not name:
        return ref
    if len(name) > MAX_NAME_BYTES or not (chosen := plain_name(name)):
        raise ValueError(f"gives the name {name[:80]!r}, which is none")
    return replace(ref, file_name=chosen)


def _resolve(value: bytes, file: SourceFile) -> ImageRef:
    """Raises ValueError, with what the line does wrong."""
    if not value.strip():
        raise ValueError("is empty")
    if b"\0" in value:
        raise ValueError("holds a NUL character")
    if len(value) > MAX_NAME_BYTES:
        raise ValueError(f"names an image in more than {MAX_NAME_BYTES} bytes")
    scheme = scheme_of(value)
    if scheme is None:
        return _of_path(value, file)
    if scheme not in SCHEMES:
        raise ValueError(f"has the scheme {scheme[:20]!r}; allowed: {', '.join(sorted(SCHEMES))}")
    return _of_uri(value.strip(), scheme)


def _of_path(path: bytes, file: SourceFile) -> ImageRef:
    name = plain_name(path)
    if not name:
        raise ValueError(f"names no file: {path[:80]!r}")
    folder = unquote_to_bytes(file.uri).rpartition(b"/")[0]
    if path.startswith(b"/") or folder.startswith(b"file://"):
        # not normalised: what `..` means, only the links on the way know
        path = os.path.join(folder.removeprefix(b"file://") + b"/", path)  # noqa: PTH118 (pathlib knows no bytes)
        path = path if b".." in path else os.path.normpath(path)
        return ImageRef(name, file_uri(path), _size_bytes(path))
    place, _, key = folder.partition(b"://")[2].partition(b"/")
    key = posixpath.normpath(posixpath.join(key, path))
    if key.startswith(b".."):
        raise ValueError("leads out of the bucket")
    return ImageRef(name, f"{file.uri.partition('://')[0]}://{place.decode()}/{quote(key, safe='/')}")


def _of_uri(value: bytes, scheme: str) -> ImageRef:
    # what no URI may hold as it is gets encoded, so that the column `uri` is one
    uri = scheme + quote(value, safe="!#$%&'()*+,/:;=?@[]~")[len(scheme) :]
    if scheme in ("http", "https"):
        _check_url(uri)
    if scheme == "file" and not uri.startswith("file:///"):
        raise ValueError("should have file:/// and an absolute path")
    name = name_of_uri(uri)
    if not name:
        raise ValueError("names no file")
    is_plain_file = scheme == "file" and "#" not in uri
    return ImageRef(name, uri, _size_bytes(unquote_to_bytes(uri[7:])) if is_plain_file else None)


def _check_url(url: str) -> None:
    if _PLAIN_URL.match(url):  # as nearly all are, and looking closer takes half of all the time
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from error
    if not parts.hostname:
        raise ValueError("is a URL without a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("is a URL with a user or password, which would stand in the tables")


def _size_bytes(path: bytes) -> int | None:
    """What cannot be looked at is found out when it is read."""
    with suppress(OSError, ValueError):
        return os.stat(path).st_size  # noqa: PTH116 (pathlib knows no bytes)
    return None
