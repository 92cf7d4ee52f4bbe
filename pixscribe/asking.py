"""One question about one image: asked, repeated when that can help, understood, and counted."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import orjson

from pixscribe.answers import PARSER_VERSION, parse_answer
from pixscribe.breaker import Breaker
from pixscribe.config import EMULATOR, ModelConfig
from pixscribe.errors import (
    AnswerError,
    ApiError,
    AuthenticationError,
    ImageError,
    PermissionRefused,
    QuotaExhausted,
    RateLimited,
    ServerUnavailable,
)
from pixscribe.gemini import GeminiClient, ImagePart, Interaction, interaction_body
from pixscribe.limits import Limiter
from pixscribe.prices import Price, estimate_input_tokens
from pixscribe.progress import Tally
from pixscribe.prompts import Question
from pixscribe.retry import RetryPolicy
from pixscribe.types import ErrorCode, ParsedAnswer, ResponseStatus, Usage

Renew = Callable[[], Awaitable[ImagePart | None]]
"""Brings another copy of an image whose file is gone; None if there can be none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question about one image: a row of `responses`, except for the image's own columns.

    `usage` and `cost_usd` are sums over all attempts that were billed; `attempts` 0 means that nothing was asked.
    `parsed` holds what could be used of `text`, also when the answer failed (the complete part of a cut one).
    """

    status: ResponseStatus
    request_key: str | None
    text: str | None = None
    parsed: ParsedAnswer | None = None
    error_code: ErrorCode | None = None
    error: str | None = None
    model: str | None = None
    attempts: int = 0
    latency_ms: int | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    asked_at: datetime | None = None
    reused: bool = False
    parser_version: str = PARSER_VERSION

    def after(self, earlier: "Answer | None") -> "Answer":
        """This answer, with what an earlier one to the same question cost, which was of no use."""
        if earlier is None:
            return self
        cost_usd = None if self.cost_usd is None or earlier.cost_usd is None else self.cost_usd + earlier.cost_usd
        attempts = self.attempts + earlier.attempts
        return replace(self, attempts=attempts, usage=self.usage + earlier.usage, cost_usd=cost_usd)

    def for_another_name(self) -> "Answer":
        """The same answer for a duplicate of the image: nothing was asked or paid for it again."""
        return replace(self, reused=True, attempts=0, latency_ms=None, usage=Usage(), cost_usd=0.0, asked_at=None)


def unasked(error: ImageError) -> Answer:
    """The row of a question that could not be asked, because the image is not ready."""
    return Answer(status="failed", request_key=None, error_code=error.code, error=str(error))


@dataclass(slots=True)
class Trial:
    """What the attempts at one question have come to so far."""

    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    answers: int = 0
    attempts: int = 0
    interaction: Interaction | None = None
    parsed: ParsedAnswer | None = None
    latency_ms: int | None = None
    asked_at: datetime | None = None

    def add(self, interaction: Interaction, cost_usd: float | None) -> None:
        """Book an answer, whether or not it turns out to be usable."""
        self.interaction, self.parsed = interaction, None
        self.answers += 1
        self.usage += interaction.usage
        self.cost_usd = None if cost_usd is None or self.cost_usd is None else self.cost_usd + cost_usd

    def answer(self, request_key: str, error: ImageError | None) -> Answer:
        """The row: with the last words of the model, also when they were of no use."""
        repaired = self.parsed is not None and is_repaired(self.parsed)
        status: ResponseStatus = "failed" if error else "repaired" if repaired else "ok"
        return Answer(
            status=status,
            request_key=request_key,
            text=self.interaction.text if self.interaction else None,
            parsed=self.parsed,
            error_code=error.code if error else None,
            error=str(error) if error else describe_repairs(self.parsed),
            model=self.interaction.model if self.interaction else None,
            attempts=self.attempts,
            latency_ms=self.latency_ms,
            usage=self.usage,
            cost_usd=self.cost_usd,
            asked_at=self.asked_at,
        )


class Asker:
    """Asks questions of one model, under one limiter, one policy and one breaker."""

    books_answers = False
    """Whoever asks has to see to it that the answer is kept."""

    def __init__(
        self,
        client: GeminiClient,
        limiter: Limiter,
        policy: RetryPolicy,
        breaker: Breaker,
        model: ModelConfig,
        price: Price | None,
        tally: Tally,
    ) -> None:
        self._client = client
        self._limiter = limiter
        self._policy = policy
        self._breaker = breaker
        self._model = model
        self._tally = tally
        self._price = price
        self.on_wire: set[asyncio.Task[object] | None] = set()
        """Tasks that have sent something: it will be billed, so its answer is worth waiting for."""
        self.stopped_by: BaseException | None = None
        """Set when a run ends early: raised instead of sending anything more, also by those tasks."""

    def request_key(self, question: Question, sent_sha256: str) -> str:
        """What makes two questions the same question."""
        return request_key(self._model, question, sent_sha256)

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
        """Ask until there is a usable answer or the policy gives up, which makes a failed answer.

        When the run stops in between, what was answered to no use until then is given to `book`: it was billed. After a
        403, `renew` is asked once for another copy of the image: the file may have expired. `shard` is of no matter
        here. Raises `AuthenticationError` if there is none or that is refused too, and whatever else stops a run.
        """
        trial = Trial()
        try:
            await self._ask_with_renewal(question, image, trial, renew)
        except PermissionRefused as error:
            raise AuthenticationError(f"GEMINI_API_KEY may not use the model or its own files ({error})") from error
        except ImageError as error:
            return trial.answer(request_key, error)
        except BaseException:
            if trial.answers:
                book(trial.answer(request_key, AnswerError("the run stopped before it was asked again")))
            raise
        finally:
            self.on_wire.discard(asyncio.current_task())
        return trial.answer(request_key, None)

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def _ask_with_renewal(self, question: Question, image: ImagePart, trial: Trial, renew: Renew) -> None:
        try:
            await self._ask_until_answered(question, image, trial)
        except PermissionRefused as refusal:
            renewed = await renew()
            if renewed is None:
                raise refusal
            await self._ask_until_answered(question, renewed, trial)

    async def _ask_until_answered(self, question: Question, image: ImagePart, trial: Trial) -> None:
        await self._policy.call(lambda _: self._breaker.call(lambda: self._attempt_some_day(question, image, trial)))

    async def _attempt_some_day(self, question: Question, image: ImagePart, trial: Trial) -> None:
        while True:
            try:
                return await self._attempt(question, image, trial)
            except QuotaExhausted as error:
                # outside of the limits, so that whoever has waited for midnight is counted and paced like all others
                await self._limiter.wait_for_midnight(error)

    async def _attempt(self, question: Question, image: ImagePart, trial: Trial) -> None:
        # the same seed tends to repeat the same unusable answer
        body = self._body(question, image, seed_shift=trial.answers)
        estimate = estimate_input_tokens(question.text, question.schema, self._model.resolution)
        most_usd = self._cost_usd(Usage(estimate, self._model.max_output_tokens)) or 0.0
        limits = self._limiter.question(input_tokens=estimate, cost_usd=most_usd, check=self._breaker.check)
        async with limits as taken:
            interaction = await self._send(body, trial)
            cost_usd = self._cost_usd(interaction.usage)
            taken.input_tokens, taken.cost_usd = interaction.usage.input_tokens, cost_usd or 0.0
        self._tally.cost_usd += cost_usd or 0.0
        trial.add(interaction, cost_usd)
        trial.parsed = understand(interaction, question)
        if trial.parsed.truncated:
            raise AnswerError("the answer was cut off; its complete part is kept", code="truncated")

    async def _send(self, body: bytes, trial: Trial) -> Interaction:
        self._breaker.check()
        if self.stopped_by is not None:
            raise self.stopped_by
        self.on_wire.add(asyncio.current_task())
        self._tally.requests += 1
        trial.attempts += 1
        trial.asked_at = datetime.now(UTC)
        started_s = time.monotonic()
        try:
            interaction = await self._client.create_interaction(body)
        except ApiError as error:
            self._learn_from(error)
            raise
        finally:
            trial.latency_ms = round(1000 * (time.monotonic() - started_s))
        self._limiter.note()
        return interaction

    def _learn_from(self, error: ApiError) -> None:
        self._limiter.note(limited=isinstance(error, RateLimited), overloaded=isinstance(error, ServerUnavailable))
        # a 429 is meant for all, what another error says of waiting only for this question
        if isinstance(error, RateLimited) and error.retry_after_s:
            self._limiter.pause(min(error.retry_after_s, self._policy.max_wait_s))

    def _cost_usd(self, usage: Usage) -> float | None:
        return self._price.cost_usd(usage, self._model.service_tier) if self._price else None

    def _body(self, question: Question, image: ImagePart, *, seed_shift: int) -> bytes:
        return interaction_body(
            model=self._model.name,
            text=question.text,
            images=[image],
            schema=question.schema,
            generation_config=generation_config(self._model, seed_shift),
            service_tier=self._model.service_tier,
        )


def request_key(model: ModelConfig, question: Question, sent_sha256: str) -> str:
    """What makes two questions the same question: model, words, schema, settings and the bytes that are shown.

    How the bytes travel, and the price tier, change nothing about the answer and do not count. What the built-in
    emulator made up is never taken for an answer of the model.
    """
    asked = [model.name, question.text, question.schema, generation_config(model, 0), model.resolution, sent_sha256]
    if model.base_url == EMULATOR:
        asked.append(EMULATOR)
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()


def generation_config(model: ModelConfig, seed_shift: int) -> dict[str, object]:
    return {
        "thinking_level": model.thinking_level,
        "max_output_tokens": model.max_output_tokens,
        "seed": None if model.seed is None else model.seed + seed_shift,
        "temperature": model.temperature,
    }


def read_again(answer: Answer, question: Question) -> Answer:
    """Understand the stored words of an answer once more."""
    try:
        parsed = parse_answer(answer.text or "", question.kind, question.labels)
    except AnswerError:
        return answer
    # whatever it failed for in the end, objects are kept of words that were cut off only
    return replace(answer, parsed=replace(parsed, truncated=True) if answer.status == "failed" else parsed)


def is_repaired(parsed: ParsedAnswer) -> bool:
    """Whether anything of the answer had to be put right or left out."""
    return bool(parsed.repairs or parsed.dropped or any(each.flags for each in parsed.objects))


def describe_repairs(parsed: ParsedAnswer | None) -> str | None:
    """One line on what was put right in the answer as a whole, and what was left out; None if nothing."""
    if parsed is None or not (parsed.repairs or parsed.dropped):
        return None
    dropped = [f"{len(parsed.dropped)} dropped: {'; '.join(parsed.dropped[:5])}"] if parsed.dropped else []
    return "; ".join([*parsed.repairs, *dropped])


def understand(interaction: Interaction, question: Question) -> ParsedAnswer:
    """Parse the text; an answer that the service calls incomplete is cut, however whole it looks."""
    try:
        parsed = parse_answer(interaction.text, question.kind, question.labels)
    except AnswerError as error:
        if interaction.incomplete:
            raise AnswerError(f"the answer was cut off: {error}", code="truncated") from error
        raise
    return replace(parsed, truncated=True) if interaction.incomplete else parsed
