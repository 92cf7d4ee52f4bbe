"""The rows of many images as columns: what is the same in two runs is found without looking at rows one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pixscribe.diff.objects import Objects
from pixscribe.errors import OutputError
from pixscribe.results import ImageRows, RunResults
from pixscribe.tables import ANNOTATIONS, IMAGES, RESPONSES
from pixscribe.types import ImageStatus

Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SCHEMAS = {"images": IMAGES, "responses": RESPONSES, "annotations": ANNOTATIONS}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
COMPARED: Mapping[str, Sequence[str]] = {
    "images": ("file_name", "image_id", "width", "height"),
    "responses": ("file_name", "prompt", "status", "error_code", "annotation_count"),
    "annotations": ("file_name", "label", *CORNERS, "polygons", "rle"),
}


class Status(NamedTuple):
    """Of an image, and the code of the first of its prompts that failed."""

    name: ImageStatus
    error_code: str | None

    def __str__(self) -> str:
        return f"{self.name} ({self.error_code})" if self.error_code else self.name


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of a table that belong together: `counts[n]` of them from `starts[n]` on."""

    starts: Integers
    counts: Integers

    @classmethod
    def of_counts(cls, counts: Integers) -> "Groups":
        """Groups that follow each other without gaps."""
        return cls(np.cumsum(counts) - counts, counts)

    def take(self, numbers: Integers | Bools) -> "Groups":
        return Groups(self.starts[numbers], self.counts[numbers])

    def rows(self) -> Integers:
        """Of all groups, one after the other."""
        return np.repeat(self.starts - np.cumsum(self.counts) + self.counts, self.counts) + np.arange(self.counts.sum())

    def equal(self, others: "Groups", rows_equal: Callable[[Integers, Integers], Bools]) -> Bools:
        """Whether the nth group has as many rows as the nth of `others`, and each of them is equal to its own."""
        equal: Bools = self.counts == others.counts
        left, right = self.take(equal), others.take(equal)
        wrong = np.concatenate([[0], np.cumsum(~rows_equal(left.rows(), right.rows()))])
        ends = np.cumsum(left.counts)
        equal[equal] = wrong[ends] == wrong[ends - left.counts]
        return equal


@dataclass(frozen=True, slots=True)
class Columns:
    """Some images of a run: the same number of answers for each, in the order of the prompts, and their objects."""

    prompts: int
    images: pa.Table
    responses: pa.Table
    annotations: pa.Table

    def __len__(self) -> int:
        return int(self.images.num_rows)

    @property
    def answers(self) -> Groups:
        """The rows of `annotations` of each answer."""
        return Groups.of_counts(_integers(self.responses.column("annotation_count")))

    @property
    def size_bytes(self) -> int:
        """In memory."""
        return sum(int(table.nbytes) for table in (self.images, self.responses, self.annotations))

    @property
    def object_count(self) -> int:
        return int(self.annotations.num_rows)

    def take(self, images: Integers) -> "Columns":
        """Those of some images, in the order that is given."""
        answers = Groups(images * self.prompts, np.full(len(images), self.prompts)).rows()
        objects = self.answers.take(answers).rows()
        tables = ((self.images, images), (self.responses, answers), (self.annotations, objects))
        return Columns(self.prompts, *(table.take(pa.array(rows)) for table, rows in tables))

    def to_rows(self) -> Iterator[ImageRows]:
        """One image after the other."""
        images, responses, annotations = (
            table.to_pylist() for table in (self.images, self.responses, self.annotations)
        )
        counts = self.answers.counts.reshape(len(self), self.prompts).sum(axis=1).tolist()
        stop = 0
        for number, (image, count) in enumerate(zip(images, counts, strict=True)):
            start, stop = stop, stop + count
            own = responses[number * self.prompts : (number + 1) * self.prompts]
            yield ImageRows(image, own, annotations[start:stop])

    def statuses(self) -> list[Status]:
        """Of each image, as far as these prompts say."""
        failed = np.reshape(self.responses.column("status").to_numpy() == "failed", (len(self), self.prompts))
        statuses = [Status("ok", None)] * len(self)
        codes = self.responses.column("error_code")
        for number in np.flatnonzero(failed.any(axis=1)).tolist():
            first = number * self.prompts + int(failed[number].argmax())
            statuses[number] = Status("failed" if failed[number].all() else "partial", codes[first].as_py())
        return statuses

    def failed(self) -> Bools:
        """Whether each answer is none."""
        failed: Bools = self.responses.column("status").to_numpy() == "failed"
        return failed

    def objects_of(self, numbers: Sequence[int]) -> Iterator[Objects]:
        """The objects of some answers, by their position in `responses`."""
        answers = self.answers.take(np.array(numbers, dtype=np.int64))
        table = self.annotations.take(pa.array(answers.rows()))
        labels = table.column("label").to_pylist()
        boxes = np.stack([table.column(name).to_numpy() for name in CORNERS], axis=1).astype(np.float64)
        sizes = [self.images.column(name).to_pylist() for name in ("width", "height")]
        stop = 0
        for number, count in zip(numbers, answers.counts.tolist(), strict=True):
            start, stop = stop, stop + count
            width, height = (side[number // self.prompts] or 0 for side in sizes)
            yield Objects(labels[start:stop], boxes[start:stop], _outlines(table, start), (width, height))


def read_columns(
    results: RunResults, prompts: Sequence[str], parts: Sequence[str], columns: Mapping[str, Sequence[str]] = COMPARED
) -> Iterator[Columns]:
    """Parts of a run, with the answers to `prompts` (sorted) and to no others. Raises `OutputError`."""
    schemas = [pa.schema([SCHEMAS[table].field(name) for name in names]) for table, names in columns.items()]
    for part, tables in zip(parts, results.read_parts(columns, parts), strict=True):
        place = f"{results.storage.uri}, run {results.run_id}, {part}"
        try:
            typed = [table.select(schema.names).cast(schema) for table, schema in zip(tables, schemas, strict=True)]
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise OutputError(f"{place}: the tables have not the columns of a run: {error}") from error
        chosen = _chosen([table.combine_chunks() for table in typed], prompts)
        if chosen is None:
            raise OutputError(f"{place}: the tables are not about the same images")
        yield chosen


def joined(pieces: Sequence[Columns]) -> Columns:
    """One after the other."""
    tables = zip(*((each.images, each.responses, each.annotations) for each in pieces), strict=True)
    return Columns(pieces[0].prompts, *(pa.concat_tables(each).combine_chunks() for each in tables))


def equal_answers(left: Columns, right: Columns) -> Bools:
    """Whether the nth answer of both has the same objects in the same order, to the last digit and of equal images."""
    return left.answers.equal(
        right.answers, lambda rows, others: _objects_equal(left, rows, right, others)
    ) & np.repeat(equal_columns(left.images, right.images, ("width", "height")), left.prompts)


def equal_columns(left: pa.Table, right: pa.Table, names: Sequence[str]) -> Bools:
    """Whether the nth row of both is equal in all these columns; null is equal to null."""
    equal = np.ones(left.num_rows, dtype=bool)
    for name in names:
        equal &= _equal(left.column(name), right.column(name))
    return equal


def _chosen(tables: Sequence[pa.Table], prompts: Sequence[str]) -> Columns | None:
    """None if the tables are not about the same images and the same prompts."""
    images, responses, annotations = tables
    answers = Groups.of_counts(_integers(responses.column("annotation_count")))
    asked = pc.index_in(responses.column("prompt"), value_set=pa.array(prompts, pa.string()))
    chosen = np.flatnonzero(asked.is_valid().to_numpy())
    fits = (
        len(answers.rows()) == annotations.num_rows
        and np.array_equal(_integers(asked)[chosen], np.tile(np.arange(len(prompts)), images.num_rows))
        and _names(responses).take(pa.array(chosen)).equals(_repeated(images, len(prompts)))
        and _names(annotations).equals(_repeated(responses, answers.counts))
    )
    if not fits:
        return None
    rows = answers.take(chosen).rows()
    return Columns(len(prompts), images, responses.take(pa.array(chosen)), annotations.take(pa.array(rows)))


def _names(table: pa.Table) -> pa.ChunkedArray:
    return table.column("file_name")


def _repeated(table: pa.Table, often: int | Integers) -> pa.ChunkedArray:
    return _names(table).take(pa.array(np.repeat(np.arange(table.num_rows), often)))


def _integers(column: pa.ChunkedArray) -> Integers:
    numbers: Integers = pc.fill_null(column, 0).to_numpy().astype(np.int64)
    return numbers


def _equal(left: Any, right: Any) -> Bools:
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    equal: Bools = pc.or_(pc.fill_null(pc.equal(left, right), False), both_null).to_numpy(zero_copy_only=False)
    return equal


def _objects_equal(left: Columns, rows: Integers, right: Columns, others: Integers) -> Bools:
    mine, theirs = left.annotations.take(pa.array(rows)), right.annotations.take(pa.array(others))
    equal = equal_columns(mine, theirs, ("label", *CORNERS))
    equal &= _equal(*(pc.struct_field(table.column("rle"), "counts") for table in (mine, theirs)))
    return equal & _lists_equal(*(table.column("polygons").combine_chunks() for table in (mine, theirs)))


def _lists_equal(left: Any, right: Any) -> Bools:
    """Row by row, of lists in lists of numbers. Arrow itself compares no lists."""
    if not pa.types.is_list(left.type):
        return _equal(left, right)
    mine, theirs = (Groups(*_bounds(array)) for array in (left, right))
    values = left.values, right.values
    return mine.equal(
        theirs, lambda rows, others: _lists_equal(values[0].take(pa.array(rows)), values[1].take(pa.array(others)))
    )


def _bounds(array: Any) -> tuple[Integers, Integers]:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets[:-1], np.diff(offsets)


def _outlines(table: pa.Table, start: int) -> Callable[[int], Any]:
    polygons, rles = table.column("polygons"), table.column("rle")
    return lambda at: (polygons[start + at].as_py() or (), rles[start + at].as_py())
