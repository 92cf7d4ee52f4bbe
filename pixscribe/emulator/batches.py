"""The Batch API: jobs of many generateContent requests, answered later and at half the price.

Confirmed, by the reference, by captures, or by issues that quote the service (python-genai is googleapis/python-genai):

- a job's id has 36 characters, and its output is `files/batch-<id>`, which GET and DELETE of Files find too long
  (python-genai#1759): it can only be downloaded;
- a file that is not well-formed is refused when the job is created, `Error on line N: ...` for each such line
  (UKGovernmentBEIS/inspect_ai#3257);
- a request that cannot be answered is a line with `error`, whose code is gRPC's number, and the job has SUCCEEDED even
  if all are (python-genai#2693);
- inline responses come in another order than their requests, although the reference says that they do not
  (python-genai#1909), and are left out of lists;
- a cancelled job has the error 1; to delete a job does not stop it; a job expires after 48 hours, without results;
- there are 100 jobs at once; results stay for six weeks, the output as a file for 48 hours; a job is there for the
  project that made it, for others 404.

Guessed, on the harsher side:

- the lines of an output are in another order too; each request in a file needs a `key` that no other has, and a blank
  line is an error;
- a value out of range refuses the whole job, as does a field that there is not. `serviceTier` is one: the reference of
  batches does not have it. `displayName` is needed, as the reference says;
- images are looked for when the job is run, which is at its end: what has expired by then is an error of that request.
  The file of the requests must be there until then, or the job has FAILED;
- nothing is to be had of a job that FAILED, EXPIRED or was CANCELLED, and what it answered is billed all the same;
- to cancel what is over is refused (400); to delete a job deletes its output;
- the output counts as storage, and is given out with `alt=media` only;
- who creates a job twice has two.
"""

import asyncio
import hashlib
import logging
import random
import string
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import orjson

from pixscribe.emulator.batch_job import Job
from pixscribe.emulator.batch_request import Lines, Wanted, count_tokens, read_batch, read_lines
from pixscribe.emulator.books import Books, Question
from pixscribe.emulator.call import Call
from pixscribe.emulator.fault_batches import BATCH_FATES, BATCH_LINE_ERRORS, BATCH_LINE_SPOILERS, End, Fate, Line
from pixscribe.emulator.faults import FaultSource
from pixscribe.emulator.files import FileStore, StoredFile
from pixscribe.emulator.generate import Generate, as_rpc
from pixscribe.emulator.generate_request import understand
from pixscribe.emulator.media import BATCH_TYPES
from pixscribe.emulator.options import EmulatorOptions
from pixscribe.emulator.paging import take_page
from pixscribe.emulator.replies import (
    Refused,
    Reply,
    batch_quota_exceeded,
    file_gone_message,
    file_inactive_message,
    invalid,
    invalid_rpc,
    json_reply,
    model_missing,
    rpc_error,
    rpc_status,
)
from pixscribe.emulator.request import is_offered

logger = logging.getLogger(__name__)

MOST_JOBS = 100
"""At once, in a project."""
_EXPIRY_S = 48 * 3600
_KEPT_S = 42 * 24 * 3600
_AT_ONCE = 16


class Batches:
    """Jobs move when they are looked at; one whose time has come by the real clock does so by itself."""

    def __init__(
        self,
        options: EmulatorOptions,
        store: FileStore,
        generate: Generate,
        books: Books,
        faults: FaultSource,
        clock: Callable[[], float],
    ) -> None:
        self._options, self._store, self._generate = options, store, generate
        self._books, self._faults, self._clock = books, faults, clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = 0
        self._random = random.Random(options.seed)

    async def create(self, call: Call) -> Reply:
        try:
            return await self._create(call)
        except Refused as refused:
            raise Refused(as_rpc(refused.reply)) from refused

    async def get(self, call: Call) -> Reply:
        job = self._own(call)
        was_looked_at, job.was_looked_at = job.was_looked_at, True
        if job.fate.first_look is not None and not was_looked_at:
            return job.fate.first_look
        return json_reply(job.to_operation())

    async def list(self, call: Call) -> Reply:
        """Newest first."""
        project = call.project()
        self._advance_all()
        own = [job for job in reversed(self._jobs.values()) if job.caller.project == project]
        jobs, more = take_page(own, call)
        return json_reply({"operations": [job.to_operation(in_list=True) for job in jobs], **more} if jobs else {})

    async def cancel(self, call: Call) -> Reply:
        job = self._own(call)
        if job.is_over:
            message = f"Batch {job.batch_id} is {job.state} and can no longer be cancelled."
            raise Refused(rpc_error(400, "FAILED_PRECONDITION", message))
        if job.fate.heeds_cancel:
            self._break_off(job, "CANCELLED")
        return json_reply({})

    async def delete(self, call: Call) -> Reply:
        job = self._own(call)
        self._forget(job)
        if not job.is_over and job.task is None and job.fate.starts:
            self._start(job)  # nobody will look at it any more, and it is billed all the same
        return json_reply({})

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _create(self, call: Call) -> Reply:
        project = call.project()
        wanted = await _read_wanted(call)
        file = None if wanted.file_id is None else self._input(wanted.file_id, project)
        lines = await _lines_of(wanted, file)
        tokens = await self._admit(lines, project, call)
        fault = self._faults.next("batch")
        fate = BATCH_FATES[fault]() if fault else Fate()
        if fate.refusal is not None:
            return fate.refusal
        job = self._add(call, wanted, file, lines, tokens, fate)
        reply = json_reply(job.to_operation())
        self._advance(job)
        asyncio.get_running_loop().call_later(self._options.batch_latency_s, self._advance, job)
        return Reply(0, delivery="reset") if fate.answer_is_lost else reply

    def _input(self, file_id: str, project: str) -> StoredFile:
        file = self._store.named(file_id, project)
        if file.state != "ACTIVE":
            raise invalid(file_inactive_message(file_id), "failed_precondition")
        if file.mime_type not in BATCH_TYPES or file.text is None:
            raise invalid_rpc(f"Unsupported MIME type: {file.mime_type}")
        return file

    async def _admit(self, lines: Lines, project: str, call: Call) -> int:
        """The input tokens of the requests, if these are limited; raises `Refused` (429) for one job too many."""
        self._advance_all()
        waiting = [job for job in self._jobs.values() if job.caller.project == project and not job.is_over]
        if len(waiting) >= MOST_JOBS:
            raise Refused(batch_quota_exceeded())
        if (limit := self._options.batch_tokens) is None:
            return 0
        tokens = await asyncio.to_thread(count_tokens, lines, call.target, call.version)
        if tokens + sum(job.tokens for job in waiting if job.model == call.target) > limit:
            raise Refused(batch_quota_exceeded())
        return tokens

    def _add(self, call: Call, wanted: Wanted, file: StoredFile | None, lines: Lines, tokens: int, fate: Fate) -> Job:
        self._serial += 1
        now_s = self._clock()
        job = Job(
            batch_id="".join(self._random.choices(string.ascii_lowercase + string.digits, k=36)),
            caller=call.caller(),
            version=call.version,
            model=call.target,
            display_name=wanted.display_name,
            priority=wanted.priority,
            file=file,
            lines=lines,
            tokens=tokens,
            fate=fate,
            origin=call.origin,
            serial=self._serial,
            created_s=now_s,
            updated_s=now_s,
            request_count=len(lines),
        )
        self._jobs[job.batch_id] = job
        return job

    def _own(self, call: Call) -> Job:
        project, job = call.project(), self._jobs.get(call.target)
        if job is not None:
            self._advance(job)
        if job is None or job.caller.project != project or call.target not in self._jobs:
            raise Refused(rpc_error(404, "NOT_FOUND", "Requested entity was not found."))
        return job

    def _advance_all(self) -> None:
        for job in list(self._jobs.values()):
            self._advance(job)

    def _advance(self, job: Job) -> None:
        """As far as the clock is."""
        age_s = self._clock() - job.created_s
        if age_s >= _KEPT_S:
            self._forget(job)
        elif not job.is_over and age_s >= _EXPIRY_S:
            self._break_off(job, "EXPIRED")
        elif not job.is_over and job.task is None and job.fate.starts:
            if age_s >= self._options.batch_latency_s:
                self._start(job)
            elif age_s >= self._options.batch_latency_s / 2:
                job.state = "RUNNING"

    def _start(self, job: Job) -> None:
        job.state, job.updated_s = "RUNNING", self._clock()
        job.task = asyncio.create_task(self._run(job))
        self._tasks.add(job.task)
        job.task.add_done_callback(self._tasks.discard)

    def _break_off(self, job: Job, state: End) -> None:
        if job.task is not None:
            job.task.cancel()
        self._end(job, state)

    def _end(self, job: Job, state: End, error: dict[str, Any] | None = None) -> None:
        job.end(state, self._clock(), error)
        self._books.batch_ends[state] += 1
        if state != "SUCCEEDED" or job.is_deleted:
            self._books.lost_answers += job.answered

    def _forget(self, job: Job) -> None:
        job.is_deleted = True
        if self._jobs.pop(job.batch_id, None) is not None and job.output_file is not None:
            self._store.forget(job.output_file)

    async def _run(self, job: Job) -> None:
        try:
            await self._answer_all(job)
        except Exception:
            logger.exception("The emulator failed to run batches/%s", job.batch_id)
            if not job.is_over:
                self._end(job, "FAILED")

    async def _answer_all(self, job: Job) -> None:
        lines = job.lines
        if lines is None:
            return
        if job.file is not None and self._store.find(job.file.file_id, job.caller.project) is not job.file:
            self._end(job, "FAILED", {"code": 7, "message": file_gone_message(job.file.file_id)})
            return
        order = islice(_shuffled(len(lines)), int(len(lines) * job.fate.answered_share))
        while numbers := list(islice(order, _AT_ONCE)):
            for line in chain.from_iterable(await asyncio.gather(*(self._answer(job, lines, n) for n in numbers))):
                job.write(line)
            await asyncio.sleep(0)  # where nothing is looked at nobody else would have a turn
        self._hand_out(job)

    def _hand_out(self, job: Job) -> None:
        if job.fate.end == "GONE":
            self._forget(job)
        if job.fate.end == "SUCCEEDED" and job.file is not None and not job.is_deleted:
            job.output_file = _to_file(job)
            self._store.add(job.output_file, job.origin)
        self._end(job, job.fate.end)

    async def _answer(self, job: Job, lines: Lines, number: int) -> Sequence[Line]:
        """What the output says of one request, with its entry in the books."""
        line = lines.read(number)
        request = line.pop("request")
        question = Question(hashlib.sha256(orjson.dumps(request)).hexdigest(), at_s=time.monotonic())
        fault = self._faults.next("batch_line")
        if fault in BATCH_LINE_ERRORS:
            reply = BATCH_LINE_ERRORS[fault]()
        else:
            reply = await self._reply(job, request, question)
        said = _read(reply)
        question.status = 200 if "response" in said else reply.status if reply.status >= 400 else 500
        question.fault, question.text = fault or question.fault, sys.intern(question.text)  # mostly one and the same
        self._books.batch_questions.append(question)
        job.answered += "response" in said
        job.failed += "error" in said
        spoil = BATCH_LINE_SPOILERS.get(fault or "")
        return spoil({**said, **line}, request) if spoil else [{**said, **line}]

    async def _reply(self, job: Job, request: dict[str, Any], question: Question) -> Reply:
        try:
            asked = understand(request, job.model, job.version)
        except Refused as refused:
            return as_rpc(refused.reply)
        return await self._generate.line(asked, job.caller, question)


async def _read_wanted(call: Call) -> Wanted:
    raw = await call.body()
    if not call.request.headers.get("Content-Type", "").startswith("application/json"):
        raise invalid("The Content-Type of the request must be application/json.")
    if not is_offered(call.target, call.version):
        raise Refused(model_missing(call.target, call.version))
    return read_batch(raw, call.target)


async def _lines_of(wanted: Wanted, file: StoredFile | None) -> Lines:
    """In a thread: a file may have a million of them."""
    if wanted.lines is not None:
        return wanted.lines
    assert file is not None
    assert file.text is not None
    return await asyncio.to_thread(read_lines, file.text)


def _shuffled(count: int) -> Iterator[int]:
    """Every second one first, as if two had shared the work."""
    return chain(range(1, count, 2), range(0, count, 2))


def _read(reply: Reply) -> Line:
    """`response`, or `error`, also for what interactive callers would see as a broken connection."""
    if reply.status == 200 and reply.delivery == "whole":
        try:
            return {"response": orjson.loads(reply.body)}
        except orjson.JSONDecodeError:
            pass
    return {"error": rpc_status(reply)}


def _to_file(job: Job) -> StoredFile:
    return StoredFile(
        file_id=f"batch-{job.batch_id}",
        project=job.caller.project,
        mime_type="application/jsonl",
        display_name=None,
        size_bytes=job.output.size_bytes,
        sha256=job.output_hash.hexdigest(),
        types=frozenset(),
        data=None,
        text=job.output,
        generated=True,
        first_download=job.fate.first_download,
    )
