"""Parquet files that hold images, as Hugging Face `datasets` writes them, or that list them.

A column of images is binary, or a struct of `bytes` and `path`. An image is addressed by its column and its row,
`file:///x/train-0.parquet#column=image&row=17`, and neighbouring rows are read together.
"""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import accumulate
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, ReadError
from pixscribe.manifests import Line, choose_column, refs_of
from pixscribe.places import SourceFile, plain_name, with_part
from pixscribe.storage import open_uri
from pixscribe.types import ImageRef

IMAGE_COLUMN = "image"
ROWS_AT_A_TIME = 16
WINDOW_BYTES = 64 * 1024 * 1024
"""Of images of one file in memory: shards ask for rows nearly in order, and a row group may be larger than memory."""
OPEN_FILES = 4
STREAM_BYTES = 1024 * 1024


def list_parquet(file: SourceFile, source: SourceConfig) -> Iterator[ImageRef]:
    """The images that the rows hold or name, one for each row. Raises OSError or ArrowException if it is no Parquet.

    Raises `ConfigError` if no column will do.
    """
    with open_uri(file.uri) as raw:
        parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=STREAM_BYTES)
        schema = parquet.schema_arrow
        if source.name_column:
            choose_column(schema.names, source.name_column, "name_column", file)
        column = _column_of_images(schema, source, file)
        if not _holds_images(schema.field(column).type):
            yield from refs_of(_lines(parquet, column, source.name_column), file)
        elif _holds_only_paths(parquet, column):
            yield from refs_of(_lines(parquet, f"{column}.path", source.name_column), file)
        else:
            _forget(file.uri)
            yield from _list_rows(parquet, column, file, source.name_column)


def read_row(uri: str, column: str, row: int) -> bytes:
    """The image in a row. Raises `ReadError`, OSError or ArrowException."""
    data = _open_column(uri, column).read(row)
    if data is None:
        raise ReadError(f"row {row} of the Parquet file holds no bytes")
    return data


class _Column:
    """A column of images, read forwards; what was read last stays in memory for who comes a little later."""

    def __init__(self, uri: str, column: str) -> None:
        self._uri, self._column = uri, column
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._parquet: Any = None
        self._starts: list[int] = []
        self._next_row = 0
        self._window: OrderedDict[int, list[bytes | None]] = OrderedDict()
        self._window_bytes = 0

    def read(self, row: int) -> bytes | None:
        """Raises `ReadError` if there is no such row."""
        with self._lock:
            if self._parquet is None:
                self._open()
            if not 0 <= row < self._parquet.metadata.num_rows:
                raise ReadError(f"the Parquet file has no row {row} any more", code="changed_during_run")
            while (found := self._find(row)) is None:
                self._go_to(row)
                self._advance()
            return found[0]

    def close(self) -> None:
        """Let go of the file and of all that was read; who reads it again opens it again."""
        with self._lock:
            self._parquet = None
            self._batches = iter(())
            self._window.clear()
            self._window_bytes = 0
            self._opened.close()

    def _open(self) -> None:
        raw = self._opened.enter_context(open_uri(self._uri))
        self._parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=STREAM_BYTES)
        metadata = self._parquet.metadata
        rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = list(accumulate(rows, initial=0))
        self._next_row = metadata.num_rows

    def _find(self, row: int) -> tuple[bytes | None] | None:
        for start, images in reversed(self._window.items()):  # it is mostly one of the newest
            if start <= row < start + len(images):
                return (images[row - start],)
        return None

    def _go_to(self, row: int) -> None:
        """To the start of the row's group, unless the row lies before us and no other group begins in between."""
        group = bisect_right(self._starts, row) - 1
        if self._starts[group] <= self._next_row <= row:
            return
        groups = list(range(group, len(self._starts) - 1))
        kind = self._parquet.schema_arrow.field(self._column).type
        leaf = f"{self._column}.bytes" if pa.types.is_struct(kind) else self._column
        self._batches = self._parquet.iter_batches(ROWS_AT_A_TIME, groups, [leaf], use_threads=False)
        self._next_row = self._starts[group]

    def _advance(self) -> None:
        images = next(self._batches).column(0)
        images = images.field("bytes").to_pylist() if pa.types.is_struct(images.type) else images.to_pylist()
        self._window_bytes += _total(images) - _total(self._window.pop(self._next_row, []))
        self._window[self._next_row] = images
        self._next_row += len(images)
        while self._window_bytes > WINDOW_BYTES and len(self._window) > 1:
            self._window_bytes -= _total(self._window.popitem(last=False)[1])


def _total(images: list[bytes | None]) -> int:
    return sum(len(image) for image in images if image)


_columns: OrderedDict[tuple[str, str, int], _Column] = OrderedDict()
_columns_lock = threading.Lock()


def _open_column(uri: str, column: str) -> _Column:
    with _columns_lock:
        key = (uri, column, _changed_ns(uri))
        found = _columns.pop(key, None) or _Column(uri, column)
        _columns[key] = found
        left = [_columns.popitem(last=False)[1] for _ in range(len(_columns) - OPEN_FILES)]
    for each in left:
        each.close()
    return found


def _forget(uri: str) -> None:
    """A new run must not get what an earlier one of the same process has read."""
    with _columns_lock:
        left = [_columns.pop(key) for key in list(_columns) if key[0] == uri]
    for each in left:
        each.close()


def _changed_ns(uri: str) -> int:
    with suppress(OSError, ValueError):
        if uri.startswith("file://"):
            return os.stat(unquote_to_bytes(uri[7:])).st_mtime_ns  # noqa: PTH116 (pathlib knows no bytes)
    return 0


def _column_of_images(schema: pa.Schema, source: SourceConfig, file: SourceFile) -> str:
    names = schema.names
    if source.uri_column is None and IMAGE_COLUMN in names and _holds_images(schema.field(IMAGE_COLUMN).type):
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
        return place >= 0 and _holds_images(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_only_paths(parquet: Any, column: str) -> bool:
    """Whether `bytes` is null in every row, as `datasets` leaves it for images that lie beside the file."""
    kind, metadata = parquet.schema_arrow.field(column).type, parquet.metadata
    if metadata.num_rows == 0 or not _has_paths(kind):
        return False
    leaves = [metadata.row_group(0).column(place).path_in_schema for place in range(metadata.num_columns)]
    place = leaves.index(f"{column}.bytes")
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    facts = ((group.num_rows, group.column(place).statistics) for group in groups)
    return all(told is not None and told.has_null_count and told.null_count == rows for rows, told in facts)


def _has_paths(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and _holds_text(kind.field("path").type)


def _list_rows(parquet: Any, column: str, file: SourceFile, name_column: str | None) -> Iterator[ImageRef]:
    for row, name in enumerate(_names_of_rows(parquet, column, name_column)):
        chosen = plain_name(name or b"")
        if not (name_column and chosen):
            chosen = f"{file.stem}/{chosen or f'{row:08d}'}"
        yield ImageRef(chosen, with_part(file.uri, column=column, row=row))


def _names_of_rows(parquet: Any, column: str, name_column: str | None) -> Iterator[bytes | None]:
    if name_column:
        return _texts(parquet, [name_column])
    if _has_paths(parquet.schema_arrow.field(column).type):
        return _texts(parquet, [f"{column}.path"])
    return (None for _ in range(parquet.metadata.num_rows))


def _lines(parquet: Any, column: str, name_column: str | None) -> Iterator[Line]:
    names = _texts(parquet, [name_column]) if name_column else (None for _ in range(parquet.metadata.num_rows))
    for number, (value, name) in enumerate(zip(_texts(parquet, [column]), names, strict=True), 1):
        yield Line(number, value, name)


def _texts(parquet: Any, columns: list[str]) -> Iterator[bytes | None]:
    """The values of one column as bytes: text may be no UTF-8."""
    for batch in parquet.iter_batches(columns=columns):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = values.field(0)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if not _holds_text(values.type):
            values = pc.cast(values, pa.string())
        yield from pc.cast(values, pa.large_binary()).to_pylist()
