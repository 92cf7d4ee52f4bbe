"""The work on one shard: make its images ready, ask each question about them, write what came of it.

Each image goes its own way: it is read, uploaded, asked about, and let go. So many are on their way at a time that the
connections are never idle, whichever shard they belong to. Everything here runs on the engine's loop.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from pixscribe.archive import Archive
from pixscribe.asking import Answer, Asker, read_again, unasked
from pixscribe.batch_asking import JOBS_PER_QUEUE, BatchAsker
from pixscribe.concurrency import Capacity, Held, SingleFlight, gather_or_cancel
from pixscribe.config import RunConfig
from pixscribe.errors import (
    DecodeError,
    HopelessRun,
    ImageError,
    OutageError,
    QuotaExhausted,
    ReadError,
    RunError,
    StorageFull,
    UploadError,
)
from pixscribe.gemini import File, ImagePart
from pixscribe.image import ImageRules, prepare_image, read_header
from pixscribe.journal import Journal
from pixscribe.lock import LeadersLock, RunLock
from pixscribe.prices import estimate_input_tokens
from pixscribe.progress import Tally, Totals
from pixscribe.prompts import Question
from pixscribe.reading import is_url, read_image
from pixscribe.source import Shard, read_shard
from pixscribe.storage import Storage
from pixscribe.tables import Labelled, ShardRows, make_rows, part_key, write_shard
from pixscribe.types import ErrorCode, ImageRef, PreparedImage
from pixscribe.uploads import Uploader

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

HELD_BYTES = 512 * 1024 * 1024
"""Bytes of image files in memory at a time, over all shards in flight, and of images that were encoded again."""
LEAST_IMAGES = 64
"""On their way at a time, of all shards together; more if there may be more than half as many requests in flight."""
DECODED_PIXELS = 100_000_000
"""Pixels being decoded or encoded at a time, four bytes each and a copy: about 800 MB. A larger image goes alone."""
INLINE_LIMIT_BYTES = 14 * 1024 * 1024
"""Base64 makes four bytes of three, and a request must stay below 20 MB."""
AUTO_INLINE_BYTES = 1024 * 1024
"""Below this many bytes over all prompts, sending an image with each question beats two more requests to upload it."""
BATCHED_IMAGES = 20_000
"""The same for jobs of the Batch API, if its queue takes so many: each waits in memory, without its bytes."""
BATCHED_BYTES = 15 * 1000**3
"""Of files that wait for jobs: a project's storage has 20 GB."""
SMALL_SHARDS = 5
"""The first ones, which a job has to reach beyond to be full."""
GRACE_S = 5.0
"""How long a stopped run waits for answers to what it has sent."""
UNKNOWN_BYTES = 4 * 1024 * 1024
"""What an image is taken to have whose size is not known before it is read, until larger ones have been seen."""
URL_TYPES = frozenset(("image/jpeg", "image/png", "image/webp"))
URL_LIMIT_BYTES = 100_000_000
"""What the service fetches by itself, by type and size; see "Image understanding", read 2026-11."""
HOPELESS_IMAGES = 20
"""So many images have to fail in one way before that says something about the rest."""
HOPELESS_CODES: frozenset[ErrorCode] = frozenset(
    (
        *("upload_failed", "rate_limited", "server_error", "timeout", "network_error", "request_refused"),
        *("truncated", "invalid_json", "invalid_answer"),
    )
)
"""What comes from the service or the config. Bad images cost nothing, and a folder of them must not end the run."""


@dataclass(frozen=True, slots=True)
class ReadyImage:
    """An image that can be asked about: as a file of the service, by its own `url`, or with its bytes in `image.data`.

    `known` holds the answers that need not be asked for, by the name of the question; with all of them there, the image
    was not uploaded either.
    """

    image: PreparedImage
    file: File | None = None
    known: Mapping[str, Answer] = field(default_factory=dict)
    url: str | None = None

    def part(self, resolution: str | None) -> ImagePart:
        """How it stands in a question."""
        mime_type = self.image.sent_mime_type
        if self.file is not None:
            return ImagePart(mime_type, uri=self.file.uri, resolution=resolution)
        if self.url is not None:
            return ImagePart(mime_type, uri=self.url, resolution=resolution)
        return ImagePart(mime_type, data=self.image.data, resolution=resolution)


@dataclass(slots=True)
class ShardWork:
    """What one shard has come to so far."""

    shard: str
    uploaded: list[str] = field(default_factory=list)
    """The sha256 of what was sent of each image whose file this shard holds on to."""
    asked: set[str] = field(default_factory=set)
    """Request keys, to be forgotten when the shard is committed."""
    uploads: int = 0


@dataclass(slots=True)
class Labeller:
    """All that the stages of a run's shards share in one process."""

    run_id: str
    manifest_key: str
    config: RunConfig
    questions: Sequence[Question]
    storage: Storage
    asker: Asker | BatchAsker
    uploader: Uploader
    journal: Journal
    archive: Archive
    lock: RunLock | LeadersLock
    tally: Tally
    _asked: SingleFlight[Answer] = field(default_factory=SingleFlight)
    _asking: set[asyncio.Task[Answer]] = field(default_factory=set)
    _bytes: Capacity = field(default_factory=lambda: Capacity(HELD_BYTES))
    _encoded_bytes: Capacity = field(default_factory=lambda: Capacity(HELD_BYTES))
    _pixels: Capacity = field(default_factory=lambda: Capacity(DECODED_PIXELS))
    _places: Capacity = field(init=False)
    _stored_bytes: Capacity = field(default_factory=lambda: Capacity(BATCHED_BYTES))
    _unknown_bytes: int = UNKNOWN_BYTES
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "pixscribe-images"))
    # they wait for the network, and apart from the others, whom slow hosts must not keep from their work
    _fetchers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32, "pixscribe-fetch"))
    # as many as can run at a time: each thread keeps the memory of the largest image that it has decoded
    _decoders: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(os.cpu_count() or 1, "pixscribe-decode")
    )

    def __post_init__(self) -> None:
        self._places = Capacity(self.images_in_flight)

    @property
    def images_in_flight(self) -> int:
        """How many images are on their way at a time: in batch mode, as many as fill all jobs and one to come."""
        least = max(LEAST_IMAGES, 2 * self.config.limits.concurrency)
        if not self._is_batch:
            return least
        resolution = self.config.model.resolution
        tokens = sum(estimate_input_tokens(each.text, each.schema, resolution) for each in self.questions)
        most = self.config.batch.queue_tokens * (JOBS_PER_QUEUE + 1) // JOBS_PER_QUEUE // tokens
        return max(least, min(BATCHED_IMAGES, most))

    @property
    def shards_in_flight(self) -> int:
        """How many shards are to be labelled at a time, so that the images on their way are as many as they may be."""
        configured = self.config.execution.shards_in_flight
        if not self._is_batch:
            return configured
        return max(configured, -(-self.images_in_flight // self.config.execution.shard_size) + SMALL_SHARDS)

    @property
    def _is_batch(self) -> bool:
        return self.config.model.mode == "batch"

    async def label(self, shard: Shard, check: Callable[[], None] | None = None) -> Totals:
        """Label the images of a shard and commit its rows. Raises `HopelessRun` if all its images failed in one way.

        `check` raises when the shard is not ours any more; without it, `lock.check` does for the run.
        """
        refs = await self._in_thread(read_shard, self.storage.uri, self.manifest_key, shard)
        work = ShardWork(shard.name)
        labelled = await gather_or_cancel(self._label_one(work, ref) for ref in refs)
        rows = await self._in_thread(make_rows, labelled, self.questions, work.uploads)
        _check_hope(rows, self.questions)
        await self._in_thread(write_shard, self.storage, self.run_id, shard, rows, check or self.lock.check)
        await self._forget(shard, work)
        self.tally.count_shard(rows.totals)
        logger.info("shard %s: %s", shard.name, rows.totals.describe())
        return rows.totals

    async def _forget(self, shard: Shard, work: ShardWork) -> None:
        """What is committed is found in the tables from now on; memory must not grow with the run."""
        await self._in_thread(self.archive.settle, part_key("responses", self.run_id, shard), work.asked)
        for request_key in work.asked:
            self._asked.forget(request_key)
        self.uploader.let_go(work.uploaded)
        await self.journal.forget(shard.name)

    def send_no_more(self) -> None:
        """Let what is on the wire come in, and nothing else go out. May be called from any thread."""
        self.asker.stopped_by = self.asker.stopped_by or asyncio.CancelledError()

    def give_up(self, error: RunError) -> None:
        """Send nothing more, and let the next answer that comes in end the run with this error."""
        self.asker.stopped_by = error
        self.journal.fail(error)

    async def finish(self) -> None:
        """Wait a moment for answers that will be billed, give up the other questions, and write the journal."""
        self.send_no_more()
        sent = [task for task in self._asking if task in self.asker.on_wire]
        for task in self._asking - set(sent):
            task.cancel()
        if sent:
            await asyncio.wait(sent, timeout=GRACE_S)
        for task in sent:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self.asker.close()
        for threads in (self._threads, self._fetchers, self._decoders):
            threads.shutdown(wait=False, cancel_futures=True)
        await self.journal.flush()

    async def _label_one(self, work: ShardWork, ref: ImageRef) -> Labelled:
        """All the way of one image."""
        # files that wait for jobs; taken before the bytes, for which a file that is renewed must not wait on others
        async with self._places.hold(1), self._stored_bytes.hold(self._weight_of(ref) if self._is_batch else 0):
            try:
                labelled = await self._read_and_ask(work, ref)
            except ImageError as error:
                labelled = Labelled(ref, None, {question.name: unasked(error) for question in self.questions})
            if self._is_batch and labelled.image is not None:
                self._let_go_early(work, labelled.image.sent_sha256)
        self._count_image(labelled)
        return labelled

    def _let_go_early(self, work: ShardWork, sent_sha256: str) -> None:
        """One image of a shard may wait for the next job, and the files of all the others must not."""
        if sent_sha256 in work.uploaded:
            work.uploaded.remove(sent_sha256)
            self.uploader.let_go([sent_sha256])

    async def _read_and_ask(self, work: ShardWork, ref: ImageRef) -> Labelled:
        """The bytes are held until they are uploaded; without an upload, until all questions are answered."""
        async with self._bytes.hold(self._weight_of(ref)) as held:
            ready = await self._get_ready(work, ref, held)
            if not ready.image.data:
                held.release()
            answers = await self._answers(work, ref, ready)
        return Labelled(ref, replace(ready.image, data=b""), answers)

    async def _answers(self, work: ShardWork, ref: ImageRef, ready: ReadyImage) -> dict[str, Answer]:
        answers = await gather_or_cancel(self._answer(work, ref, ready, question) for question in self.questions)
        return {question.name: answer for question, answer in zip(self.questions, answers, strict=True)}

    async def _get_ready(self, work: ShardWork, ref: ImageRef, held: Held) -> ReadyImage:
        image = await self._prepare(ref, held)
        known = await self._recall(image)
        if len(known) == len(self.questions):
            return ReadyImage(replace(image, data=b""), known=known)
        return replace(await self._transport(work, ref, image), known=known)

    async def _recall(self, image: PreparedImage) -> dict[str, Answer]:
        """What was answered about this image before, by any run of this output."""
        keys = {question.name: self.asker.request_key(question, image.sent_sha256) for question in self.questions}
        maybe = [question for question in self.questions if self.archive.has(keys[question.name])]
        if not maybe:
            return {}
        return await self._in_thread(self._find, {question.name: keys[question.name] for question in maybe})

    def _find(self, keys: Mapping[str, str]) -> dict[str, Answer]:
        found = {name: self.archive.find(key) for name, key in keys.items()}
        return {
            question.name: read_again(answer, question)
            for question in self.questions
            if (answer := found.get(question.name)) is not None
        }

    async def _prepare(self, ref: ImageRef, held: Held) -> PreparedImage:
        """Read an image and, if it cannot be sent as it is, encode it again; `held` then holds those bytes too."""
        if ref.error is not None:
            raise ReadError(ref.error)
        rules = ImageRules(self.config.image.max_side_px, self.config.image.max_pixels)
        try:
            read = functools.partial(_read_plain, rules, ref.uri, self.config.source.allow_private_hosts, self.is_over)
            threads = self._threads if ref.uri.startswith("file:") else self._fetchers
            image = await asyncio.get_running_loop().run_in_executor(threads, read)
            if ref.size_bytes is None:
                self._learn_size(len(image.data), held)
            if isinstance(image, PreparedImage):
                return image
            return await self._encode_again(image, rules, held)
        except MemoryError as error:
            raise DecodeError("needs more memory than there is", code="too_large") from error

    def _weight_of(self, ref: ImageRef) -> int:
        return self._unknown_bytes if ref.size_bytes is None else ref.size_bytes

    def _learn_size(self, size_bytes: int, held: Held) -> None:
        """What an image of unknown size turned out to have is what the next ones are taken to have, for a while."""
        self._unknown_bytes = max(UNKNOWN_BYTES, size_bytes, int(0.9 * self._unknown_bytes))
        held.correct(self._bytes, size_bytes)

    async def _encode_again(self, image: "_Undecoded", rules: ImageRules, held: Held) -> PreparedImage:
        # before the pixels, for uploads that stall must not let encoded images pile up
        await held.take(self._encoded_bytes, image.decode_px)
        async with self._pixels.hold(image.decode_px):
            encoded = await asyncio.wrap_future(self._decoders.submit(prepare_image, image.data, rules))
        held.correct(self._encoded_bytes, len(encoded.data))
        return encoded

    async def _transport(self, work: ShardWork, ref: ImageRef, image: PreparedImage) -> ReadyImage:
        """Upload the image, unless it travels inside the questions, or has to."""
        transport, count = self.config.model.transport, len(self.questions)
        if travels_inline(image, transport, count):
            return ReadyImage(image)
        if travels_as_url(ref, image, transport):
            return ReadyImage(replace(image, data=b""), url=ref.uri)
        may_go_inline = self.config.model.transport == "auto" and len(image.data) <= INLINE_LIMIT_BYTES
        self.uploader.hold(image.sent_sha256)
        work.uploaded.append(image.sent_sha256)
        try:
            file, uploaded = await self.uploader.upload(image, ref.file_name, patient=not may_go_inline)
        except (UploadError, StorageFull, OutageError) as error:
            if not may_go_inline and isinstance(error, StorageFull):
                raise QuotaExhausted("the Files API's storage is full, and nothing in it is ours to delete") from error
            if not may_go_inline:
                raise
            logger.debug("%s is sent inside its questions: %s", ref.file_name, error)
            return ReadyImage(image)
        work.uploads += uploaded
        return ReadyImage(replace(image, data=b""), file)

    def is_over(self) -> bool:
        """Whether the run ends before all is done."""
        return self.asker.stopped_by is not None

    async def _answer(self, work: ShardWork, ref: ImageRef, ready: ReadyImage, question: Question) -> Answer:
        key = self.asker.request_key(question, ready.image.sent_sha256)
        work.asked.add(key)
        answer, asked_now = await self._asked.once(key, lambda: self._ask(work, ref, ready, question, key))
        return answer if asked_now else answer.for_another_name()

    async def _ask(self, work: ShardWork, ref: ImageRef, ready: ReadyImage, question: Question, key: str) -> Answer:
        if (known := ready.known.get(question.name)) is not None:
            # its cost stands in the tables already if a shard with a duplicate was committed meanwhile
            return known if not known.cost_usd or self.archive.is_unsettled(key) else known.for_another_name()
        if self.archive.has(key):  # since it got ready: a duplicate in a shard that was committed meanwhile
            found = await self._in_thread(self._find, {question.name: key})
            if question.name in found:
                return found[question.name]
        task = asyncio.create_task(self._ask_and_journal(work, ref, ready, question, key))
        self._asking.add(task)
        task.add_done_callback(self._forget_task)
        # whoever waits may be cancelled; what is on the wire goes on, see `finish`
        return await asyncio.shield(task)

    def _forget_task(self, task: asyncio.Task[Answer]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: whoever waited may be gone, and the first error has ended the run

    async def _ask_and_journal(
        self, work: ShardWork, ref: ImageRef, ready: ReadyImage, question: Question, key: str
    ) -> Answer:
        part = ready.part(self.config.model.resolution)

        def book(answer: Answer) -> None:
            with suppress(RunError):  # it fails for what ends the run anyway
                self.journal.add(work.shard, answer.after(self.archive.wasted(key)))

        async def renew() -> ImagePart | None:
            nonlocal ready  # the next time, it is this copy that is gone
            ready = await self._renewed(work, ref, ready)
            return ready.part(self.config.model.resolution) if ready.file is not None else None

        answer = await self.asker.ask(question, part, key, renew, book, shard=work.shard)
        if self.asker.books_answers:
            return answer
        if ready.url is not None and answer.error_code == "request_refused":  # it could not fetch it, or not as it is
            with suppress(ImageError):
                ready = await self._upload_instead(work, ref, ready)
                part = ready.part(self.config.model.resolution)
                again = await self.asker.ask(question, part, key, renew, book)
                answer = again.after(answer)
        answer = answer.after(self.archive.wasted(key))
        if answer.text is not None:  # there are words, so there is a bill
            self.journal.add(work.shard, answer)
        return answer

    async def _renewed(self, work: ShardWork, ref: ImageRef, ready: ReadyImage) -> ReadyImage:
        """Upload the image once more, or in place of its URL; nothing is done if it was sent inside the question."""
        return ready if ready.file is None and ready.url is None else await self._upload_instead(work, ref, ready)

    async def _upload_instead(self, work: ShardWork, ref: ImageRef, ready: ReadyImage) -> ReadyImage:
        async with self._bytes.hold(self._weight_of(ref)) as held:
            image = await self._prepare(ref, held)
            return await self._uploaded_instead(work, ref, ready, image)

    async def _uploaded_instead(
        self, work: ShardWork, ref: ImageRef, ready: ReadyImage, image: PreparedImage
    ) -> ReadyImage:
        if image.sent_sha256 != ready.image.sent_sha256:
            raise ReadError("changed since it was read first, and has to be uploaded now", code="changed_during_run")
        if ready.file is not None:
            file = await self.uploader.upload_again(image, ref.file_name, ready.file)
        else:
            self.uploader.hold(image.sent_sha256)
            work.uploaded.append(image.sent_sha256)
            file, uploaded = await self.uploader.upload(image, ref.file_name)
            work.uploads += uploaded
        return replace(ready, file=file, url=None)

    def _count_image(self, labelled: Labelled) -> None:
        answers = labelled.answers.values()
        self.tally.images_done += 1
        self.tally.images_failed += any(answer.status == "failed" for answer in answers)
        self.tally.objects += sum(len(answer.parsed.objects) for answer in answers if answer.parsed)

    async def _in_thread(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def travels_inline(image: PreparedImage, transport: str, question_count: int) -> bool:
    """Whether an image goes inside each question. Raises `ImageError` (too_large) if it had to and does not fit."""
    size_bytes = len(image.data)
    if transport == "inline" and size_bytes > INLINE_LIMIT_BYTES:
        message = f"{size_bytes} bytes do not fit into one request; model.transport files or auto would upload them"
        raise ImageError(message, code="too_large")
    is_small = size_bytes * question_count <= AUTO_INLINE_BYTES
    return transport == "inline" or (transport == "auto" and is_small)


def travels_as_url(ref: ImageRef, image: PreparedImage, transport: str) -> bool:
    """Whether the service can fetch by itself just what it would be sent."""
    is_untouched = image.sent_sha256 == image.image_id and image.size_bytes <= URL_LIMIT_BYTES
    return transport == "url" and is_url(ref.uri) and is_untouched and image.sent_mime_type in URL_TYPES


@dataclass(frozen=True, slots=True)
class _Undecoded:
    data: bytes
    decode_px: int


def _read_plain(
    rules: ImageRules, uri: str, allow_private_hosts: bool, is_over: Callable[[], bool]
) -> PreparedImage | _Undecoded:
    """Read an image, and prepare it at once if that takes no pixels."""
    data = read_image(uri, allow_private_hosts=allow_private_hosts, is_over=is_over)
    header = read_header(data, rules)
    return _Undecoded(data, header.decode_px) if header.needs_pixels else prepare_image(data, rules)


def _check_hope(rows: ShardRows, questions: Sequence[Question]) -> None:
    """Raise `HopelessRun` if a question failed in one and the same way for every image of a shard."""
    for question in questions:
        answers = [row for row in rows.responses if row["prompt"] == question.name]
        codes = {row["error_code"] for row in answers}
        if len(answers) >= HOPELESS_IMAGES and len(codes) == 1 and codes <= HOPELESS_CODES:
            raise HopelessRun(
                f"prompt {question.name!r} failed with {codes.pop()} for all {len(answers)} images of a shard, "
                f"the first because: {answers[0]['error']}"
            )
