"""When to ask again: one policy, around one attempt."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import tenacity

from pixscribe.clock import Sleep
from pixscribe.config import RetryConfig
from pixscribe.errors import AnswerError, ApiError, RateLimited, ServerUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class RetryBudget:
    """Of all requests of a run, at most `share` may be repeats, after the first `free` of them.

    A service that fails half the time must not double the traffic for a million images: beyond the budget, what fails
    is left to the next run.
    """

    share: float = 0.5
    free: int = 100
    requests: int = 0
    repeats: int = 0

    def allows_repeat(self) -> bool:
        """Whether one more request may be a repeat."""
        return self.repeats < self.free + self.share * self.requests


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`max_attempts` in all, of which `max_answers` may end in an unusable answer (each of those is billed).

    Between attempts: what the service asked for, else full jitter over an exponential wait; never above `max_wait_s`.
    """

    max_attempts: int = 6
    max_wait_s: float = 60.0
    max_answers: int = 2
    sleep: Sleep = asyncio.sleep
    on_retry: Callable[[], None] = lambda: None
    jitter: tenacity.wait.wait_base = field(default_factory=lambda: tenacity.wait_random_exponential(multiplier=1))
    budget: RetryBudget = field(default_factory=RetryBudget)

    @classmethod
    def from_config(cls, retry: RetryConfig, on_retry: Callable[[], None]) -> "RetryPolicy":
        """The policy that a config describes; `on_retry` is called before every wait."""
        budget = RetryBudget(retry.max_retry_share)
        return cls(max_attempts=retry.max_attempts, max_wait_s=retry.max_wait_s, on_retry=on_retry, budget=budget)

    async def call(self, attempt: Callable[[int], Awaitable[T]]) -> T:
        """Await `attempt(n)`, n = 1, 2, …, until it returns or is given up; the error's `attempts` says how often."""
        self.budget.requests += 1
        try:
            # most attempts are the only one, and setting tenacity up is a twentieth of what a request costs
            return await attempt(1)
        except ApiError as error:
            first = error
        return await self._call_again(attempt, first)

    async def _call_again(self, attempt: Callable[[int], Awaitable[T]], first: ApiError) -> T:
        """As `call`, when the first attempt has ended with `first`."""
        answers = 0

        def is_worth_it(state: tenacity.RetryCallState) -> bool:
            nonlocal answers
            error = state.outcome.exception() if state.outcome else None
            answers += isinstance(error, AnswerError)
            if isinstance(error, ApiError):
                error.attempts = state.attempt_number
            if not isinstance(error, RateLimited | ServerUnavailable | AnswerError) or answers >= self.max_answers:
                return False
            if not self.budget.allows_repeat():
                error.args = (f"{error}; not asked again: retry.max_retry_share is used up",)
                return False
            return True

        retrying = tenacity.AsyncRetrying(
            retry=is_worth_it,
            wait=self._wait_s,
            stop=self._is_over,
            sleep=self.sleep,
            before_sleep=self._report,
            reraise=True,
        )
        async for one in retrying:
            with one:
                if one.retry_state.attempt_number == 1:
                    raise first
                self.budget.requests += 1
                return await attempt(one.retry_state.attempt_number)
        raise AssertionError("a policy ends by returning or raising")

    def _report(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = " ".join(str(error).split())[:200]  # Google's account of a quota has five lines
        logger.warning("attempt %d: %s; again in %.1f s", state.attempt_number, reason, state.upcoming_sleep)
        self.budget.repeats += 1
        self.on_retry()

    def _is_over(self, state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= self.max_attempts

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, ApiError) else None
        if isinstance(error, AnswerError):
            return 0.0
        return min(self.max_wait_s, asked_s or self.jitter(state))
