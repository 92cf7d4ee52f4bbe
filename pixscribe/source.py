"""What is to be labelled: the scan of a source, the manifest that fixes it, and its cut into shards."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

import pathspec
import pyarrow as pa
import pyarrow.parquet as pq

from pixscribe.config import IMAGE_GLOBS, SourceConfig
from pixscribe.errors import ConfigError, OutputError, ReadError
from pixscribe.manifests import list_text
from pixscribe.parquet_images import list_parquet
from pixscribe.places import SourceFile, find_files, names_files
from pixscribe.spread import Spread
from pixscribe.storage import Storage, open_storage, open_uri, reason
from pixscribe.tarfiles import list_tar
from pixscribe.types import ImageRef

if TYPE_CHECKING:
    from pixscribe.known import KnownImages

MANIFEST_SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("error", pa.string()),
        ("version", pa.string()),
    ]
)
ROWS_PER_GROUP = 8192
SKIPPED_KEY = "pixscribe.skipped"

Globs = pathspec.PathSpec[pathspec.Pattern]
Sift = Callable[[Iterator[ImageRef]], Iterator[ImageRef]]
"""Leaves out some."""


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


def scan(source: SourceConfig, sift: Sift = iter) -> Iterator[ImageRef]:
    """Every image of the source that `sift` lets through, `limit` at most, or `sample` of those.

    Those of a folder come in the byte order of their names; those of a manifest, a Parquet file or a tar in its own
    order, so that `limit` means its first lines. The rows of a shard are sorted in any case, and nothing else depends
    on the order.

    What matches `include` but cannot be read (a dangling link, a pipe, a folder without permission, an empty line)
    comes with `error`; links to folders are not followed, and a link out of the source is an error. The names in a list
    or a Parquet file need not end in anything, so there the default of `include` takes everything. Raises
    `ConfigError` if the source does not exist or is not what it is called.
    """
    _check_columns(source)
    include, exclude = _globs(source.include), _globs(source.exclude)
    if names_files(source.uri):
        found = (ref for ref, is_listed in _look_into(source) if _taken(ref, is_listed, source, include, exclude))
    else:
        found = (ref for ref in _walk(source) if _wanted(ref, include, exclude))
    first = islice(sift(found), source.limit)
    yield from first if source.sample is None else _sampled(first, source.sample)


@lru_cache(maxsize=16)  # who asks again gets no other look: if all has gone since, the scan will tell
def require_images(source: SourceConfig) -> None:
    """Raise `ConfigError`, with what to do, if the source holds nothing to label. Looks for its first image only."""
    if next(scan(source.model_copy(update={"sample": None})), None) is None:
        raise _no_images(source)


def write_manifest(
    storage: Storage,
    key: str,
    source: SourceConfig,
    shard_size: int,
    check: Callable[[], None] = lambda: None,
    known: "KnownImages | None" = None,
) -> int:
    """Scan the source into a Parquet file; returns the number of images. Row groups hold whole shards.

    `check` raises if the run is not ours any more. What is `known` is left out, and counted. Raises `ConfigError` if
    there is no image.
    """
    group_size = shard_size * max(1, ROWS_PER_GROUP // shard_size)
    count = 0
    refs = scan(source, known.new) if known else scan(source)
    with storage.create(key) as file, pq.ParquetWriter(file, MANIFEST_SCHEMA) as writer:
        while batch := list(islice(refs, group_size)):
            writer.write_table(_manifest_table(batch), row_group_size=group_size)
            count += len(batch)
        skipped = known.skipped if known else 0
        if count + skipped == 0:
            raise _no_images(source)
        writer.add_key_value_metadata({SKIPPED_KEY: str(skipped)})
        check()
    return count


def count_skipped(storage: Storage, key: str) -> int:
    """How many known images were left out of the manifest. Raises `OutputError` if it is not readable."""
    return int((_manifest_footer(storage, key).metadata or {}).get(SKIPPED_KEY.encode(), 0))


def count_manifest(storage: Storage, key: str) -> int:
    """How many images the manifest lists. Raises `OutputError` if it is not readable."""
    return int(_manifest_footer(storage, key).num_rows)


def _manifest_footer(storage: Storage, key: str) -> pq.FileMetaData:
    try:
        with storage.open(key) as file:
            return pq.ParquetFile(file).metadata
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
            if start < stop:  # all images may be known
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
    size = _group_size(output_uri, key)
    rows = _read_group(output_uri, key, shard.start // size).slice(shard.start % size, shard.stop - shard.start)
    return [ImageRef(**row) for row in rows.to_pylist()]


def _sampled(refs: Iterator[ImageRef], size: int) -> list[ImageRef]:
    spread = Spread[ImageRef](size)
    for ref in refs:
        spread.add(ref)
    return spread.take()


def _no_images(source: SourceConfig) -> ConfigError:
    patterns = ", ".join(source.include)
    return ConfigError(f"source.uri: {source.uri!r} holds no image that source.include ({patterns}) takes")


def _walk(source: SourceConfig) -> Iterator[ImageRef]:
    try:
        yield from open_storage(source.uri).walk()
    except FileNotFoundError as error:
        raise ConfigError(f"source.uri: {source.uri!r} does not exist") from error
    except NotADirectoryError as error:
        raise ConfigError(f"source.uri: {source.uri!r} is no folder") from error
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"source.uri: {source.uri!r} cannot be listed: {error}") from error


def _check_columns(source: SourceConfig) -> None:
    has_columns = names_files(source.uri) and re.search(r"\.(csv|jsonl|parquet)(\.gz)?$", source.uri.lower())
    for key in ("uri_column", "name_column"):
        if getattr(source, key) is not None and not has_columns:
            raise ConfigError(
                f"source.{key}: only .csv, .jsonl and .parquet files have columns; {source.uri!r} has none"
            )


def _look_into(source: SourceConfig) -> Iterator[tuple[ImageRef, bool]]:
    """What the files of the source hold, and whether it was listed there, under a name that may end in anything.

    A source whose first file is of no use is a mistake; any other such file is a row.
    """
    for number, file in enumerate(find_files(source.uri)):
        try:
            yield from _look_into_file(file, source)
        except (OSError, ReadError, pa.ArrowException, ValueError, LookupError, TypeError, ConfigError) as error:
            problem = error if isinstance(error, ConfigError) else _unreadable(file, error)
            if number == 0:
                raise problem from error
            yield ImageRef(f"{file.name}:end", file.uri, None, str(problem)), True


def _look_into_file(file: SourceFile, source: SourceConfig) -> Iterator[tuple[ImageRef, bool]]:
    kind = file.name.lower().rpartition(".")[2]
    if kind == "parquet" and _is_manifest(file):
        return ((ref, True) for ref in _list_manifest(file))
    if kind == "tar":
        return ((ref, False) for ref in list_tar(file))
    refs = list_parquet(file, source) if kind == "parquet" else list_text(file, source)
    return ((ref, True) for ref in refs)


def _is_manifest(file: SourceFile) -> bool:
    with open_uri(file.uri) as raw:
        names = pq.read_schema(raw).names
    # those of the first versions have no version of each image
    return names in (MANIFEST_SCHEMA.names, MANIFEST_SCHEMA.names[:-1])


def _list_manifest(file: SourceFile) -> Iterator[ImageRef]:
    """What an earlier run found, as it found it."""
    with open_uri(file.uri) as raw:
        for batch in pq.ParquetFile(raw).iter_batches(ROWS_PER_GROUP):
            yield from (ImageRef(**row) for row in batch.to_pylist())


def _unreadable(file: SourceFile, error: Exception) -> ConfigError:
    return ConfigError(f"source.uri: {file.name!r} cannot be read: {reason(error)}")


def _taken(ref: ImageRef, is_listed: bool, source: SourceConfig, include: Globs, exclude: Globs) -> bool:
    """What could not be read may be anything, as a folder may; only `exclude` can silence it."""
    name = ref.file_name.lower()
    takes_all = is_listed and (source.include == IMAGE_GLOBS or ref.error is not None)
    is_damage = ref.error is not None and "#" not in ref.uri
    return (takes_all or is_damage or include.match_file(name)) and not (source.exclude and exclude.match_file(name))


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


@lru_cache(maxsize=8)
def _group_size(output_uri: str, key: str) -> int:
    with open_storage(output_uri).open(key) as file:
        return int(max(1, pq.ParquetFile(file).metadata.row_group(0).num_rows))


# the newest groups only: neighbouring shards share one, and all of a manifest would not fit
@lru_cache(maxsize=2)
def _read_group(output_uri: str, key: str, number: int) -> pa.Table:
    with open_storage(output_uri).open(key) as file:
        return pq.ParquetFile(file).read_row_group(number)
