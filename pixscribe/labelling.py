"""The work on one shard: make its images ready, ask each question about them, write what came of it.

The stages run at the same time: a question is asked as soon as its image is ready, and the bytes of an image are let go
as soon as no stage needs them. Everything here runs on the engine's loop.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from pixscribe.asking import Answer, Asker, read_again, unasked
from pixscribe.concurrency import Capacity, SingleFlight, gather_or_cancel
from pixscribe.config import RunConfig
from pixscribe.errors import HopelessRun, ImageError, ReadError
from pixscribe.gemini import File, ImagePart
from pixscribe.image import ImageRules, prepare_image, read_header
from pixscribe.journal import Journal
from pixscribe.progress import Tally, Totals
from pixscribe.prompts import Question
from pixscribe.source import Shard, read_shard
from pixscribe.storage import Storage, read_image
from pixscribe.tables import Labelled, ShardRows, make_rows, write_shard
from pixscribe.types import ErrorCode, ImageRef, PreparedImage
from pixscribe.uploads import Uploader

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

HELD_BYTES = 512 * 1024 * 1024
"""Image bytes in memory at a time, over all shards in flight."""
DECODED_PIXELS = 200_000_000
"""Pixels being decoded or encoded at a time: about 800 MB at four bytes each."""
INLINE_LIMIT_BYTES = 14 * 1024 * 1024
"""Base64 makes four bytes of three, and a request must stay below 20 MB."""
AUTO_INLINE_BYTES = 1024 * 1024
"""Below this many bytes over all prompts, sending an image with each question beats two more requests to upload it."""
GRACE_S = 5.0
"""How long a stopped run waits for answers to what it has sent."""
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
    """An image that can be asked about: as a file of the service, or with its bytes in `image.data`."""

    image: PreparedImage
    file: File | None = None

    def part(self, resolution: str | None) -> ImagePart:
        """How it stands in a question."""
        mime_type = self.image.sent_mime_type
        if self.file is not None:
            return ImagePart(mime_type, uri=self.file.uri, resolution=resolution)
        return ImagePart(mime_type, data=self.image.data, resolution=resolution)


@dataclass(slots=True)
class ShardWork:
    """What one shard has come to, between its stages."""

    shard: str
    refs: list[ImageRef]
    ready: list[asyncio.Future[ReadyImage | ImageError]]
    answers: list[dict[str, Answer]]
    held_bytes: list[int]
    journaled: dict[str, Answer]
    """What an earlier process was answered, by request key."""
    uploads: int = 0


@dataclass(frozen=True, slots=True)
class StageTally:
    """What a stage of a shard did, for people: how many images went well and how many did not."""

    images: int
    failed: int


@dataclass(slots=True)
class Labeller:
    """All that the stages of a run's shards share in one process."""

    run_id: str
    manifest_key: str
    config: RunConfig
    questions: Sequence[Question]
    storage: Storage
    asker: Asker
    uploader: Uploader
    journal: Journal
    tally: Tally
    _works: SingleFlight[ShardWork] = field(default_factory=SingleFlight)
    _asked: SingleFlight[Answer] = field(default_factory=SingleFlight)
    _asking: set[asyncio.Task[Answer]] = field(default_factory=set)
    _bytes: Capacity = field(default_factory=lambda: Capacity(HELD_BYTES))
    _pixels: Capacity = field(default_factory=lambda: Capacity(DECODED_PIXELS))
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "pixscribe-images"))

    async def make_ready(self, shard: Shard) -> StageTally:
        """Stage one: read, check, turn upright and upload every image of the shard, or find out why not."""
        work = await self._work(shard)
        await gather_or_cancel(self._make_one_ready(work, index) for index in range(len(work.refs)))
        failed = sum(isinstance(each.result(), ImageError) for each in work.ready)
        return StageTally(len(work.refs), failed)

    async def ask(self, shard: Shard, question_name: str) -> StageTally:
        """Stage two, once per question: ask it about every image of the shard as that gets ready."""
        work = await self._work(shard)
        question = next(each for each in self.questions if each.name == question_name)
        await gather_or_cancel(self._ask_about_one(work, index, question) for index in range(len(work.refs)))
        failed = sum(answers[question_name].status == "failed" for answers in work.answers)
        return StageTally(len(work.refs), failed)

    async def write(self, shard: Shard) -> Totals:
        """Stage three: commit the shard's rows. Raises `HopelessRun` instead if all its images failed in one way."""
        work = await self._work(shard)
        labelled = [_labelled(work, index) for index in range(len(work.refs))]
        rows = await self._in_thread(make_rows, labelled, self.questions, work.uploads)
        _check_hope(rows, self.questions)
        await self._in_thread(write_shard, self.storage, self.run_id, shard, rows)
        self._works.forget(shard.name)
        await self.journal.forget(shard.name)
        self.tally.shards_written.append(rows.totals.describe())
        logger.info("shard %s: %s", shard.name, rows.totals.describe())
        return rows.totals

    async def finish(self) -> None:
        """Wait a moment for answers that will be billed, give up the other questions, and write the journal."""
        sent = [task for task in self._asking if task in self.asker.on_wire]
        for task in self._asking - set(sent):
            task.cancel()
        if sent:
            await asyncio.wait(sent, timeout=GRACE_S)
        for task in sent:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.journal.flush()

    async def _work(self, shard: Shard) -> ShardWork:
        work, _ = await self._works.once(shard.name, lambda: self._open_work(shard))
        return work

    async def _open_work(self, shard: Shard) -> ShardWork:
        refs = await self._in_thread(read_shard, self.storage.uri, self.manifest_key, shard)
        loop = asyncio.get_running_loop()
        ready: list[asyncio.Future[ReadyImage | ImageError]] = [loop.create_future() for _ in refs]
        journaled = await self._in_thread(self.journal.recall, shard.name)
        return ShardWork(shard.name, refs, ready, [{} for _ in refs], [0] * len(refs), journaled)

    async def _make_one_ready(self, work: ShardWork, index: int) -> None:
        ref = work.refs[index]
        work.held_bytes[index] = await self._bytes.acquire(ref.size_bytes or 0)
        try:
            ready, uploaded = await self._transport(ref, await self._prepare(ref))
            work.uploads += uploaded
        except ImageError as error:
            self._let_go(work, index)
            work.ready[index].set_result(error)
            return
        if ready.file is not None:
            ready = replace(ready, image=replace(ready.image, data=b""))
            self._let_go(work, index)
        work.ready[index].set_result(ready)

    async def _prepare(self, ref: ImageRef) -> PreparedImage:
        if ref.error is not None:
            raise ReadError(ref.error)
        rules = ImageRules(self.config.image.max_side_px, self.config.image.max_pixels)
        image = await self._in_thread(_read_plain, ref.uri, rules)
        if isinstance(image, PreparedImage):
            return image
        async with self._pixels.hold(image.decode_px):
            return await self._in_thread(prepare_image, image.data, rules)

    async def _transport(self, ref: ImageRef, image: PreparedImage) -> tuple[ReadyImage, bool]:
        """Upload the image, unless it travels inside the questions; also says whether anything was uploaded."""
        if self._travels_inline(image):
            return ReadyImage(image), False
        file, uploaded = await self.uploader.upload(image, ref.file_name)
        return ReadyImage(image, file), uploaded

    def _travels_inline(self, image: PreparedImage) -> bool:
        size_bytes, transport = len(image.data), self.config.model.transport
        if transport == "inline" and size_bytes > INLINE_LIMIT_BYTES:
            message = f"{size_bytes} bytes do not fit into one request; model.transport files or auto would upload them"
            raise ImageError(message, code="too_large")
        is_small = size_bytes * len(self.questions) <= AUTO_INLINE_BYTES
        return transport == "inline" or (transport == "auto" and is_small)

    async def _ask_about_one(self, work: ShardWork, index: int, question: Question) -> None:
        ready = await asyncio.shield(work.ready[index])
        if isinstance(ready, ImageError):
            answer = unasked(ready)
        else:
            answer = await self._answer(work, work.refs[index], ready, question)
        work.answers[index][question.name] = answer
        if len(work.answers[index]) == len(self.questions):
            self._let_go(work, index)
            self._count_image(work.answers[index])

    async def _answer(self, work: ShardWork, ref: ImageRef, ready: ReadyImage, question: Question) -> Answer:
        key = self.asker.request_key(question, ready.image.sent_sha256)
        answer, asked_now = await self._asked.once(key, lambda: self._ask(work, ref, ready, question, key))
        return answer if asked_now else answer.for_another_name()

    async def _ask(self, work: ShardWork, ref: ImageRef, ready: ReadyImage, question: Question, key: str) -> Answer:
        journaled = work.journaled.get(key)
        # what was of no use is asked again: a run that stopped over it would else stop over it for ever
        if journaled is not None and journaled.status != "failed":
            return read_again(journaled, question)
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
        answer = await self.asker.ask(question, part, key, lambda: self._renew(ref, ready))
        if answer.text is not None:  # there are words, so there is a bill
            self.journal.add(work.shard, answer)
        return answer

    async def _renew(self, ref: ImageRef, ready: ReadyImage) -> ImagePart | None:
        """Upload the image once more; None if it was not uploaded in the first place."""
        if ready.file is None:
            return None
        image = await self._prepare(ref)
        if image.sent_sha256 != ready.image.sent_sha256:
            raise ReadError("changed since it was uploaded, and the upload is gone", code="changed_during_run")
        file = await self.uploader.upload_again(image, ref.file_name, ready.file)
        return ReadyImage(image, file).part(self.config.model.resolution)

    def _let_go(self, work: ShardWork, index: int) -> None:
        held, work.held_bytes[index] = work.held_bytes[index], 0
        if held:
            self._bytes.release(held)
        ready = work.ready[index]
        if ready.done() and isinstance(image := ready.result(), ReadyImage) and image.image.data:
            work.ready[index] = asyncio.get_running_loop().create_future()
            work.ready[index].set_result(replace(image, image=replace(image.image, data=b"")))

    def _count_image(self, answers: dict[str, Answer]) -> None:
        self.tally.images_done += 1
        self.tally.images_failed += any(answer.status == "failed" for answer in answers.values())
        self.tally.objects += sum(len(answer.parsed.objects) for answer in answers.values() if answer.parsed)

    async def _in_thread(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


@dataclass(frozen=True, slots=True)
class _Undecoded:
    data: bytes
    decode_px: int


def _read_plain(uri: str, rules: ImageRules) -> PreparedImage | _Undecoded:
    """Read an image, and prepare it at once if that takes no pixels."""
    data = read_image(uri)
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


def _labelled(work: ShardWork, index: int) -> Labelled:
    ready = work.ready[index].result()
    if isinstance(ready, ImageError):
        return Labelled(work.refs[index], None, work.answers[index])
    return Labelled(work.refs[index], ready.image, work.answers[index])
