"""What runs have left, read back: part after part, image after image, so that a run of any size fits into memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pixscribe.config import RunConfig
from pixscribe.errors import ConfigError, OutputError
from pixscribe.run import TABLES, describe_run, locate_run, read_config
from pixscribe.storage import Storage, open_storage
from pixscribe.tables import Row, count_images
from pixscribe.types import ImageStatus, Kind

T = TypeVar("T")
R = TypeVar("R")

PARTS_AHEAD = 4
"""Parts that are read while one is worked on: on a bucket each takes several round trips."""


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The rows of one image: its own, one for each prompt, and one for each object, in the order of the tables."""

    image: Row
    responses: list[Row]
    annotations: list[Row]

    def only(self, prompts: frozenset[str]) -> "ImageRows":
        """The same image, as if nothing but these prompts had been asked. Failed answers keep what they have."""
        return replace(
            self,
            responses=[row for row in self.responses if row["prompt"] in prompts],
            annotations=[row for row in self.annotations if row["prompt"] in prompts],
        )

    @property
    def status(self) -> ImageStatus:
        """That of `images`, if no other prompts had been asked than those that are here."""
        failed = sum(row["status"] == "failed" for row in self.responses)
        return "ok" if failed == 0 else "failed" if failed == len(self.responses) else "partial"


class RunResults:
    """The committed parts of one run, complete or not. Iterating over it gives every image with its rows."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.storage = storage
        self.run_id = run_id

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `pixscribe show` shows: `run.json`, or the counts so far."""
        return describe_run(self.storage.uri, self.run_id)

    @cached_property
    def config(self) -> RunConfig:
        """What the run has frozen. Raises `ConfigError` if it cannot be read."""
        return read_config(self.storage, self.run_id)

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each prompt by its name, in the order of the config."""
        return {prompt.name: prompt.kind for prompt in self.config.prompts}

    @cached_property
    def is_complete(self) -> bool:
        """Whether the run has come to its end."""
        return self.storage.exists(f"runs/{self.run_id}/run.json")

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The names of the committed parts, the same in each table. Raises `OutputError` if some have been lost."""
        # asked first: a run that ends in between has more parts than were listed
        is_complete = self.is_complete
        parts = self.parts_left
        if is_complete:
            self._check_images(count_images(self.storage, self.run_id, parts))
        return parts

    @property
    def parts_left(self) -> tuple[str, ...]:
        """As `parts`, whatever may have been lost of a complete run: for whoever takes what there is."""
        return tuple(name for name in self.storage.list(f"images/run={self.run_id}") if name.endswith(".parquet"))

    def read(self, table: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One part of one table, all columns or some. Raises `OutputError`."""
        key = f"{table}/run={self.run_id}/{part}"
        try:
            with self.storage.open(key) as file:
                return pq.ParquetFile(file, pre_buffer=True).read(columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{self.storage.uri_of(key)}: cannot be read: {error}") from error

    def read_part(self, part: str, prompts: frozenset[str] | None = None) -> list[ImageRows]:
        """The images of one part, as if nothing but `prompts` had been asked (None: all). Raises `OutputError`."""
        images, responses, annotations = (self._read_rows(table, part, prompts) for table in TABLES)
        return list(_joined(images, responses, annotations, f"{self.storage.uri}, run {self.run_id}, {part}"))

    def read_parts(
        self, columns: Mapping[str, Sequence[str]], parts: Iterable[str] | None = None
    ) -> Iterator[tuple[pa.Table, ...]]:
        """Some columns of some tables, in the order of `columns`, part after part; None: all. Raises `OutputError`."""

        def read(part: str) -> tuple[pa.Table, ...]:
            return tuple(self.read(table, part, names) for table, names in columns.items())

        return _ahead(read, self.parts if parts is None else parts)

    def read_images(self, parts: Iterable[str], prompts: frozenset[str] | None = None) -> Iterator[list[ImageRows]]:
        """The images of some parts, part after part, as `read_part` gives them. Raises `OutputError`."""
        return _ahead(lambda part: self.read_part(part, prompts), parts)

    def __iter__(self) -> Iterator[ImageRows]:
        for images in self.read_images(self.parts):
            yield from images

    def _check_images(self, count: int) -> None:
        totals = self.summary["totals"]
        expected = totals.get("images") if isinstance(totals, dict) else None
        if isinstance(expected, int) and count != expected:
            raise OutputError(
                f"{self.storage.uri}, run {self.run_id}: its tables hold {count} images, and {expected} by run.json; "
                "parts have been lost or added since it was complete"
            )

    def _read_rows(self, table: str, part: str, prompts: frozenset[str] | None) -> list[Row]:
        rows = self.read(table, part)
        if prompts is not None and table != "images":
            rows = rows.filter(pc.is_in(rows["prompt"], value_set=pa.array(sorted(prompts), pa.string())))
        found: list[Row] = rows.to_pylist()
        return found


def open_results(run: str) -> RunResults:
    """The run that `OUTPUT@RUN_ID` or the path of a run's folder names. Raises `ConfigError` if there is none."""
    output_uri, run_id = locate_run(run)
    results = RunResults(open_storage(output_uri), run_id)
    if not results.storage.exists(f"runs/{run_id}/config.yaml"):
        raise ConfigError(f"{results.storage.uri}: there is no run {run_id!r}")
    return results


def _joined(images: list[Row], responses: list[Row], annotations: list[Row], place: str) -> Iterator[ImageRows]:
    """All three tables are in the same order of images, and each row of `responses` says how many objects it has."""
    if images and len(responses) % len(images) == 0:
        prompts = len(responses) // len(images)
        start = 0
        for number, image in enumerate(images):
            own = responses[number * prompts : (number + 1) * prompts]
            count = sum(row["annotation_count"] for row in own)
            found = annotations[start : start + count]
            start += count
            if len(found) < count or any(row["file_name"] != image["file_name"] for row in (*own, *found)):
                raise OutputError(f"{place}: the tables are not about the same images")
            yield ImageRows(image, own, found)
        if start == len(annotations):
            return
    if images or responses or annotations:
        raise OutputError(f"{place}: the tables are not about the same images")


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `function` makes of each item, in order, a few of them begun before they are asked for."""
    with ThreadPoolExecutor(PARTS_AHEAD, "pixscribe-results") as readers:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                begun.append(readers.submit(function, item))
                if len(begun) > PARTS_AHEAD:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
