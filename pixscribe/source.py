"""What is to be labelled: the scan of a source, the manifest that fixes it, and its cut into shards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise

import pathspec
import pyarrow as pa
import pyarrow.parquet as pq

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, OutputError
from pixscribe.storage import Storage, open_storage
from pixscribe.types import ImageRef

MANIFEST_SCHEMA = pa.schema(
    [("file_name", pa.string()), ("uri", pa.string()), ("size_bytes", pa.int64()), ("error", pa.string())]
)
ROWS_PER_GROUP = 8192

Globs = pathspec.PathSpec[pathspec.Pattern]


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `stop` (exclusive) of a run's manifest: the unit that is committed, resumed and shown."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """`00007`, as in the names of its parts."""
        return f"{self.index:05d}"


def scan(source: SourceConfig) -> Iterator[ImageRef]:
    """Every image of the source, in the byte order of the names, `limit` at most.

    What matches `include` but cannot be read (a dangling link, a pipe, a folder without permission) comes with `error`;
    links to folders are not followed, and a link out of the source is an error. Raises `ConfigError` if the source
    does not exist.
    """
    found = (ref for ref in _walk(source) if _wanted(ref, _globs(source.include), _globs(source.exclude)))
    yield from islice(found, source.limit)


def require_images(source: SourceConfig) -> None:
    """Raise `ConfigError`, with what to do, if the source holds nothing to label."""
    if next(scan(source), None) is None:
        raise _no_images(source)


def write_manifest(
    storage: Storage, key: str, source: SourceConfig, shard_size: int, check: Callable[[], None] = lambda: None
) -> int:
    """Scan the source into a Parquet file; returns the number of images. Row groups hold whole shards.

    `check` raises if the run is not ours any more. Raises `ConfigError` if there is no image.
    """
    group_size = shard_size * max(1, ROWS_PER_GROUP // shard_size)
    count = 0
    refs = scan(source)
    with storage.create(key) as file, pq.ParquetWriter(file, MANIFEST_SCHEMA) as writer:
        while batch := list(islice(refs, group_size)):
            writer.write_table(_manifest_table(batch), row_group_size=group_size)
            count += len(batch)
        if count == 0:
            raise _no_images(source)
        check()
    return count


def count_manifest(storage: Storage, key: str) -> int:
    """How many images the manifest lists. Raises `OutputError` if it is not readable."""
    try:
        with storage.open(key) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{storage.uri_of(key)}: the manifest cannot be read: {error}") from error


FIRST_SHARD = 16
MANY_SHARDS = 20


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of a manifest that are still to do: counted and made when they are asked for, never kept.

    All have `size` images but the last and, where there are many, the first ones: these grow from 16 images on, so that
    the first rows can be looked at within seconds. `done` holds the names of those that are committed.
    """

    image_count: int
    size: int
    done: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Shard]:
        return (shard for shard in self._all() if shard.name not in self.done)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def count_images(self) -> int:
        """How many images are still to do."""
        return sum(shard.stop - shard.start for shard in self)

    def _all(self) -> Iterator[Shard]:
        starts = chain(self._first_starts(), range(self.size, self.image_count, self.size), [self.image_count])
        for index, (start, stop) in enumerate(pairwise(starts)):
            yield Shard(index, start, stop)

    def _first_starts(self) -> Iterator[int]:
        """Of what would be the first shard."""
        yield 0
        start = FIRST_SHARD
        while self.image_count > MANY_SHARDS * self.size and start < self.size:
            yield start
            start *= 2


def read_shard(output_uri: str, key: str, shard: Shard) -> list[ImageRef]:
    """The images of one shard."""
    group = _read_rows(output_uri, key, shard.start)
    return list(group.refs[shard.start - group.start : shard.stop - group.start])


def _no_images(source: SourceConfig) -> ConfigError:
    patterns = ", ".join(source.include)
    return ConfigError(f"source.uri: {source.uri!r} holds no image that source.include ({patterns}) takes")


@dataclass(frozen=True, slots=True)
class _RowGroup:
    start: int
    stop: int
    refs: tuple[ImageRef, ...]


def _walk(source: SourceConfig) -> Iterator[ImageRef]:
    try:
        yield from open_storage(source.uri).walk()
    except FileNotFoundError as error:
        raise ConfigError(f"source.uri: {source.uri!r} does not exist") from error
    except NotADirectoryError as error:
        raise ConfigError(f"source.uri: {source.uri!r} is no folder") from error
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"source.uri: {source.uri!r} cannot be listed: {error}") from error


def _wanted(ref: ImageRef, include: Globs, exclude: Globs) -> bool:
    # a folder that cannot be listed may hold anything, so only `exclude` can silence it
    name = ref.file_name.lower()
    return (name.endswith("/") or include.match_file(name)) and not exclude.match_file(name)


@lru_cache(maxsize=16)
def _globs(patterns: tuple[str, ...]) -> Globs:
    return pathspec.PathSpec.from_lines("gitignore", [pattern.lower() for pattern in patterns])


def _manifest_table(refs: list[ImageRef]) -> pa.Table:
    columns = [[getattr(ref, name) for ref in refs] for name in MANIFEST_SCHEMA.names]
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _read_rows(output_uri: str, key: str, row: int) -> _RowGroup:
    # the newest groups only: neighbouring shards share one, and all of a manifest would not fit
    return _read_group(output_uri, key, row // _group_size(output_uri, key))


@lru_cache(maxsize=8)
def _group_size(output_uri: str, key: str) -> int:
    with open_storage(output_uri).open(key) as file:
        return int(max(1, pq.ParquetFile(file).metadata.row_group(0).num_rows))


@lru_cache(maxsize=4)
def _read_group(output_uri: str, key: str, number: int) -> _RowGroup:
    with open_storage(output_uri).open(key) as file:
        table = pq.ParquetFile(file).read_row_group(number)
    refs = tuple(ImageRef(**row) for row in table.to_pylist())
    start = number * _group_size(output_uri, key)
    return _RowGroup(start, start + len(refs), refs)
