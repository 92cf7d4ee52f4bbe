"""Questions asked by jobs of the Batch API: gathered until a job is full, sent, awaited, and counted like any other.

What a job will hold is written at the output before the job is created, and its name after it: whoever takes up the
run takes up its jobs, and asks again only what no job holds. An answer is in the journal before anybody is told of it.
"""

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from pixscribe.archive import Archive
from pixscribe.asking import Answer, Renew, generation_config, read_again, request_key, understand
from pixscribe.batch_api import Batch, Line, bad_lines, generate_body, read_line, request_line
from pixscribe.batch_jobs import BatchJobs, JobInput
from pixscribe.batch_requests import CUT, Asked, Job, lasting, lost, missing
from pixscribe.batch_store import DROPPED, OVER, BatchRecord, BatchStore, Requested
from pixscribe.clock import Clock
from pixscribe.concurrency import Capacity, gather_or_cancel
from pixscribe.config import RunConfig
from pixscribe.errors import (
    AnswerError,
    ApiError,
    ImageError,
    PermissionRefused,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
)
from pixscribe.gemini import ImagePart
from pixscribe.journal import Journal
from pixscribe.limits import Limiter
from pixscribe.prices import estimate_input_tokens, find_price
from pixscribe.progress import Tally
from pixscribe.prompts import Question
from pixscribe.retry import RetryPolicy
from pixscribe.types import Usage

logger = logging.getLogger(__name__)

MOST_REQUESTS = 10_000
"""In one job: what a job that fails takes with it is bounded, and so is the memory that its input takes."""
MOST_BYTES = 64 * 1024 * 1024
"""Of the input of a job."""
JOBS_PER_QUEUE = 3
"""So that one is gathered and one awaited while the service is at another."""
TICK_S = 1.0
GONE_AFTER_S = 47 * 3600.0
"""Files live for 48 hours; one that is as old as this is uploaded anew rather than sent."""
LONGEST_WAIT_S = 600.0
"""Between two tries to create a job for which the service had no room."""
REFUSALS_TO_HALVE = 3
"""So often a job is refused while none of ours is waiting, and then it is taken to be too large."""
LINES_AT_ONCE = 50
"""Answers that are read before others have a turn."""


class BatchAsker:
    """Asks questions of one model by jobs. Belongs on the engine's loop, except that `stopped_by` may be set anywhere.

    `check` raises when the run is not ours any more, and blocks.
    """

    books_answers = True
    """The journal has an answer before `ask` returns it."""

    def __init__(
        self,
        jobs: BatchJobs,
        store: BatchStore,
        limiter: Limiter,
        policy: RetryPolicy,
        config: RunConfig,
        tally: Tally,
        journal: Journal,
        archive: Archive,
        check: Callable[[], None],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._jobs, self._store = jobs, store
        self._limiter, self._policy = limiter, policy
        self._model, self._batch = config.model, config.batch
        self._price = find_price(config.model.name, config.prices)
        self._tally, self._journal, self._archive = tally, journal, archive
        self._check = check
        self._clock = clock
        self._room = Capacity(config.batch.queue_tokens)
        self._job_tokens = config.batch.queue_tokens // JOBS_PER_QUEUE
        self._asked: dict[str, Asked] = {}
        self._waiting: deque[Asked] = deque()
        self._waiting_tokens = 0
        self._came_s = 0.0
        self._in_flight: dict[int, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self.on_wire: set[asyncio.Task[object] | None] = set()
        """Empty: a job goes on without us."""
        self.stopped_by: BaseException | None = None
        """Set when a run ends early: raised instead of sending anything more."""

    def request_key(self, question: Question, sent_sha256: str) -> str:
        """What makes two questions the same question, here and outside of jobs."""
        return request_key(self._model, question, sent_sha256)

    def open(self, records: Iterable[BatchRecord], questions: Sequence[Question]) -> None:
        """Begin: take up the jobs that earlier processes left, and gather what is asked."""
        for record in records:
            if record.state != OVER:
                self._begin(self._take_up(self._of_before(record, {each.name: each for each in questions})))
        self._begin(self._gather())
        self._begin(self._watch())

    async def ask(
        self,
        question: Question,
        image: ImagePart,
        request_key: str,
        renew: Renew,
        book: Callable[[Answer], None],
        *,
        shard: str = "",
    ) -> Answer:
        """Ask in as many jobs as it takes until there is a usable answer or the policy gives up.

        The answer is booked, and holds what the question has cost in earlier processes. Raises what stops the run.
        """
        if self.stopped_by is not None:
            raise self.stopped_by
        if (early := self._archive.find(request_key) if self._archive.is_unsettled(request_key) else None) is not None:
            return read_again(early, question)  # of a job from before that has just come in
        asked = self._asked.get(request_key)
        if asked is None:
            asked = self._asked[request_key] = Asked(request_key, question, shard)
            self._put(asked)
        asked.image, asked.renew, asked.uploaded_s = image, renew, self._clock()
        asked.answered = asyncio.get_running_loop().create_future()
        return await asked.answered

    async def close(self) -> None:
        """Leave the jobs to the service, and say so."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        created = [job for job in self._in_flight.values() if job.record.name is not None]
        if created:
            logger.warning(
                "%d questions in batch jobs go on without us (%s); the same command fetches the answers",
                sum(job.record.request_count for job in created),
                ", ".join(str(job.record.name) for job in created),
            )

    # what comes in

    def _put(self, asked: Asked) -> None:
        asked.tokens = estimate_input_tokens(asked.question.text, asked.question.schema, self._model.resolution)
        asked.most_usd = self._cost_usd(Usage(asked.tokens, self._model.max_output_tokens)) or 0.0
        self._waiting.append(asked)
        self._waiting_tokens += asked.tokens
        self._came_s = self._clock()
        self._tally.batch_waiting = len(self._waiting)

    async def _gather(self) -> None:
        while True:
            while not self._is_due():
                await self._policy.sleep(min(TICK_S, self._batch.gather_s / 4))
            await self._send()

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        is_full = self._waiting_tokens >= self._job_tokens or len(self._waiting) >= MOST_REQUESTS
        return is_full or self._clock() - self._came_s >= self._batch.gather_s

    async def _send(self) -> None:
        """One job, when there is room for it and money."""
        taken_tokens = await self._room.acquire(self._job_tokens)
        most_usd = await self._limiter.budget.room_usd(self._next_usd())
        asked = await self._fresh(self._take(most_usd))
        tokens = sum(each.tokens for each in asked)
        # one question may have more than a job should
        self._room.release(taken_tokens - min(tokens, taken_tokens))
        if not asked:
            return
        reserved_usd = sum(each.most_usd for each in asked)
        requests = (Requested(each.request_key, each.question.name, each.shard) for each in asked)
        record = self._store.plan(requests, reserved_usd=reserved_usd)
        job = Job(record, {each.request_key: each for each in asked}, min(tokens, taken_tokens))
        job.spent = await job.money.enter_async_context(self._limiter.budget.reserve(reserved_usd))
        self._begin(self._work(job))

    def _next_usd(self) -> float:
        """What the next job would cost at most, if it were not for the budget."""
        total_usd, tokens = 0.0, 0
        for asked in self._waiting:
            tokens += asked.tokens
            if tokens > self._job_tokens and total_usd:
                break
            total_usd += asked.most_usd
        return total_usd

    def _take(self, most_usd: float) -> list[Asked]:
        """The questions of the next job: at least one, if any is left."""
        taken: list[Asked] = []
        tokens = size_bytes = 0
        usd = 0.0
        while self._waiting and len(taken) < MOST_REQUESTS:
            asked = self._waiting[0]
            size_bytes += len(self._line(asked))
            tokens, usd = tokens + asked.tokens, usd + asked.most_usd
            if taken and (tokens > self._job_tokens or usd > most_usd or size_bytes > MOST_BYTES):
                break
            taken.append(self._waiting.popleft())
            self._waiting_tokens -= asked.tokens
        self._tally.batch_waiting = len(self._waiting)
        return taken

    async def _fresh(self, taken: list[Asked]) -> list[Asked]:
        """The same without those whose image is gone, and cannot be uploaded again."""
        await gather_or_cancel(self._renew(asked) for asked in taken if self._is_gone(asked))
        return [asked for asked in taken if asked.request_key in self._asked]

    def _is_gone(self, asked: Asked) -> bool:
        return asked.is_gone or self._clock() - asked.uploaded_s > GONE_AFTER_S

    async def _renew(self, asked: Asked) -> None:
        assert asked.renew is not None
        try:
            asked.image = await asked.renew() or asked.image
        except ImageError as error:
            self._give(asked, error)
        asked.is_gone, asked.uploaded_s, asked.body = False, self._clock(), b""

    def _line(self, asked: Asked) -> bytes:
        """Made once: it is measured, and sent."""
        if not asked.body:
            assert asked.image is not None
            question = asked.question
            body = generate_body(
                model=self._model.name,
                text=question.text,
                image=asked.image,
                schema=question.schema,
                # the same seed tends to repeat the same unusable answer
                generation_config=generation_config(self._model, asked.trial.answers),
            )
            asked.body = request_line(asked.request_key, body)
        return asked.body

    # what is under way

    async def _work(self, job: Job) -> None:
        """One new job, from its creation to its last answer."""
        self._in_flight[job.record.number] = job
        async with job.money:
            try:
                batch = await self._create(job)
                if batch is not None:
                    await self._follow(job, batch.name, is_new=True)
            finally:
                self._room.release(job.tokens)
                self._leave(job)

    async def _take_up(self, job: Job) -> None:
        """One that an earlier process has created, or was about to create."""
        self._in_flight[job.record.number] = job
        self._count(job, 1)
        async with job.money:
            job.spent = await job.money.enter_async_context(
                self._limiter.budget.reserve(job.record.reserved_usd, is_sent=True)
            )
            self._jobs.hold(job.record.input_sha256)
            if job.record.name is None:
                await self._find(job)
            if job.record.name is None:
                await self._drop(job)
            else:
                await self._follow(job, job.record.name, is_new=False)
            self._leave(job)

    def _of_before(self, record: BatchRecord, questions: Mapping[str, Question]) -> Job:
        asked = {
            each.request_key: Asked(each.request_key, questions[each.prompt], each.shard)
            for each in record.requests
            if each.prompt in questions and not self._is_known(each, record)
        }
        self._asked.update(asked)
        return Job(record, asked)

    def _is_known(self, requested: Requested, record: BatchRecord) -> bool:
        """Whether the earlier process had taken in what the job says of it."""
        wasted = self._archive.wasted(requested.request_key)
        is_wasted = wasted is not None and wasted.asked_at == datetime.fromisoformat(record.created_at)
        return is_wasted or self._archive.has(requested.request_key)

    def _leave(self, job: Job) -> None:
        """Not when the process ends before the job: it is left to the service then."""
        if job.record.state in (OVER, DROPPED):
            del self._in_flight[job.record.number]
            self._count(job, -1)
            self._ended.set()

    def _count(self, job: Job, jobs: int) -> None:
        """What the progress shows, of jobs that the service knows."""
        if job.record.name is not None:
            self._tally.batch_jobs += jobs
            self._tally.batch_requests += jobs * job.record.request_count

    async def _find(self, job: Job) -> None:
        batch = await self._jobs.find(job.record.display_name)
        if batch is not None:
            await self._note(job, batch)

    async def _create(self, job: Job) -> Batch | None:
        """None if it came to nothing: its questions are asked by other jobs then."""
        data = b"".join(self._line(each) for each in job.asked.values())
        content = JobInput(data, hashlib.sha256(data).hexdigest())
        job.record.input_sha256 = content.sent_sha256
        await asyncio.to_thread(self._store.write, job.record)
        file = await self._jobs.upload(content, f"{job.record.display_name}.jsonl")
        refusals = alone = 0
        while True:
            await asyncio.to_thread(self._check)
            if self.stopped_by is not None:
                raise self.stopped_by
            try:
                batch = await self._jobs.create(job.record.display_name, content, file)
            except RateLimited as error:
                refusals, alone = refusals + 1, alone + (not self._has_created())
                if alone >= REFUSALS_TO_HALVE and len(job.asked) > 1:
                    await self._halve(job)
                    return None
                await self._wait_for_room(refusals, error)
            except RequestRefused as error:
                await self._sort_out(job, error)
                return None
            else:
                await self._note(job, batch)
                return batch

    def _has_created(self) -> bool:
        """Whether any of our jobs is at the service, so that its end makes room."""
        return any(job.record.name is not None for job in self._in_flight.values())

    async def _note(self, job: Job, batch: Batch) -> None:
        job.record.name, job.record.state = batch.name, "created"
        self._count(job, 1)
        await asyncio.to_thread(self._store.write, job.record)
        self._tally.requests += len(job.asked)
        logger.info("%s: %d requests (%s)", batch.name, len(job.asked), job.record.display_name)

    async def _wait_for_room(self, refusals: int, error: RateLimited) -> None:
        """Until one of our jobs has ended, or some minutes: others may use the same queue."""
        wait_s = min(LONGEST_WAIT_S, self._batch.poll_s * 2.0 ** min(refusals - 1, 10))
        logger.warning(
            "there is no room for a batch job: %s; again in %.1f s", " ".join(str(error).split())[:200], wait_s
        )
        self._ended.clear()
        ended = asyncio.create_task(self._ended.wait())
        slept = asyncio.ensure_future(self._policy.sleep(wait_s))
        try:
            await asyncio.wait((ended, slept), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            slept.cancel()

    async def _halve(self, job: Job) -> None:
        self._job_tokens = max(1, min(self._job_tokens, job.tokens // 2))
        logger.warning(
            "a batch job of %d tokens finds no room although none of ours is waiting; jobs are made half as large: "
            "batch.queue_tokens may be more than the tier of the key has",
            job.tokens,
        )
        await self._drop(job)

    async def _sort_out(self, job: Job, refusal: RequestRefused) -> None:
        """One bad request has refused all of them: it becomes a row, and the others are asked again."""
        said, asked = bad_lines(str(refusal)), list(job.asked.values())
        bad = {number: said[number] for number in range(1, len(asked) + 1) if number in said}
        for number, each in enumerate(asked, start=1):
            if number in bad or not bad:
                each.trial.attempts += 1
                self._give(each, RequestRefused(bad.get(number, str(refusal)), status=refusal.status))
                del job.asked[each.request_key]
        await self._drop(job)

    async def _drop(self, job: Job) -> None:
        """There is no such job: what it would have asked is asked by others."""
        for asked in job.asked.values():
            self._ask_again(asked)
        job.record.state = DROPPED
        await self._jobs.let_go(job.record.input_sha256)
        await asyncio.to_thread(self._store.forget, job.record)

    # what comes out

    async def _follow(self, job: Job, name: str, *, is_new: bool) -> None:
        batch = await self._jobs.wait(name, is_new=is_new)
        if batch is None:
            self._lose(job, "GONE", len(job.asked), "it was deleted, or the key is of another project")
        elif batch.state == "SUCCEEDED":
            await self._read_output(job, batch)
        else:
            self._lose(job, batch.state, batch.answered, batch.error)
        await self._journal.flush()
        await asyncio.to_thread(self._store.end, job.record)
        await self._jobs.let_go(job.record.input_sha256)

    async def _read_output(self, job: Job, batch: Batch) -> None:
        job.record.ended_as = batch.state
        with TemporaryFile() as file:
            if batch.output is None or not await self._jobs.download(batch, file, lines=len(job.asked)):
                self._lose(job, batch.state, len(job.asked), "its output is gone")
                return
            await self._read_lines(job, file)
        left = list(job.asked.values())
        for asked in left:
            self._take_in(job, asked, Line(asked.request_key, error=missing()))
        answers = job.record.request_count - len(left)
        logger.info("%s: %d of %d requests came back", batch.name, answers, job.record.request_count)

    async def _read_lines(self, job: Job, file: BinaryIO) -> None:
        file.seek(0)
        for number, text in enumerate(file):
            line = read_line(text)
            # a key that is not there any more is one that came twice
            if line is not None and (asked := job.asked.get(line.key)) is not None:
                self._take_in(job, asked, line)
            if number % LINES_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _lose(self, job: Job, state: str, answered: int, reason: str) -> None:
        """Nothing of the job is to be had. What it answered may be billed, which counts against the budget."""
        record = job.record
        answered = min(answered, record.request_count)
        record.ended_as, record.lost_answers = state, answered
        record.lost_usd = record.reserved_usd * answered / max(record.request_count, 1)
        job.spent.append(record.lost_usd)
        logger.error(
            "%s ended as %s (%s); %d answers to its %d requests may be lost, and cost up to %.4f USD that no table has",
            *(record.name, state, reason or "no reason given", answered, record.request_count, record.lost_usd),
        )
        for asked in list(job.asked.values()):
            self._take_in(job, asked, Line(asked.request_key, error=lost(state, reason)))

    def _take_in(self, job: Job, asked: Asked, line: Line) -> None:
        """One result of one question: an answer, or a reason to ask again, or to give up."""
        del job.asked[asked.request_key]
        trial = asked.trial
        trial.attempts += 1
        trial.asked_at = datetime.fromisoformat(job.record.created_at)
        error = self._understand(job, asked, line)
        if error is None or not self._is_worth_another(asked, error):
            self._give(asked, lasting(error))
            return
        asked.is_gone = isinstance(error, PermissionRefused)
        if trial.interaction is not None:
            self._book(asked, trial.answer(asked.request_key, error))
        self._tally.count_retry()
        self._ask_again(asked)

    def _understand(self, job: Job, asked: Asked, line: Line) -> ApiError | None:
        trial = asked.trial
        if line.interaction is not None:
            cost_usd = self._cost_usd(line.interaction.usage)
            job.spent.append(cost_usd or 0.0)
            self._tally.cost_usd += cost_usd or 0.0
            trial.add(line.interaction, cost_usd)
        if line.error is not None or line.interaction is None:
            return line.error
        try:
            trial.parsed = understand(line.interaction, asked.question)
        except AnswerError as error:
            return error
        return AnswerError(CUT, code="truncated") if trial.parsed.truncated else None

    def _is_worth_another(self, asked: Asked, error: ApiError) -> bool:
        """The policy's rules. Its share of repeats is no bound here: a job that failed as a whole is no storm."""
        trial = asked.trial
        if isinstance(error, AnswerError) and trial.answers >= self._policy.max_answers:
            return False
        passes = isinstance(error, RateLimited | ServerUnavailable | AnswerError | PermissionRefused)
        return passes and trial.attempts < self._policy.max_attempts

    def _ask_again(self, asked: Asked) -> None:
        """In a later job; one that nobody waits for is asked when its image is read."""
        asked.body = b""
        if asked.image is None:
            self._asked.pop(asked.request_key, None)
        else:
            self._put(asked)

    def _give(self, asked: Asked, error: ImageError | None) -> None:
        """That was the last of it."""
        answer = asked.trial.answer(asked.request_key, error)
        booked = self._book(asked, answer) if answer.text is not None else answer.after(self._wasted(asked))
        self._asked.pop(asked.request_key, None)
        asked.tell(booked)

    def _book(self, asked: Asked, answer: Answer) -> Answer:
        answer = answer.after(self._wasted(asked))
        self._journal.add(asked.shard, answer)
        if asked.image is None:
            self._archive.take_up({asked.request_key: replace(answer, reused=True)})
        return answer

    def _wasted(self, asked: Asked) -> Answer | None:
        return self._archive.wasted(asked.request_key)

    def _cost_usd(self, usage: Usage) -> float | None:
        return self._price.cost_usd(usage, "batch") if self._price else None

    # how it ends

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        """Whatever goes wrong here ends the run, for everyone who waits."""
        self.stopped_by = self.stopped_by or error
        for asked in self._asked.values():
            asked.fail(error)

    async def _watch(self) -> None:
        """Who waits for days must hear within a second that the run is over."""
        while self.stopped_by is None or isinstance(self.stopped_by, asyncio.CancelledError):
            await asyncio.sleep(TICK_S)
        self._stop(self.stopped_by)
