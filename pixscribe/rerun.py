"""A run to be made again: about the images of its manifest, whatever its source holds by now."""

import io
from collections.abc import Iterator, Mapping
from hashlib import blake2b, sha256
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pixscribe.config import RunConfig, change_config
from pixscribe.errors import ConfigError
from pixscribe.results import RunResults
from pixscribe.source import MANIFEST_SCHEMA, count_manifest

BATCH_ROWS = 65_536


def rerun_config(results: RunResults, changes: Mapping[str, Any], *, only_failed: bool = False) -> RunConfig:
    """The config of a run, changed by dotted key path, with its manifest as the source.

    `only_failed` takes the images that are not ok. Raises `ConfigError`, also if there are none, and `OutputError`.
    """
    key = f"runs/{results.run_id}/manifest.parquet"
    if not results.storage.exists(key):
        raise ConfigError(f"run {results.run_id!r} has not listed its images yet; `pixscribe run` with its config does")
    if count_manifest(results.storage, key) == 0:
        raise ConfigError(f"run {results.run_id!r} was about no images, because all of them were known")
    if only_failed:
        key = _write_failed(results, key)
    source = {"uri": results.storage.uri_of(key), "allow_private_hosts": results.config.source.allow_private_hosts}
    # where the run lies now, which may not be where it was made
    places = {"source": source, "output.uri": results.storage.uri}
    return change_config(results.config, {**places, **changes}, origin=f"run {results.run_id}")


def find_changed(before: RunResults, after: RunResults) -> Iterator[tuple[str, Literal["unreadable", "changed"]]]:
    """The names of images that the later run could not read any more, or whose bytes are others by now.

    Holds 16 bytes and what a dict adds to them for each image of the earlier run.
    """
    contents = dict(_contents(before))
    for (images,) in after.read_parts({"images": ["file_name", "uri", "image_id"]}):
        for row in images.to_pylist():
            was = contents.get(_number(row["uri"]))
            if was is not None and row["image_id"] is None:
                yield row["file_name"], "unreadable"
            elif was is not None and _number(row["image_id"]) != was:
                yield row["file_name"], "changed"


def _contents(results: RunResults) -> Iterator[tuple[int, int]]:
    for (images,) in results.read_parts({"images": ["uri", "image_id"]}, results.parts_left):
        for uri, image_id in zip(*(column.to_pylist() for column in images.columns), strict=True):
            if image_id is not None:
                yield _number(uri), _number(image_id)


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _write_failed(results: RunResults, key: str) -> str:
    """The rows of the manifest whose images are not ok, beside it, under a name that tells which they are."""
    failed = set(_failed(results))
    if not failed:
        raise ConfigError(f"--failed: every image of run {results.run_id!r} is ok")
    with results.storage.open(key) as file, io.BytesIO() as part:
        with pq.ParquetWriter(part, MANIFEST_SCHEMA) as writer:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
                writer.write_batch(batch.filter(pa.array([_number(uri) in failed for uri in batch["uri"].to_pylist()])))
        data = part.getvalue()
    written = f"runs/{results.run_id}/failed-{sha256(data).hexdigest()[:8]}.parquet"
    results.storage.write(written, data)
    return written


def _failed(results: RunResults) -> Iterator[int]:
    for (images,) in results.read_parts({"images": ["uri", "status"]}):
        for uri, status in zip(*(column.to_pylist() for column in images.columns), strict=True):
            if status != "ok":
                yield _number(uri)
