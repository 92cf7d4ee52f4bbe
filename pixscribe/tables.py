"""The three tables: their schemas, how rows are made, and how a shard's parts are committed.

Sorted by (file_name, prompt, index); nothing in `images` and `annotations` depends on the clock or on who came first.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixscribe.asking import Answer
from pixscribe.errors import AnswerError, OutputError
from pixscribe.geometry import place_objects
from pixscribe.progress import Totals
from pixscribe.prompts import Question
from pixscribe.source import Shard
from pixscribe.storage import Storage
from pixscribe.types import Annotation, ImageRef, ImageStatus, PreparedImage

SCHEMA_VERSION = "1"
TOTALS_KEY = b"pixscribe.totals"
READERS = 16
"""Parts that are looked at at a time: on a bucket each takes several round trips, and a large run has thousands."""

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("exif_orientation", pa.int8()),
        ("mime_type", pa.string()),
        ("sent_mime_type", pa.string()),
        ("sent_width", pa.int32()),
        ("sent_height", pa.int32()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
    ]
)
RESPONSES = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("prompt", pa.string()),
        ("kind", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("text", pa.string()),
        ("request_key", pa.string()),
        ("model", pa.string()),
        ("attempts", pa.int32()),
        ("latency_ms", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("thought_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("parser_version", pa.string()),
        ("reused", pa.bool_()),
        ("asked_at", pa.timestamp("us", tz="UTC")),
        ("annotation_count", pa.int32()),
    ]
)
ANNOTATIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("prompt", pa.string()),
        ("index", pa.int32()),
        ("label", pa.string()),
        ("xmin", pa.float64()),
        ("ymin", pa.float64()),
        ("xmax", pa.float64()),
        ("ymax", pa.float64()),
        ("area", pa.float64()),
        ("polygons", pa.list_(pa.list_(pa.float64()))),
        ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("score", pa.float64()),
        ("box_2d", pa.list_(pa.float64())),
        ("flags", pa.list_(pa.string())),
    ]
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Everything known about one image at the end: `image` is None when it could not be made ready."""

    ref: ImageRef
    image: PreparedImage | None
    answers: Mapping[str, Answer]
    """By the name of the question; one for each."""


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of one shard, sorted, and what they add up to."""

    images: list[Row]
    responses: list[Row]
    annotations: list[Row]
    totals: Totals


def make_rows(labelled: Sequence[Labelled], questions: Sequence[Question], uploads: int) -> ShardRows:
    """Turn what is known into rows: one per image, one per image and question, one per object."""
    ordered = sorted(labelled, key=lambda each: (each.ref.file_name, each.ref.uri))
    by_name = sorted(questions, key=lambda question: question.name)
    images, responses, annotations = list[Row](), list[Row](), list[Row]()
    for one in ordered:
        settled = {question.name: _settle(one, question) for question in by_name}
        images.append(_image_row(one, [result.answer for result in settled.values()]))
        responses += [_response_row(one, question, settled[question.name]) for question in by_name]
        for name, result in settled.items():
            annotations += [_annotation_row(one, name, each) for each in result.annotations]
    return ShardRows(images, responses, annotations, _totals(images, responses, uploads))


def write_shard(
    storage: Storage, run_id: str, shard: Shard, rows: ShardRows, check: Callable[[], None] = lambda: None
) -> None:
    """Commit the three parts; that of `images` comes last, so that its presence means the shard is done.

    `check` raises if the run is not ours any more.
    """
    totals = {TOTALS_KEY: rows.totals.to_json()}
    for table, part in (
        ("annotations", _part(ANNOTATIONS, rows.annotations)),
        ("responses", _part(RESPONSES, rows.responses, totals)),
        ("images", _part(IMAGES, rows.images)),
    ):
        storage.commit(part_key(table, run_id, shard), part, check)


def written_shards(storage: Storage, run_id: str) -> set[str]:
    """The names of the shards that were committed."""
    return {part.removeprefix("shard-").removesuffix(".parquet") for part in _committed_parts(storage, run_id)}


def add_up(storage: Storage, run_id: str) -> Totals:
    """What the committed shards of a run come to. Raises `OutputError` for a part that cannot be read."""
    return _sum_over_parts(storage, run_id, _read_totals)


def check_parts(storage: Storage, run_id: str) -> Totals:
    """As `add_up`, and raise `OutputError` also if a part of another table cannot be read.

    Whoever goes on with the run would leave a broken table.
    """
    return _sum_over_parts(storage, run_id, _check_shard)


def find_totals(storage: Storage, run_id: str, shard: Shard) -> Totals | None:
    """What a shard came to; None as long as it is not committed."""
    key = part_key("images", run_id, shard)
    return _read_totals(storage, run_id, key.rpartition("/")[2]) if storage.exists(key) else None


def count_images(storage: Storage, run_id: str, parts: Iterable[str]) -> int:
    """How many rows these parts of `images` have by their footers. Raises `OutputError` for one that cannot be read."""

    keys = (f"images/run={run_id}/{part}" for part in parts)
    with ThreadPoolExecutor(READERS, "pixscribe-parts") as readers:
        return sum(int(metadata.num_rows) for metadata in readers.map(partial(_read_metadata, storage), keys))


def _sum_over_parts(storage: Storage, run_id: str, read: Callable[[Storage, str, str], Totals]) -> Totals:
    with ThreadPoolExecutor(READERS, "pixscribe-parts") as readers:
        return Totals.sum(readers.map(partial(read, storage, run_id), _committed_parts(storage, run_id)))


def _committed_parts(storage: Storage, run_id: str) -> list[str]:
    """Names of files, the same in each table."""
    return [part for part in storage.list(f"images/run={run_id}") if part.endswith(".parquet")]


def _check_shard(storage: Storage, run_id: str, part: str) -> Totals:
    for table in ("images", "annotations"):
        _read_footer(storage, f"{table}/run={run_id}/{part}")
    return _read_totals(storage, run_id, part)


def _read_totals(storage: Storage, run_id: str, part: str) -> Totals:
    """What a committed shard came to, from the footer of its responses."""
    key = f"responses/run={run_id}/{part}"
    try:
        return Totals.from_json(_read_footer(storage, key)[TOTALS_KEY])
    except (KeyError, ValueError) as error:
        raise _no_part(storage, key, error) from error


def _read_footer(storage: Storage, key: str) -> Mapping[bytes, bytes]:
    """What a part says beside its rows."""
    return _read_metadata(storage, key).metadata or {}


def _read_metadata(storage: Storage, key: str) -> pq.FileMetaData:
    try:
        with storage.open(key) as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise _no_part(storage, key, error) from error


def _no_part(storage: Storage, key: str, error: Exception) -> OutputError:
    return OutputError(f"{storage.uri_of(key)}: is no part of a run: {error}")


def part_key(table: str, run_id: str, shard: Shard) -> str:
    """Where a part lies below the output."""
    return f"{table}/run={run_id}/shard-{shard.name}.parquet"


@dataclass(frozen=True, slots=True)
class _Settled:
    """An answer whose objects are placed in source pixels."""

    answer: Answer
    annotations: list[Annotation]


def _settle(one: Labelled, question: Question) -> _Settled:
    answer = one.answers[question.name]
    if one.image is None or answer.parsed is None:
        return _Settled(answer, [])
    try:
        annotations, dropped = place_objects(answer.parsed, (one.image.width, one.image.height))
    except AnswerError as error:
        return _Settled(_failed(answer, error), [])
    marks = (*one.image.flags, *(("truncated",) if answer.parsed.truncated else ()))
    marked = [replace(each, flags=(*each.flags, *marks)) for each in annotations]
    return _Settled(_after_placing(answer, annotations, dropped), marked)


def _failed(answer: Answer, error: AnswerError) -> Answer:
    """Objects of which none is left are no empty answer; one that failed before keeps its first reason."""
    if answer.status == "failed":
        return answer
    return replace(answer, status="failed", error_code=error.code, error=str(error))


def _after_placing(answer: Answer, annotations: Sequence[Annotation], dropped: Sequence[str]) -> Answer:
    """Placing may still clip or drop: nothing of that is silent."""
    if answer.status == "failed":
        return answer
    repaired = answer.status == "repaired" or dropped or any(each.flags for each in annotations)
    error = "; ".join(filter(None, [answer.error, *dropped])) or None
    return replace(answer, status="repaired" if repaired else "ok", error=error)


def _image_row(one: Labelled, answers: Sequence[Answer]) -> Row:
    image, status = one.image, _image_status(answers)
    failed = next((answer for answer in answers if answer.status == "failed"), None)
    return {
        "image_id": image and image.image_id,
        "file_name": _text(one.ref.file_name),
        "uri": one.ref.uri,
        "size_bytes": image.size_bytes if image else one.ref.size_bytes,
        "width": image and image.width,
        "height": image and image.height,
        "exif_orientation": image and image.exif_orientation,
        "mime_type": image and image.mime_type,
        "sent_mime_type": image and image.sent_mime_type,
        "sent_width": image and image.sent_width,
        "sent_height": image and image.sent_height,
        "status": status,
        "error_code": failed and failed.error_code,
        "error": _text(failed.error) if failed else None,
    }


def _image_status(answers: Sequence[Answer]) -> ImageStatus:
    failed = sum(answer.status == "failed" for answer in answers)
    return "ok" if failed == 0 else "failed" if failed == len(answers) else "partial"


def _response_row(one: Labelled, question: Question, settled: _Settled) -> Row:
    answer = settled.answer
    return {
        "image_id": one.image and one.image.image_id,
        "file_name": _text(one.ref.file_name),
        "prompt": question.name,
        "kind": question.kind,
        "status": answer.status,
        "error_code": answer.error_code,
        "error": _text(answer.error),
        "text": _text(answer.text),
        "request_key": answer.request_key,
        "model": answer.model,
        "attempts": answer.attempts,
        "latency_ms": answer.latency_ms,
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "thought_tokens": answer.usage.thought_tokens,
        "cost_usd": answer.cost_usd,
        "parser_version": answer.parser_version,
        "reused": answer.reused,
        "asked_at": answer.asked_at,
        "annotation_count": len(settled.annotations),
    }


def _annotation_row(one: Labelled, prompt: str, annotation: Annotation) -> Row:
    assert one.image is not None  # annotations come from answers, and those from images that were ready
    xmin, ymin, xmax, ymax = annotation.xyxy or (None, None, None, None)
    return {
        "image_id": one.image.image_id,
        "file_name": _text(one.ref.file_name),
        "width": one.image.width,
        "height": one.image.height,
        "prompt": prompt,
        "index": annotation.index,
        "label": _text(annotation.label),
        "xmin": xmin,
        "ymin": ymin,
        "xmax": xmax,
        "ymax": ymax,
        "area": annotation.area,
        "polygons": annotation.polygons,
        "rle": annotation.rle and {"size": annotation.rle.size, "counts": annotation.rle.counts},
        "score": None,
        "box_2d": annotation.box_2d,
        "flags": list(dict.fromkeys(annotation.flags)),
    }


def _text(value: str | None) -> str | None:
    """Parquet holds UTF-8; a lone surrogate, which JSON can spell, is not."""
    return value if value is None else value.encode("utf-8", "replace").decode("utf-8")


def _totals(images: Sequence[Row], responses: Sequence[Row], uploads: int) -> Totals:
    status = Counter(row["status"] for row in images)
    failed = [row for row in responses if row["status"] == "failed"]
    return Totals(
        images=len(images),
        images_ok=status["ok"],
        images_partial=status["partial"],
        images_failed=status["failed"],
        responses=len(responses),
        responses_failed=len(failed),
        objects=sum(row["annotation_count"] for row in responses),
        uploads=uploads,
        requests=sum(row["attempts"] for row in responses),
        reused=sum(row["reused"] for row in responses),
        input_tokens=sum(row["input_tokens"] for row in responses),
        output_tokens=sum(row["output_tokens"] for row in responses),
        thought_tokens=sum(row["thought_tokens"] for row in responses),
        cost_usd=sum(row["cost_usd"] or 0.0 for row in responses),
        errors=dict(sorted(Counter(str(row["error_code"]) for row in failed).items())),
    )


def _part(schema: pa.Schema, rows: list[Row], extra: Mapping[bytes, bytes] | None = None) -> bytes:
    metadata = {b"pixscribe.schema_version": SCHEMA_VERSION.encode(), **(extra or {})}
    table = pa.Table.from_pydict(dict(_columns(schema, rows)), schema=schema.with_metadata(metadata))
    with io.BytesIO() as file:
        pq.write_table(table, file, compression="zstd")
        return file.getvalue()


def _columns(schema: pa.Schema, rows: list[Row]) -> Iterator[tuple[str, list[Any]]]:
    for name in schema.names:
        yield name, [row[name] for row in rows]
