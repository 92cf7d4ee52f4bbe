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
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from pixscribe import azure
from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError
from pixscribe.objects import AZURE_SCHEMES, BUCKET_SCHEMES
from pixscribe.places import SourceFile, file_uri, name_of_uri, plain_name, scheme_of, split_part
from pixscribe.storage import local_path, open_uri, reason, version_in
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
BATCH_CHARACTERS = 8 * 1024 * 1024
"""Of names and URIs, which may be as long as `MAX_NAME_BYTES`."""

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
    # lines are made references first: of a line of many megabytes, a reference keeps some words
    for refs in _growing_batches(_ref(line, file) for line in lines):
        fresh = rows.add(numbers_of(f"{ref.file_name}\0{ref.uri}" for ref in refs))
        left_out += len(refs) - int(fresh.sum())
        refs = [ref for ref, is_fresh in zip(refs, fresh, strict=True) if is_fresh]
        fresh = names.add(numbers_of(ref.file_name for ref in refs))
        yield from (ref if is_fresh else _told_apart(ref) for ref, is_fresh in zip(refs, fresh, strict=True))
    if left_out:
        logger.warning("%s: %d lines that repeat an earlier one were left out", file.name, left_out)


def choose_column(names: Sequence[str], wanted: str | None, key: str, file: SourceFile) -> str:
    """The column that is meant. Raises `ConfigError` that names those that there are."""
    found = next((name for name in ((wanted,) if wanted else URI_COLUMNS) if name in names), None)
    if found is not None:
        if (count := names.count(found)) > 1:
            raise ConfigError(f"source.{key}: {found!r} is the name of {count} columns of {file.name!r}")
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


def _growing_batches(refs: Iterable[ImageRef]) -> Iterator[list[ImageRef]]:
    """Small ones first: whoever only asks whether there is an image should not wait for thousands."""
    batch, size, characters = list[ImageRef](), FIRST_BATCH, 0
    for ref in refs:
        batch.append(ref)
        characters += len(ref.uri) + len(ref.file_name)
        if len(batch) >= size or characters > BATCH_CHARACTERS:
            yield batch
            batch, size, characters = [], min(2 * size, LARGEST_BATCH), 0
    if batch:
        yield batch


def numbers_of(texts: Iterable[str]) -> Numbers:
    """64 bits of a hash for each text, in their order."""
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
    lines = chain((first.removeprefix(b"\xef\xbb\xbf") for first in islice(lines, 1)), lines)
    kind = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "csv":
        return _read_csv(lines, file, source)
    if kind == "jsonl":
        return _read_jsonl(lines, file, source)
    return _without_empty_end(Line(number, line) for number, line in enumerate(lines, 1))


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
    rows = _csv_rows(lines, file)
    header = next((row for _, row in rows if row), [])
    if isinstance(header, str):
        raise ConfigError(f"source.uri: the first line of {file.name!r} {header}")
    place = header.index(choose_column(header, source.uri_column, "uri_column", file))
    named = header.index(choose_column(header, source.name_column, "name_column", file)) if source.name_column else None
    yield from _without_empty_end(_csv_line(number, row, len(header), place, named) for number, row in rows)


def _csv_rows(lines: Iterator[bytes], file: SourceFile) -> Iterator[tuple[int, list[str] | str]]:
    """The number of the line in which a row begins, and the row, or what is wrong with it.

    Raises `ConfigError` for a quote that is not closed: nobody knows how many rows are behind it.
    """
    csv.field_size_limit(2 * MAX_LINE_BYTES)  # what bounds a field is the bound of its row
    row = _Row(lines)
    rows = csv.reader(row, strict=True)
    while True:
        first, row.size_bytes = rows.line_num + 1, 0
        try:
            yield first, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if row.is_endless:
                said = f"opens a quote in line {first} and does not close it"
                raise ConfigError(f"source.uri: {file.name!r} {said}") from error
            yield first, f"is no CSV: {error}"


class _Row:
    """The lines for a reader of CSV, which asks for the next one when a row goes on there."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self.size_bytes = 0
        self.is_endless = False

    def __iter__(self) -> "_Row":
        return self

    def __next__(self) -> str:
        """An empty end makes the reader refuse what it has of a row."""
        line = None if self.size_bytes > MAX_LINE_BYTES else next(self._lines, None)
        if line is None:
            self.is_endless = True
            raise StopIteration
        self.size_bytes += len(line)
        return line.decode("utf-8", "surrogateescape") + "\n"


def _csv_line(number: int, row: list[str] | str, columns: int, place: int, named: int | None) -> Line:
    if isinstance(row, str):
        return Line(number, None, error=row)
    if not row:
        return Line(number, b"")
    if len(row) != columns:
        return Line(number, None, error=f"has {len(row)} columns where the first line has {columns}")
    if "\n" in row[place]:
        return Line(number, None, error="names an image with a line break in it; a quote may be missing at its end")
    name = None if named is None else os.fsencode(row[named])
    return Line(number, os.fsencode(row[place]) or None, name, None if row[place] else "names no image")


def _read_jsonl(lines: Iterator[bytes], file: SourceFile, source: SourceConfig) -> Iterator[Line]:
    head, example = _up_to_first_object(map(_parse, islice(lines, LINES_LOOKED_AT)))
    if example is None:
        if head:
            raise ConfigError(f"source.uri: {file.name!r} does not hold a JSON object in each line")
        return
    column = choose_column(list(example), source.uri_column, "uri_column", file)
    if source.name_column:
        choose_column(list(example), source.name_column, "name_column", file)
    rows = enumerate(chain(head, map(_parse, lines)), 1)
    yield from _without_empty_end(_json_line(number, row, column, source.name_column) for number, row in rows)


def _up_to_first_object(
    rows: Iterator[dict[str, Any] | str | None],
) -> tuple[list[dict[str, Any] | str | None], dict[str, Any] | None]:
    head = []
    for row in rows:
        head.append(row)
        if isinstance(row, dict):
            return head, row
    return head, None


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
        return _of_file(name, file_uri(path), path)
    place, _, key = folder.partition(b"://")[2].partition(b"/")
    key = posixpath.normpath(posixpath.join(key, path))
    if key.startswith(b".."):
        raise ValueError("leads out of the bucket")
    return ImageRef(name, f"{file.uri.partition('://')[0]}://{place.decode()}/{quote(key, safe='/')}")


def _of_uri(value: bytes, scheme: str) -> ImageRef:
    # what no URI may hold as it is gets encoded, so that the column `uri` is one
    uri = scheme + quote(value, safe="!#$%&'()*+,/:;=?@[]~")[len(scheme) :]
    place, part = split_part(uri)
    if scheme in ("http", "https"):
        _check_url(uri)
    elif "%00" in place:
        raise ValueError("holds a NUL character")
    if scheme == "file" and not uri.startswith("file:///"):
        raise ValueError("should have file:/// and an absolute path")
    host = unquote(uri.split("/")[2].partition("@")[2]) if scheme in AZURE_SCHEMES else ""
    if host and not azure.is_account(host):
        raise ValueError(f"has the host {host[:80]!r}; allowed: {azure.allowed_hosts()}")
    name = name_of_uri(uri)
    if not name:
        raise ValueError("names no file")
    is_plain_file = scheme == "file" and not part
    return _of_file(name, uri, local_path(uri)) if is_plain_file else ImageRef(name, uri)


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


def _of_file(name: str, uri: str, path: bytes) -> ImageRef:
    """What cannot be looked at is found out when it is read."""
    try:
        status = os.stat(path)  # noqa: PTH116 (pathlib knows no bytes)
    except (OSError, ValueError):
        return ImageRef(name, uri)
    return ImageRef(name, uri, status.st_size, version=version_in(status))
