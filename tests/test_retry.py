from collections.abc import Awaitable, Callable

import pytest
import tenacity

from pixscribe.errors import AnswerError, ApiError, Blocked, QuotaExhausted, RateLimited, ServerUnavailable
from pixscribe.retry import RetryBudget, RetryPolicy


class Waits:
    """Remembers how long it was told to sleep."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


def failing(*errors: Exception) -> Callable[[int], Awaitable[str]]:
    remaining = list(errors)

    async def attempt(number: int) -> str:
        if remaining:
            raise remaining.pop(0)
        return f"attempt {number}"

    return attempt


def policy(waits: Waits, max_attempts: int = 6) -> RetryPolicy:
    return RetryPolicy(max_attempts, max_wait_s=60, sleep=waits.sleep, jitter=tenacity.wait_exponential(multiplier=1))


async def test_passing_troubles_are_asked_again_with_longer_and_longer_waits():
    waits = Waits()
    errors = [ServerUnavailable("503"), RateLimited("429"), ServerUnavailable("reset")]
    assert await policy(waits).call(failing(*errors)) == "attempt 4"
    assert waits.seconds == [1, 2, 4]


async def test_the_wait_that_the_service_asks_for_is_kept_but_clamped():
    waits = Waits()
    errors = [RateLimited("a", retry_after_s=46.7), RateLimited("b", retry_after_s=9223372036854775807)]
    await policy(waits).call(failing(*errors))
    assert waits.seconds == [46.7, 60]


async def test_it_gives_up_after_so_many_attempts_and_says_how_many():
    with pytest.raises(ServerUnavailable) as caught:
        await policy(Waits(), max_attempts=3).call(failing(*[ServerUnavailable("503")] * 9))
    assert caught.value.attempts == 3


async def test_unusable_answers_are_paid_for_so_only_two_are_taken():
    waits = Waits()
    errors = [ServerUnavailable("503"), AnswerError("cut"), AnswerError("cut again"), AnswerError("never reached")]
    with pytest.raises(AnswerError, match="cut again") as caught:
        await policy(waits).call(failing(*errors))
    assert (caught.value.attempts, waits.seconds) == (3, [1, 0])


@pytest.mark.parametrize("error", [Blocked("safety"), QuotaExhausted("per day"), ValueError("a bug")])
async def test_what_cannot_pass_is_asked_once(error: Exception):
    waits = Waits()
    with pytest.raises(type(error)):
        await policy(waits).call(failing(error))
    assert waits.seconds == []


async def test_each_retry_is_counted():
    counted: list[ApiError] = []
    errors = [ServerUnavailable("1"), ServerUnavailable("2")]
    told = RetryPolicy(sleep=Waits().sleep, on_retry=lambda: counted.append(errors[0]))
    await told.call(failing(*errors))
    assert len(counted) == 2


async def test_beyond_the_budget_of_a_run_nothing_is_asked_again_and_the_error_says_so():
    spent = RetryPolicy(sleep=Waits().sleep, budget=RetryBudget(share=0.5, free=3))
    attempts = 0

    async def fail(number: int) -> str:
        nonlocal attempts
        attempts += 1
        raise ServerUnavailable("503")

    for _ in range(100):
        with pytest.raises(ServerUnavailable):
            await spent.call(fail)
    # with every second request a repeat there is one for each question, and three at the start
    assert attempts <= 2 * 100 + 2 * 3
    with pytest.raises(ServerUnavailable, match=r"503; not asked again: retry\.max_retry_share is used up"):
        await spent.call(fail)


async def test_a_budget_is_not_touched_by_ten_percent_of_failures():
    waits = Waits()
    calm = RetryPolicy(sleep=waits.sleep, budget=RetryBudget(share=0.5, free=0))
    for number in range(1000):
        await calm.call(failing(*[ServerUnavailable("503")] * (number % 10 == 9)))
    assert len(waits.seconds) == 100
