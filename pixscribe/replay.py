"""A run made again from the words that an earlier one was answered: no request, no key, and no image is read.

The parts of `images` and `annotations` come out the same to the byte, unless parser or geometry have changed since.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from pixscribe.answers import PARSER_VERSION, parse_answer
from pixscribe.asking import Answer, describe_repairs, is_repaired
from pixscribe.errors import AnswerError, ConfigError
from pixscribe.lock import RunLock
from pixscribe.prompts import Question
from pixscribe.results import ImageRows, RunResults
from pixscribe.run import REPLAY, RunSummary, begin_replay, make_questions, summarize, with_page, write_summary
from pixscribe.source import Shard
from pixscribe.tables import Labelled, Row, make_rows, write_shard
from pixscribe.types import ImageRef, PreparedImage, ResponseStatus

IMAGE_FLAGS = ("first_frame",)
"""Flags of objects that say something of their image."""
READABLE_CODES = ("invalid_json", "invalid_answer")
"""Failures of an answer that came in whole: another parser may make something of it."""


def replay(results: RunResults, run_id: str | None = None) -> RunSummary:
    """Begin a new run of the same output and config, and fill it with what the stored answers mean to this parser.

    Its `responses` cost nothing and are `reused`. Raises `ConfigError` for a run that is not complete and for a run id
    that is taken, and `OutputError`.
    """
    if results.summary["status"] != "complete":
        raise ConfigError(f"run {results.run_id!r} is not complete, so not all of its images can be replayed")
    started_s = time.monotonic()
    storage, config = results.storage, results.config
    lock = RunLock(storage, f"runs/.replay-{results.run_id}.lock", subject="a replay of this run")
    with lock.held():
        run = begin_replay(results.storage, config, results.run_id, run_id)
        questions = make_questions(config)
        for part in results.parts:
            labelled = [replay_image(rows, questions) for rows in results.read_part(part)]
            write_shard(storage, run.id, _shard(part), make_rows(labelled, questions, uploads=0), lock.check)
        summary = summarize(storage, run.id, config, time.monotonic() - started_s, results.summary["totals"]["images"])
        if config.output.report:
            summary = with_page(storage, summary, lock.check)
        lock.check()
        write_summary(storage, summary)
        storage.delete(run.key(REPLAY))
    return summary


def replay_image(rows: ImageRows, questions: Sequence[Question]) -> Labelled:
    """What the stored words about one image mean to this parser."""
    by_name = {question.name: question for question in questions}
    answers = {row["prompt"]: replay_answer(row, by_name[row["prompt"]]) for row in rows.responses}
    image = rows.image
    ref = ImageRef(image["file_name"], image["uri"], image["size_bytes"])
    return Labelled(ref, _prepared(rows) if image["image_id"] else None, answers)


def replay_answer(row: Row, question: Question) -> Answer:
    """The answer of a row of `responses`, its words read again; it costs nothing any more.

    What failed for another reason than its words stays failed, and has objects only if it had: those of an answer that
    was cut off before.
    """
    stored = _stored(row)
    is_final = row["status"] == "failed" and row["error_code"] not in READABLE_CODES
    if row["text"] is None or (is_final and not row["annotation_count"]):
        return stored
    try:
        parsed = parse_answer(row["text"], question.kind, question.labels)
    except AnswerError as error:
        return stored if is_final else replace(stored, status="failed", error_code=error.code, error=str(error))
    if is_final:
        return replace(stored, parsed=replace(parsed, truncated=True))
    status: ResponseStatus = "repaired" if is_repaired(parsed) else "ok"
    return replace(stored, status=status, error_code=None, error=describe_repairs(parsed), parsed=parsed)


def _stored(row: Row) -> Answer:
    return Answer(
        status=row["status"],
        request_key=row["request_key"],
        text=row["text"],
        error_code=row["error_code"],
        error=row["error"],
        model=row["model"],
        reused=True,
        parser_version=PARSER_VERSION,
    )


def _prepared(rows: ImageRows) -> PreparedImage:
    image = rows.image
    flags = {flag for row in rows.annotations for flag in row["flags"]}
    return PreparedImage(
        image_id=image["image_id"],
        size_bytes=image["size_bytes"],
        width=image["width"],
        height=image["height"],
        exif_orientation=image["exif_orientation"],
        mime_type=image["mime_type"],
        data=b"",
        sent_mime_type=image["sent_mime_type"],
        sent_width=image["sent_width"],
        sent_height=image["sent_height"],
        sent_sha256="",
        flags=tuple(flag for flag in IMAGE_FLAGS if flag in flags),
    )


def _shard(part: str) -> Shard:
    """The shard of a part; which rows of the manifest it is about is not asked for any more."""
    return Shard(int(part.removeprefix("shard-").removesuffix(".parquet")), 0, 0)
