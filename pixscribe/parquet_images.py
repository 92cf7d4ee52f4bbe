"""Parquet files that hold images, as Hugging Face `datasets` writes them, or that list them.

A column of images is binary, or a struct of `bytes` and `path`. An image is addressed by its column and its row, and by
the version of the file that was listed: `file:///x/train-0.parquet#column=image&row=17&version=…`. A file is read
forwards, row by row: how large a row is shows only when it is there.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, ReadError
from pixscribe.manifests import Line, choose_column, refs_of
from pixscribe.places import SourceFile, plain_name, with_part
from pixscribe.storage import REPLACED, check_size, is_bucket, open_uri, version_of
from pixscribe.types import ImageRef

IMAGE_COLUMN = "image"
ROWS_LISTED = 4096
"""Names in memory at once while a file is listed."""
WINDOW_BYTES = 128 * 1024 * 1024
"""Of images of one file in memory: shards ask for rows nearly in order, and a row group may be larger than memory."""
KEPT_BYTES = 2 * WINDOW_BYTES
"""Of all files together."""
ROW_BYTES = 128
"""What a row in memory takes besides its image."""
CURSORS = 3
"""Places of one file at which reading goes on: two shards are in flight, and somebody is always late."""
OPEN_FILES = 8
STREAM_BYTES = 1024 * 1024


def list_parquet(file: SourceFile, source: SourceConfig) -> Iterator[ImageRef]:
    """The images that the rows hold or name, one for each row. Raises OSError or ArrowException if it is no Parquet.

    Raises `ConfigError` if no column will do.
    """
    version = version_of(file.uri)
    with open_uri(file.uri) as raw:
        parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=STREAM_BYTES)
        schema = parquet.schema_arrow
        if source.name_column:
            choose_column(schema.names, source.name_column, "name_column", file)
        column = _column_of_images(schema, source, file)
        if not _holds_images(schema.field(column).type) or _holds_only_paths(parquet, column):
            yield from refs_of(_lines(parquet, column, source.name_column), file)
        else:
            yield from _list_rows(parquet, column, file, source.name_column, version)


def read_row(uri: str, column: str, row: int, version: str | None = None) -> bytes:
    """The image in a row of the file, if that has the version.

    Raises `ReadError`, OSError or ArrowException, `DecodeError` (too_large) above 512 MiB.
    """
    # an object is held to its version by each request for a part of it
    now = version if version and is_bucket(uri) else version_of(uri)
    if version and now != version:
        raise _changed()
    data = _open_column(uri, column, now).read(row)
    if data is None:
        raise ReadError(f"row {row} of the Parquet file holds no bytes")
    check_size(len(data))
    return data


@dataclass(slots=True)
class _Cursor:
    """The rows of a file, one after the other; `row` is the next."""

    row: int
    rows: Iterator[pa.RecordBatch]


class _Column:
    """A column of images, read forwards; what was read last stays in memory for who comes a little later."""

    def __init__(self, uri: str, column: str, version: str) -> None:
        self._uri, self._column, self._version = uri, column, version
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._parquet: Any = None
        self._starts: list[int] = []
        self._cursors: list[_Cursor] = []
        self._window: OrderedDict[int, bytes | None] = OrderedDict()
        self.window_bytes = 0
        self._wanted: dict[int, int] = {}

    def read(self, row: int) -> bytes | None:
        """Raises `ReadError` if there is no such row. After any other error, who asks next begins anew."""
        self._wanted[threading.get_ident()] = row
        with self._lock:
            try:
                return self._read(row)
            except BaseException:
                self._let_go()
                raise
            finally:
                del self._wanted[threading.get_ident()]

    def close(self) -> None:
        """Let go of the file and of all that was read; who reads it again opens it again."""
        with self._lock:
            self._let_go()
            self._window.clear()
            self.window_bytes = 0

    def _read(self, row: int) -> bytes | None:
        if row in self._window:
            return self._window[row]
        if self._parquet is None:
            self._open()
        if not 0 <= row < self._starts[-1]:
            raise ReadError(f"the Parquet file has no row {row}")
        cursor = self._cursor_before(row)
        while cursor.row <= row:
            self._keep(cursor.row, self._next_image(cursor))
        return self._window[row]

    def _let_go(self) -> None:
        self._parquet = None
        self._cursors.clear()
        self._opened.close()

    def _open(self) -> None:
        raw = self._opened.enter_context(open_uri(self._uri))
        if version_of(self._uri) != self._version:
            raise _changed()
        self._parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=STREAM_BYTES)
        schema, metadata = self._parquet.schema_arrow, self._parquet.metadata
        place = schema.get_field_index(self._column)
        if place < 0 or not _holds_images(schema.field(place).type):
            raise ReadError(f"the Parquet file has no column {self._column[:80]!r} of images")
        rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = list(accumulate(rows, initial=0))

    def _cursor_before(self, row: int) -> _Cursor:
        """The nearest in the same row group, or a new one at its start, in place of the one that was used least."""
        group = bisect_right(self._starts, row) - 1
        near = [cursor for cursor in self._cursors if self._starts[group] <= cursor.row <= row]
        found = max(near, key=lambda cursor: cursor.row) if near else self._new_cursor(group)
        self._cursors = [*(each for each in self._cursors if each is not found), found][-CURSORS:]
        return found

    def _new_cursor(self, group: int) -> _Cursor:
        groups = list(range(group, len(self._starts) - 1))
        kind = self._parquet.schema_arrow.field(self._column).type
        leaf = f"{self._column}.bytes" if pa.types.is_struct(kind) else self._column
        return _Cursor(self._starts[group], self._parquet.iter_batches(1, groups, [leaf], use_threads=False))

    def _next_image(self, cursor: _Cursor) -> bytes | None:
        batch = next(cursor.rows, None)
        if batch is None:
            raise ReadError(f"the Parquet file ends before row {cursor.row}")
        cursor.row += len(batch)
        image = batch.column(self._column)
        image = image.field("bytes") if pa.types.is_struct(image.type) else image
        data: bytes | None = image[0].as_py()
        return data

    def _keep(self, row: int, image: bytes | None) -> None:
        """What somebody waits for stays, so that nobody has to go back for it."""
        self._window[row] = image
        self.window_bytes += _size_bytes(image)
        wanted, spared = set(self._wanted.values()), dict[int, bytes | None]()
        while self.window_bytes > WINDOW_BYTES and self._window:
            oldest, image = self._window.popitem(last=False)
            if oldest in wanted:
                spared[oldest] = image
            else:
                self.window_bytes -= _size_bytes(image)
        self._window.update(spared)


def _size_bytes(image: bytes | None) -> int:
    return ROW_BYTES + len(image or b"")


def _changed() -> ReadError:
    return ReadError(REPLACED, code="changed_during_run")


_columns: OrderedDict[tuple[str, str, str], _Column] = OrderedDict()
_columns_lock = threading.Lock()


def _open_column(uri: str, column: str, version: str) -> _Column:
    with _columns_lock:
        key = (uri, column, version)
        found = _columns.pop(key, None) or _Column(uri, column, version)
        _columns[key] = found
        left = list[_Column]()
        while len(_columns) > OPEN_FILES or (len(_columns) > 1 and _kept_bytes() > KEPT_BYTES):
            left.append(_columns.popitem(last=False)[1])
    for each in left:
        each.close()
    return found


def _kept_bytes() -> int:
    return sum(each.window_bytes for each in _columns.values())


def _column_of_images(schema: pa.Schema, source: SourceConfig, file: SourceFile) -> str:
    names = schema.names
    is_usual = source.uri_column is None and names.count(IMAGE_COLUMN) == 1
    if is_usual and _holds_images(schema.field(IMAGE_COLUMN).type):
        return IMAGE_COLUMN
    column = choose_column(names, source.uri_column, "uri_column", file)
    kind = schema.field(column).type
    if not (_holds_images(kind) or _holds_text(kind)):
        raise ConfigError(
            f"source.uri_column: {column!r} of {file.name!r} holds {kind}; allowed: text, binary, struct<bytes, path>"
        )
    return column


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_only_paths(parquet: Any, column: str) -> bool:
    """Whether `bytes` is null in every row, as `datasets` leaves it for images that lie beside the file.

    The rows are looked at, up to the first that has some: asked for the statistics of a damaged file, Arrow ends the
    process.
    """
    if parquet.metadata.num_rows == 0 or not _has_paths(parquet.schema_arrow.field(column).type):
        return False
    batches = parquet.iter_batches(1, columns=[f"{column}.bytes"], use_threads=False)
    return all(batch.column(column).field("bytes").null_count == len(batch) for batch in batches)


def _has_paths(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and _holds_text(kind.field("path").type)


def _list_rows(
    parquet: Any, column: str, file: SourceFile, name_column: str | None, version: str
) -> Iterator[ImageRef]:
    for row, name in enumerate(_names_of_rows(parquet, column, name_column)):
        chosen = plain_name(name or b"")
        if not (name_column and chosen):
            chosen = f"{file.stem}/{chosen or f'{row:08d}'}"
        uri = with_part(file.uri, column=column, row=row, version=version)
        yield ImageRef(chosen, uri, version=version or None)


def _names_of_rows(parquet: Any, column: str, name_column: str | None) -> Iterator[bytes | None]:
    if name_column:
        return _texts(parquet, name_column)
    if _has_paths(parquet.schema_arrow.field(column).type):
        return _texts(parquet, column)
    return (None for _ in range(parquet.metadata.num_rows))


def _lines(parquet: Any, column: str, name_column: str | None) -> Iterator[Line]:
    names = _texts(parquet, name_column) if name_column else (None for _ in range(parquet.metadata.num_rows))
    for number, (value, name) in enumerate(zip(_texts(parquet, column), names, strict=True), 1):
        yield Line(number, value, name)


def _texts(parquet: Any, column: str) -> Iterator[bytes | None]:
    """The values of a column, or its paths if it has such, as bytes: text may be no UTF-8."""
    has_paths = _has_paths(parquet.schema_arrow.field(column).type)
    for batch in parquet.iter_batches(ROWS_LISTED, columns=[f"{column}.path" if has_paths else column]):
        # by its name: to Arrow, a field of a struct and a column with a dot in its name are the same
        values = batch.column(column)
        if has_paths:
            values = values.field("path")
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if not _holds_text(values.type):
            values = pc.cast(values, pa.string())
        yield from pc.cast(values, pa.large_binary()).to_pylist()
