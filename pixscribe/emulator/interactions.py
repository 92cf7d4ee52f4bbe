"""The Interactions API: create, and read, cancel, delete of what was stored."""

import asyncio
import base64
import binascii
import hashlib
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pixscribe.emulator.books import Books, Question
from pixscribe.emulator.call import Call, Caller
from pixscribe.emulator.fault_answers import SPOILERS
from pixscribe.emulator.fault_replies import REPLIES
from pixscribe.emulator.faults import FaultSource
from pixscribe.emulator.files import FileStore, timestamp
from pixscribe.emulator.limits import Quota
from pixscribe.emulator.media import URL_LIMIT_BYTES, URL_TYPES, types_of
from pixscribe.emulator.options import EmulatorOptions
from pixscribe.emulator.replies import INVALID_ARGUMENT, Refused, Reply, interactions_error, invalid, json_reply
from pixscribe.emulator.request import Asked, ImagePart, read_question
from pixscribe.emulator.speech import Draft, compose
from pixscribe.emulator.viewer import Picture, Viewer

Fetch = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of one answer beside those of its question."""

    output_tokens: int
    thought_tokens: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one API of the model does not share with the other.

    `read` understands a request and raises `Refused`, `render` words an answer. `replies` go before the faults of
    the same name in `REPLIES`.
    """

    read: Callable[[bytes, Call], Asked]
    render: Callable[[Asked, Draft, Spent], dict[str, Any]]
    replies: Mapping[str, Callable[[Asked], Reply]] = field(default_factory=dict)


_THOUGHT_TOKENS = {"minimal": 0, "low": 32, "medium": 128, "high": 512}
_REMEMBERED = 1000
_CLIENT_LEFT = 499
_CANNOT_FETCH = "Cannot fetch content from the provided URL."


class Interactions:
    """`fetch` brings the bytes of a public URL, on a thread; without it no URL can be fetched."""

    def __init__(
        self,
        options: EmulatorOptions,
        store: FileStore,
        books: Books,
        faults: FaultSource,
        clock: Callable[[], float],
        fetch: Fetch | None,
    ) -> None:
        self._options, self._store, self._books, self._faults = options, store, books, faults
        self._clock, self._fetch = clock, fetch
        self._dialect = Dialect(lambda raw, call: read_question(raw, call.version), self._interaction)
        self._viewer = Viewer(looks=options.look)
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._stored: OrderedDict[str, tuple[str, dict[str, Any], Any]] = OrderedDict()
        self._serial = 0
        self._random = random.Random(options.seed)

    async def create(self, call: Call) -> Reply:
        return await self.answer(call, self._dialect)

    async def answer(self, call: Call, dialect: Dialect) -> Reply:
        """One question of any dialect, with its entry in the books. Raises `Refused`."""
        question = self._books.open_question(time.monotonic())
        try:
            reply = await self._answer(call, question, dialect)
            question.status = reply.status or None
        except Refused as refused:
            question.status = refused.reply.status
            raise
        except asyncio.CancelledError:
            question.status = _CLIENT_LEFT
            raise
        finally:
            self._books.close_question(question, time.monotonic())
        return reply

    async def ask(self, asked: Asked, caller: Caller, question: Question, dialect: Dialect, *, now: bool) -> Reply:
        """What the model says to a question that was understood; `question` learns of it. Raises `Refused`.

        `now`: the question counts against the quotas, and the answer takes its time.
        """
        pictures = [await self._picture(part, caller) for part in asked.images]
        question.images, question.text = tuple(picture.sha256 for picture in pictures), asked.text
        question.input_tokens = asked.text_tokens + asked.image_tokens
        if now:
            self._quota(caller.project, asked.model).admit(asked.model, question.input_tokens, self._clock())
        question.fault = self._faults.next("interaction")
        if question.fault in REPLIES:
            return (dialect.replies.get(question.fault) or REPLIES[question.fault])(asked)
        draft = await self._draft(asked, pictures, question.fault)
        spent = _spend(asked, draft)
        question.output_tokens = spent.output_tokens + spent.thought_tokens
        answer = dialect.render(asked, draft, spent)
        if asked.store:
            self._remember(answer, asked, caller.project)
        if now and (delay_s := self._options.latency_s + self._random.uniform(0, self._options.jitter_s)):
            await asyncio.sleep(delay_s)
        return json_reply(answer, headers={"x-gemini-service-tier": asked.service_tier})

    async def get(self, call: Call) -> Reply:
        """`?stream=false` is what Google's SDK always adds."""
        _, answer, given = self._own(call)
        with_input = call.request.query.get("include_input") == "true"
        return json_reply({**answer, "input": given} if with_input else answer)

    async def delete(self, call: Call) -> Reply:
        self._own(call)
        del self._stored[call.target]
        return json_reply({})

    async def cancel(self, call: Call) -> Reply:
        self._own(call)
        raise invalid("Only a running background interaction can be cancelled.", "failed_precondition")

    def close(self) -> None:
        self._viewer.close()

    async def _answer(self, call: Call, question: Question, dialect: Dialect) -> Reply:
        caller = call.caller()
        raw = await call.body()
        question.digest = hashlib.sha256(raw).hexdigest()
        if not call.request.headers.get("Content-Type", "").startswith("application/json"):
            raise invalid("The Content-Type of the request must be application/json.")
        return await self.ask(dialect.read(raw, call), caller, question, dialect, now=True)

    async def _draft(self, asked: Asked, pictures: list[Picture], fault: str | None) -> Draft:
        scenes = [await self._viewer.scene(picture) for picture in pictures]
        draft = compose(asked, scenes, png_masks=self._options.masks == "png")
        _stop(draft, asked)
        if fault is not None:
            SPOILERS[fault](draft)
        return draft

    async def _picture(self, part: ImagePart, caller: Caller) -> Picture:
        picture = await self._find(part, caller)
        if not picture.types:
            raise invalid(INVALID_ARGUMENT)  # as bare as the service is about a TIFF
        if part.mime_type not in picture.types:
            raise invalid(
                f"The mime_type '{part.mime_type}' is not that of the image ({', '.join(sorted(picture.types))})."
            )
        return picture

    async def _find(self, part: ImagePart, caller: Caller) -> Picture:
        if part.data is not None:
            return _inline(part.data)
        uri = part.uri or ""
        file = self._store.used(uri, caller.host, caller.project)
        if file is not None:
            return Picture(file.sha256, file.types, file=file)
        if self._fetch is None or urlsplit(uri).scheme not in ("https", "http") or part.mime_type not in URL_TYPES:
            raise invalid(_CANNOT_FETCH)
        try:
            data = await asyncio.to_thread(self._fetch, uri)
        except Exception as cause:  # whatever the hook raises
            raise invalid(_CANNOT_FETCH) from cause
        if len(data) > URL_LIMIT_BYTES:
            raise invalid(_CANNOT_FETCH)
        return Picture(hashlib.sha256(data).hexdigest(), types_of(data[:32]), data)

    def _quota(self, project: str, model: str) -> Quota:
        options = self._options
        if (project, model) not in self._quotas:
            self._quotas[project, model] = Quota(
                options.requests_per_minute, options.tokens_per_minute, options.requests_per_day
            )
        return self._quotas[project, model]

    def _interaction(self, asked: Asked, draft: Draft, spent: Spent) -> dict[str, Any]:
        self._serial += 1
        now = timestamp(self._clock())
        answer: dict[str, Any] = {
            "id": f"v1_{self._serial:012d}",
            "object": "interaction",
            "model": asked.model,
            "status": draft.status,
            "created": now,
            "updated": now,
            "service_tier": asked.service_tier,
            "steps": _steps(draft, spent.thought_tokens),
            "usage": _usage(asked, spent.output_tokens, spent.thought_tokens),
        }
        if draft.errors:
            answer["errors"] = draft.errors
        if not draft.has_steps:
            del answer["steps"]
        if not asked.store:
            del answer["id"]
        return answer

    def _remember(self, answer: dict[str, Any], asked: Asked, project: str) -> None:
        self._stored[answer["id"]] = (project, answer, asked.input)
        if len(self._stored) > _REMEMBERED:
            self._stored.popitem(last=False)

    def _own(self, call: Call) -> tuple[str, dict[str, Any], Any]:
        project = call.project()
        entry = self._stored.get(call.target)
        if entry is None or entry[0] != project:
            raise Refused(interactions_error(404, "not_found", "Requested entity was not found."))
        return entry


def _inline(encoded: str) -> Picture:
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise invalid("Invalid value at 'data': base64 decoding failed.") from cause
    return Picture(hashlib.sha256(data).hexdigest(), types_of(data[:32]), data)


def _stop(draft: Draft, asked: Asked) -> None:
    for sequence in asked.stop_sequences:
        draft.text = (draft.text or "").partition(sequence)[0]


def _spend(asked: Asked, draft: Draft) -> Spent:
    thought_tokens = min(_THOUGHT_TOKENS[asked.thinking_level], asked.max_output_tokens)
    _cut(draft, asked.max_output_tokens - thought_tokens)
    return Spent(math.ceil(len(draft.text or "") / 4), thought_tokens)


def _cut(draft: Draft, budget_tokens: int) -> None:
    """Thinking is paid from the same budget, so nothing may be left for words."""
    if draft.text is not None and len(draft.text) > 4 * budget_tokens:
        draft.text = draft.text[: 4 * budget_tokens] or None
        draft.status = "incomplete"


def _steps(draft: Draft, thought_tokens: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if thought_tokens or draft.text is None:
        steps.append({"type": "thought", "signature": base64.b64encode(b"emulated thought").decode()})
    if draft.text is not None:
        steps.append({"type": "model_output", "content": [{"type": "text", "text": draft.text}]})
    return steps


def _usage(asked: Asked, output_tokens: int, thought_tokens: int) -> dict[str, Any]:
    input_tokens = asked.text_tokens + asked.image_tokens
    modalities = {"text": asked.text_tokens, "image": asked.image_tokens}
    return {
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "total_thought_tokens": thought_tokens,
        "total_cached_tokens": 0,
        "total_tool_use_tokens": 0,
        "total_tokens": input_tokens + output_tokens + thought_tokens,
        "input_tokens_by_modality": [{"modality": m, "tokens": n} for m, n in modalities.items() if n],
    }
