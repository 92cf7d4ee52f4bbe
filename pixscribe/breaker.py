"""An outage is waited out with one request at a time, not with six from each of a million images."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from pixscribe.clock import Clock, Sleep
from pixscribe.config import RetryConfig
from pixscribe.errors import ApiError, OutageError, ServerUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _TurnedAway(Exception):
    """An attempt that was let in before the outage began, and has not been sent."""


@dataclass(slots=True)
class Breaker:
    """Around each attempt at one service. After `failures_to_open` failures in a row, and not one answer between them,
    attempts wait, and one at a time is let through as a probe, after growing pauses of `max_wait_s` at most. The first
    answer, even a refusal, lets all of them go on. What fails meanwhile is tried again here: an outage uses up nobody's
    attempts.

    Raises `OutageError` when an outage lasts longer than `max_outage_s`, or when a service that has never answered
    fails `probes_without_answer` probes too: then it is the address that is wrong, or the network.
    """

    MOST_FAILURES: ClassVar[int] = 10

    what: str
    max_wait_s: float = 60.0
    max_outage_s: float = 7200.0
    failures_to_open: int = MOST_FAILURES
    probes_without_answer: int = 5
    clock: Clock = time.monotonic
    sleep: Sleep = asyncio.sleep
    jitter: Callable[[], float] = random.random
    is_open: bool = False
    _has_answered: bool = False
    _failures: int = 0
    _probes: int = 0
    _opened_s: float = 0.0
    _next_probe_s: float = 0.0
    _prober: asyncio.Task[object] | None = None
    _given_up: OutageError | None = None
    _turnstile: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def from_config(cls, what: str, retry: RetryConfig) -> "Breaker":
        """The breaker that a config describes: open before two images that are tried in turn have lost their last try,
        and never because of one alone."""
        failures = min(cls.MOST_FAILURES, max(3, 2 * (retry.max_attempts - 1)))
        return cls(what, max_wait_s=retry.max_wait_s, max_outage_s=retry.max_outage_s, failures_to_open=failures)

    async def call(self, attempt: Callable[[], Awaitable[T]], *, patient: bool = True) -> T:
        """Await `attempt()` when it may be made; during an outage, until it is answered or raises something else.

        Whoever is not `patient` has another way to go, and gets `OutageError` at once unless a probe is due.
        """
        while True:
            if self.is_open and not patient and (self._turnstile.locked() or self.clock() < self._next_probe_s):
                raise OutageError(f"{self.what} does not answer at the moment")
            try:
                return await self._pass(attempt)
            except _TurnedAway:
                continue
            except ServerUnavailable as error:
                if not error.is_outage or not self.is_open:
                    raise

    def check(self) -> None:
        """To be called in an attempt, when it has waited for its limits and is about to be sent: the service may have
        stopped answering meanwhile, and then `call` waits for that too."""
        if self.is_open and asyncio.current_task() is not self._prober:
            raise _TurnedAway

    async def _pass(self, attempt: Callable[[], Awaitable[T]]) -> T:
        if self.is_open:
            async with self._turnstile:
                if self._given_up is not None:
                    raise self._given_up
                if self.is_open:
                    return await self._probe(attempt)
        return await self._judged(attempt)

    async def _probe(self, attempt: Callable[[], Awaitable[T]]) -> T:
        if (wait_s := self._next_probe_s - self.clock()) > 0:
            await self.sleep(wait_s)
        self._probes += 1
        self._prober = asyncio.current_task()
        try:
            return await self._judged(attempt)
        finally:
            self._prober = None

    async def _judged(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await attempt()
        except ServerUnavailable as error:
            if error.is_outage:
                self._fail(error)
            elif self.is_open:
                self._answer()  # whatever it is, the service says it
            raise
        except ApiError:
            self._answer()
            raise
        self._answer()
        return value

    def _answer(self) -> None:
        if self.is_open and asyncio.current_task() is not self._prober:
            return  # to something that was sent before the outage
        if self.is_open:
            logger.warning("%s answers again, after %.0f s", self.what, self.clock() - self._opened_s)
        self._has_answered, self.is_open, self._failures, self._probes = True, False, 0, 0

    def _fail(self, error: ServerUnavailable) -> None:
        self._failures += 1
        self._next_probe_s = self.clock() + min(self.max_wait_s, 2.0**self._probes) * (0.5 + self.jitter() / 2)
        if not self.is_open and self._failures >= self.failures_to_open:
            self.is_open, self._opened_s = True, self.clock()
            logger.warning("%s does not answer (%s); asking with one request at a time", self.what, error)
        elif self.is_open and self._is_hopeless():
            minutes = (self.clock() - self._opened_s) / 60
            since = f"for {minutes:.0f} minutes" if self._has_answered else "once"
            self._given_up = OutageError(f"{self.what} has not answered {since}; the last try ended with: {error}")
            raise self._given_up from error

    def _is_hopeless(self) -> bool:
        if not self._has_answered and self._probes >= self.probes_without_answer:
            return True
        return self.clock() - self._opened_s > self.max_outage_s
