"""How fast the service may be asked: requests and tokens per minute, requests per day, money, and what is in flight."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from pixscribe.config import LimitsConfig
from pixscribe.errors import BudgetExhausted, QuotaExhausted

BURST_S = 0.5
"""How much of a minute's quota may be caught up at once, after the event loop was late."""

PACIFIC = ZoneInfo("America/Los_Angeles")
"""Where Google's daily quotas begin their day."""

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Rate:
    """A quota per minute, paced evenly (GCRA): over any 60 seconds no more than `per_minute` is let through.

    What costs more than the burst is let through when all before it is paid off; the next one waits the longer.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_s = per_minute / (60 + BURST_S)
        self._paid_until_s = float("-inf")

    def reserve(self, cost: float, now_s: float) -> float:
        """Take `cost` and return the time at which it may be used."""
        start_s = max(self._paid_until_s, now_s - BURST_S)
        self._paid_until_s = start_s + cost / self._per_s
        return max(start_s, now_s)

    def hold(self, until_s: float) -> None:
        """Let nothing through before that time, and then begin as from rest."""
        self._paid_until_s = max(self._paid_until_s, until_s)

    def correct(self, difference: float) -> None:
        """Take (or give back, if negative) what an estimate was wrong by."""
        self._paid_until_s += difference / self._per_s


@dataclass(slots=True)
class Reservation:
    """What a question that was let through takes of the limits. Set what it really took before the context ends."""

    input_tokens: int
    cost_usd: float


class Limiter:
    """All limits of one process, in front of every single attempt.

    `clock` is monotonic seconds, `today` gives the day in Pacific time; tests move both. `spent_usd` is what the run
    has cost before this process.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        today: Callable[[], str] = lambda: datetime.now(PACIFIC).date().isoformat(),
        spent_usd: float = 0.0,
    ) -> None:
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._requests = Rate(limits.requests_per_minute)
        self._tokens = Rate(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._day = Day(limits.requests_per_day, today)
        self.budget = Budget(limits.budget_usd, spent_usd)
        self._clock = clock
        self._sleep = sleep
        self._paused_until_s = float("-inf")

    @asynccontextmanager
    async def transfer(self) -> AsyncIterator[None]:
        """A place among the requests in flight, for calls that no quota counts (the Files API)."""
        async with self._slots:
            yield

    @asynccontextmanager
    async def question(self, *, input_tokens: int, cost_usd: float) -> AsyncIterator[Reservation]:
        """A place in flight and a share of every quota, estimated now and corrected by what the caller sets.

        Raises `QuotaExhausted` and `BudgetExhausted` instead of letting a request through that would pass them.
        """
        async with self._slots, self.budget.reserve(cost_usd) as spent:
            self._day.count()
            await self._wait_turn(input_tokens)
            taken = Reservation(input_tokens, 0.0)
            try:
                yield taken
            finally:
                spent.append(taken.cost_usd)
                if self._tokens:
                    self._tokens.correct(taken.input_tokens - input_tokens)

    def pause(self, seconds: float) -> None:
        """Let no question through for so long: the service asked one of us to wait, and it meant all."""
        self._paused_until_s = max(self._paused_until_s, self._clock() + seconds)
        self._requests.hold(self._paused_until_s)

    async def _wait_turn(self, input_tokens: int) -> None:
        turn_s = self._requests.reserve(1, self._clock())
        if self._tokens:
            turn_s = max(turn_s, self._tokens.reserve(input_tokens, self._clock()))
        while (wait_s := turn_s - self._clock()) > 0:
            await self._sleep(wait_s)
            if turn_s < self._paused_until_s:
                # a turn from before the pause: those who waited through it must not all go at its end
                turn_s = self._requests.reserve(1, self._clock())


class Day:
    """Requests from midnight to midnight, Pacific time."""

    def __init__(self, per_day: int | None, today: Callable[[], str]) -> None:
        self._per_day = per_day
        self._today = today
        self._date = today()
        self._count = 0

    def count(self) -> None:
        """Take one request of today's. Raises `QuotaExhausted` if there is none left."""
        if self._per_day is None:
            return
        if self._today() != self._date:
            self._date, self._count = self._today(), 0
        if self._count >= self._per_day:
            raise QuotaExhausted(f"limits.requests_per_day: {self._per_day} are used up until midnight Pacific time")
        self._count += 1


class Budget:
    """Money: what is spent, and what the requests in flight may cost at most. The sum never passes the limit."""

    def __init__(self, limit_usd: float | None, spent_usd: float = 0.0) -> None:
        self._limit_usd = limit_usd
        self._reserved_usd = 0.0
        self._in_flight = 0
        self.spent_usd = spent_usd
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, cost_usd: float) -> AsyncIterator[list[float]]:
        """Hold `cost_usd`, the most a request can cost, while it is in flight; the caller appends what it did cost.

        Waits for others to come in cheaper than reserved. Raises `BudgetExhausted` when waiting cannot help.
        """
        await self._admit(cost_usd)
        spent: list[float] = []
        try:
            yield spent
        finally:
            self._in_flight -= 1
            # sums and differences of floats leave crumbs, which must not outlive the last reservation
            self._reserved_usd = self._reserved_usd - cost_usd if self._in_flight else 0.0
            self.spent_usd += sum(spent)
            if self._limit_usd is not None:
                async with self._changed:
                    self._changed.notify_all()

    async def _admit(self, cost_usd: float) -> None:
        if self._limit_usd is not None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._fits(cost_usd) or self._in_flight == 0)
            if not self._fits(cost_usd):
                raise BudgetExhausted(
                    f"limits.budget_usd: {self.spent_usd:.4f} of {self._limit_usd:g} USD are spent, "
                    f"and the next request may cost {cost_usd:.4f}"
                )
        self._reserved_usd += cost_usd
        self._in_flight += 1

    def _fits(self, cost_usd: float) -> bool:
        return self._limit_usd is None or self.spent_usd + self._reserved_usd + cost_usd <= self._limit_usd
