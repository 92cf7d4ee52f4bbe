"""What may be sent now: requests and tokens per minute, requests per day, money, and what is in flight.

The limits of the config are upper bounds. What the service really grants may be less, and `pace.py` follows that.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from pixscribe.clock import Clock, Sleep
from pixscribe.config import LimitsConfig
from pixscribe.errors import BudgetExhausted, QuotaExhausted
from pixscribe.pace import Pace, Slots

logger = logging.getLogger(__name__)

BURST_S = 0.5
"""How much of a minute's quota may be caught up at once, after the event loop was late."""
JITTER_S = 0.1
"""How much later than its neighbours a request may reach the service, and so come closer to those behind it."""
LONGEST_PAUSE_S = 600.0
"""No quota per minute needs longer, whatever delay the service names (292 years have been seen)."""
CRUMB_USD = 1e-6
"""What counting in whole units may leave of money that was given back."""
MIDNIGHT_MARGIN_S = 90
PARK_STEP_S = 60.0
"""How often a parked run looks at the clock, which may be set."""

PACIFIC = ZoneInfo("America/Los_Angeles")
"""Where Google's daily quotas begin their day."""

Today = Callable[[], str]
Quota = Literal["requests", "tokens"]


class SharedQuota(Protocol):
    """The limits of a project, as many processes share them. What it cannot reach it raises as `RunError`."""

    async def take(self, quota: Quota, amount: float) -> float:
        """Take `amount` and return after how many seconds it begins to be ours, to be used evenly from then on."""

    async def take_of_day(self, requests: int) -> bool:
        """Take so many of today's requests; False, and nothing is taken, if there are not so many left."""

    async def pause(self, seconds: float) -> None:
        """Tell everyone to let nothing through for so long."""

    async def paused_s(self) -> float:
        """For how long someone told everyone to wait; 0 or less when nobody did."""

    async def close(self) -> None:
        """Let go of what it holds open."""


class SharedBudget(Protocol):
    """Money that many processes spend together, in USD. What it cannot reach it raises as `RunError`."""

    async def take(self, usd: float) -> bool:
        """Take so much; False, and nothing is taken, if there is not so much left."""

    async def give_back(self, usd: float) -> None:
        """Return what was taken and not spent."""

    async def taken_usd(self) -> float:
        """How much all of them together have taken and not returned."""

    async def close(self) -> None:
        """Let go of what it holds open."""


def per_second(per_minute: float) -> float:
    """The pace at which `per_minute` is not passed in any minute, whatever is caught up or jitters."""
    return per_minute / (60 + BURST_S + JITTER_S)


class Rate:
    """A quota per minute, paced evenly (GCRA): over any 60 seconds no more than `per_minute` is let through.

    What costs more than the burst is let through when all before it is paid off; the next one waits the longer.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_s = per_second(per_minute)
        self._paid_until_s = float("-inf")

    def reserve(self, cost: float, now_s: float, share: float = 1.0) -> float:
        """Take `cost` and return the time at which it may be used; `share` is the part of the rate to go at."""
        start_s = max(self._paid_until_s, now_s - BURST_S)
        self._paid_until_s = start_s + cost / (self._per_s * share)
        return max(start_s, now_s)

    def hold(self, until_s: float) -> None:
        """Let nothing through before that time, and then begin as from rest."""
        self._paid_until_s = max(self._paid_until_s, until_s)

    def correct(self, difference: float) -> None:
        """Take (or give back, if negative) what an estimate was wrong by."""
        self._paid_until_s += difference / self._per_s


class LeasedRate:
    """A quota per minute that is shared with other processes, of which blocks of about a second are leased.

    Each block comes with the time from which it is ours, so that the blocks of all processes lie one behind the other.
    The next one is asked for while the last is used. What is not used in its time is lost, never saved up.
    """

    def __init__(self, quota: Quota, per_minute: float, shared: SharedQuota, clock: Clock) -> None:
        self._quota: Quota = quota
        self._per_s = per_second(per_minute)
        self._block = max(1.0, self._per_s)
        self._shared = shared
        self._clock = clock
        self._free_from_s = 0.0
        self._left = 0.0
        self._next: asyncio.Task[tuple[float, float]] | None = None
        self._turn = asyncio.Lock()

    async def reserve(self, cost: float) -> float:
        """Take `cost` and return the time at which it may be used."""
        async with self._turn:
            self._drop_what_is_past()
            while self._left < cost:
                await self._take_next(cost - self._left)
            start_s = self._free_from_s
            self._free_from_s += cost / self._per_s
            self._left -= cost
            if self._left < self._block and self._next is None:
                self._next = asyncio.create_task(self._lease(self._block))
                self._next.add_done_callback(_look_at_error)
            return start_s

    def close(self) -> None:
        """Lease nothing more."""
        if self._next is not None:
            self._next.cancel()

    def correct(self, difference: float) -> None:
        """Take (or give back, if negative) what an estimate was wrong by."""
        self._left -= difference
        self._free_from_s += difference / self._per_s

    async def _take_next(self, missing: float) -> None:
        leasing, self._next = self._next, None
        # shielded: whoever is cancelled must not take the lease from the others
        from_s, amount = await (asyncio.shield(leasing) if leasing else self._lease(max(self._block, missing)))
        # what is left of the last block, or owed of it, comes out of the new one's time
        self._free_from_s = from_s if self._left == 0 else max(self._free_from_s, from_s)
        self._left += amount

    async def _lease(self, amount: float) -> tuple[float, float]:
        asked_s = self._clock()
        return asked_s + await self._shared.take(self._quota, amount), amount

    def _drop_what_is_past(self) -> None:
        late_s = self._clock() - BURST_S - self._free_from_s
        if late_s > 0:
            self._left = max(0.0, self._left - late_s * self._per_s)
            self._free_from_s += late_s


@dataclass(slots=True)
class Reservation:
    """What a question that was let through takes of the limits. Set what it really took before the context ends."""

    input_tokens: int
    cost_usd: float


class Limiter:
    """All limits of one process, in front of every single attempt.

    `clock` is monotonic seconds, `now` the time of day in Pacific time; tests move both. `spent_usd` is what the run
    has cost before this process, `asked_today` how many of today's requests are known to be used up. With `money`, what
    is left of the budget lies there, and `spent_usd` does not count.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(PACIFIC),
        spent_usd: float = 0.0,
        asked_today: int = 0,
        shared: SharedQuota | None = None,
        money: SharedBudget | None = None,
    ) -> None:
        self.slots = Slots(limits.concurrency)
        self.pace = Pace(limits.requests_per_minute, clock)
        self.budget = (
            LeasedBudget(limits.budget_usd, money, clock, sleep) if money else Budget(limits.budget_usd, spent_usd)
        )
        self._requests = Rate(limits.requests_per_minute)
        self._tokens = Rate(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._leased = _leased_rates(limits, shared, clock) if shared else {}
        self._shared = shared
        self._day = Day(limits.requests_per_day, lambda: now().date().isoformat(), asked_today, shared)
        self._waits_for_midnight = limits.on_daily_quota == "wait"
        self._clock, self._sleep, self._now = clock, sleep, now
        self._paused_until_s = float("-inf")
        self._telling: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def transfer(self) -> AsyncIterator[None]:
        """A place among the requests in flight, for calls that no quota counts (the Files API)."""
        async with self.slots:
            yield

    @asynccontextmanager
    async def question(
        self, *, input_tokens: int, cost_usd: float, check: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Reservation]:
        """A place in flight and a share of every quota, estimated now and corrected by what the caller sets.

        `check` may raise when there is a place, before any quota is taken. Raises `QuotaExhausted` and
        `BudgetExhausted` instead of letting a request through that would pass them; waits for midnight instead of the
        former if `limits.on_daily_quota` says so.
        """
        async with self.slots, self.budget.reserve(cost_usd) as spent:
            check()
            await self._wait_for_day()
            await self._wait_turn(input_tokens)
            taken = Reservation(input_tokens, 0.0)
            try:
                yield taken
            finally:
                spent.append(taken.cost_usd)
                if self._tokens:
                    self._tokens.correct(taken.input_tokens - input_tokens)
                if "tokens" in self._leased:
                    self._leased["tokens"].correct(taken.input_tokens - input_tokens)

    async def close(self) -> None:
        """Let go of what is shared."""
        for rate in self._leased.values():
            rate.close()
        for telling in self._telling:
            telling.cancel()
        try:
            await self.budget.close()
        finally:
            if self._shared is not None:
                await self._shared.close()

    async def rest(self) -> None:
        """Return what others could use, because there is nothing to do here for the moment."""
        await self.budget.rest()

    def note(self, *, limited: bool = False, overloaded: bool = False) -> None:
        """Learn from an answer whether the service took the request, had too many of them (429), or too much (503)."""
        self.pace.note(refused=limited)
        self.slots.note(refused=limited or overloaded)

    def pause(self, seconds: float) -> None:
        """Let no question through for so long: the service asked one of us to wait, and it meant all who share."""
        seconds = min(seconds, LONGEST_PAUSE_S)
        if self._hold(seconds) and self._shared is not None:
            telling = asyncio.create_task(self._shared.pause(seconds))
            self._telling.add(telling)
            telling.add_done_callback(self._told)

    async def wait_for_midnight(self, reason: QuotaExhausted) -> None:
        """Sit out the rest of the day. Raises `reason` instead, unless `limits.on_daily_quota` is `wait`."""
        if not self._waits_for_midnight:
            raise reason
        until = self._when_to_try_again()
        logger.warning("%s; waiting until %s", reason, until.isoformat(timespec="minutes"))
        while (left_s := (until - self._now()).total_seconds()) > 0:
            await self._sleep(min(left_s, PARK_STEP_S))

    def _when_to_try_again(self) -> datetime:
        """After midnight, a little late: the service's clock may be behind ours. In the first hour it may just not have
        begun its day yet, and then a quarter of an hour is worth more than a day."""
        now = self._now()
        if now.hour == 0 and now.minute * 60 + now.second >= MIDNIGHT_MARGIN_S:
            return now + timedelta(minutes=15)
        return _midnight_after(now - timedelta(seconds=MIDNIGHT_MARGIN_S)) + timedelta(seconds=MIDNIGHT_MARGIN_S)

    async def _wait_for_day(self) -> None:
        while True:
            try:
                return await self._day.count()
            except QuotaExhausted as error:
                await self.wait_for_midnight(error)

    async def _wait_turn(self, input_tokens: int) -> None:
        turn_s = self._requests.reserve(1, self._clock(), self.pace.share)
        if self._tokens:
            turn_s = max(turn_s, self._tokens.reserve(input_tokens, self._clock()))
        if self._shared is not None:
            turn_s = max(turn_s, await self._shared_turn_s(self._shared, input_tokens))
        while (wait_s := turn_s - self._clock()) > 0:
            await self._sleep(wait_s)
            if turn_s < self._paused_until_s:
                # a turn from before the pause: those who waited through it must not all go at its end
                turn_s = self._requests.reserve(1, self._clock(), self.pace.share)

    async def _shared_turn_s(self, shared: SharedQuota, input_tokens: int) -> float:
        turns_s = [
            await rate.reserve(1 if quota == "requests" else input_tokens) for quota, rate in self._leased.items()
        ]
        self._hold(min(await shared.paused_s(), LONGEST_PAUSE_S))
        return max(*turns_s, self._paused_until_s)

    def _hold(self, seconds: float) -> bool:
        """Whether that is longer than what was held anyway."""
        until_s = self._clock() + seconds
        if seconds <= 0 or until_s <= self._paused_until_s:
            return False
        self._paused_until_s = until_s
        self._requests.hold(until_s)
        return True

    def _told(self, telling: asyncio.Task[None]) -> None:
        self._telling.discard(telling)
        if not telling.cancelled() and (error := telling.exception()):
            logger.warning("the others could not be told to wait: %s", error)


class Day:
    """Requests from midnight to midnight, Pacific time: of this process, or of all that share the limits."""

    SHARED_BLOCK = 20

    def __init__(self, per_day: int | None, today: Today, count: int = 0, shared: SharedQuota | None = None) -> None:
        self._per_day = per_day
        self._today = today
        self._shared = shared
        self._date = today()
        self._left = 0 if shared or per_day is None else per_day - count
        self._taking = asyncio.Lock()

    async def count(self) -> None:
        """Take one request of today's. Raises `QuotaExhausted` if there is none left."""
        if self._per_day is None:
            return
        if self._today() != self._date:
            self._date, self._left = self._today(), 0 if self._shared else self._per_day
        if self._left <= 0 and self._shared is not None:
            async with self._taking:
                await self._take_block(self._shared)
        if self._left <= 0:
            raise QuotaExhausted(f"limits.requests_per_day: {self._per_day} are used up until midnight Pacific time")
        self._left -= 1

    async def _take_block(self, shared: SharedQuota) -> None:
        block = self.SHARED_BLOCK
        while self._left <= 0 and block:
            if await shared.take_of_day(block):
                self._left += block
            block //= 2


class Budget:
    """Money: what is spent, and what the requests in flight may cost at most. The sum never passes the limit."""

    def __init__(self, limit_usd: float | None, spent_usd: float = 0.0) -> None:
        self._limit_usd = limit_usd
        self._reserved_usd = 0.0
        self._in_flight = 0
        self.spent_usd = spent_usd
        self._changed = asyncio.Condition()

    async def room_usd(self, wanted_usd: float) -> float:
        """How much may be reserved now; waits until it is as much as is wanted, or nothing is in flight."""
        if self._limit_usd is None:
            return float("inf")
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(wanted_usd) or self._in_flight == 0)
        return self._limit_usd - self.spent_usd - self._reserved_usd

    @asynccontextmanager
    async def reserve(self, cost_usd: float, *, is_sent: bool = False) -> AsyncIterator[list[float]]:
        """Hold `cost_usd`, the most a request can cost, while it is in flight; the caller appends what it did cost.

        Waits for others to come in cheaper than reserved. Raises `BudgetExhausted` when waiting cannot help. What is
        sent already, by an earlier process, is held in any case.
        """
        if is_sent:
            self._hold(cost_usd)
        else:
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

    async def close(self) -> None:
        """Let go of what is shared; nothing is, here."""

    async def rest(self) -> None:
        """Return what others could use; nothing is shared here."""

    async def _admit(self, cost_usd: float) -> None:
        if self._limit_usd is not None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._fits(cost_usd) or self._in_flight == 0)
            if not self._fits(cost_usd):
                raise BudgetExhausted(
                    f"limits.budget_usd: {self.spent_usd:.4f} of {self._limit_usd:g} USD are spent, "
                    f"and the next request may cost {cost_usd:.4f}"
                )
        self._hold(cost_usd)

    def _hold(self, cost_usd: float) -> None:
        self._reserved_usd += cost_usd
        self._in_flight += 1

    def _fits(self, cost_usd: float) -> bool:
        return self._limit_usd is None or self.spent_usd + self._reserved_usd + cost_usd <= self._limit_usd


class LeasedBudget(Budget):
    """A budget that is shared with other processes: what is leased of it is the limit of this one.

    A request that does not fit leases what is missing, and a little more, so that few of them have to. What others came
    in cheaper than reserved is returned every few seconds. When nothing is left to lease, requests wait as long as
    anybody still takes or returns anything.
    """

    GIVE_BACK_EVERY_S = 2.0
    ASK_EVERY_S = 1.0
    STILL_S = 10.0
    """When nobody has taken or returned anything for so long, the rest is spent, or lost with its process."""

    def __init__(self, total_usd: float | None, shared: SharedBudget, clock: Clock, sleep: Sleep) -> None:
        super().__init__(0.0)
        self._total_usd = total_usd
        self._leased_usd = 0.0
        self._shared = shared
        self._clock, self._sleep = clock, sleep
        self._turn = asyncio.Lock()
        self._given_back_s = clock()

    async def rest(self) -> None:
        """Return what is not reserved."""
        free_usd = self._leased_usd - self.spent_usd - self._reserved_usd
        if free_usd > 0:
            self._leased_usd -= free_usd
            self._given_back_s = self._clock()
            await self._shared.give_back(free_usd)

    async def close(self) -> None:
        """Return what is not reserved, and let go of the counter."""
        try:
            await self.rest()
        finally:
            await self._shared.close()

    async def _admit(self, cost_usd: float) -> None:
        async with self._turn:
            if self._clock() - self._given_back_s > self.GIVE_BACK_EVERY_S:
                await self.rest()
            await self._lease(cost_usd)
            self._hold(cost_usd)

    async def _lease(self, cost_usd: float) -> None:
        """Until it fits. Raises `BudgetExhausted`."""
        taken_usd, since_s = -1.0, self._clock()
        while (missing_usd := self.spent_usd + self._reserved_usd + cost_usd - self._leased_usd) > 0:
            if await self._take(missing_usd + cost_usd / 4) or await self._take(missing_usd):
                continue
            if self._in_flight == 0:
                await self.rest()
            now_usd = await self._shared.taken_usd()
            if now_usd != taken_usd or self._in_flight:
                taken_usd, since_s = now_usd, self._clock()
            if now_usd < CRUMB_USD or self._clock() - since_s >= self.STILL_S:
                raise BudgetExhausted(
                    f"limits.budget_usd: what is left of {self._total_usd:g} USD does not cover the next request, "
                    f"which may cost {cost_usd:.4f}"
                )
            await self._pause()

    async def _pause(self) -> None:
        """A moment, or until a request of this process comes in."""
        waits = [asyncio.ensure_future(self._sleep(self.ASK_EVERY_S)), asyncio.ensure_future(self._wait_for_change())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _wait_for_change(self) -> None:
        async with self._changed:
            await self._changed.wait()

    async def _take(self, usd: float) -> bool:
        if not await self._shared.take(usd):
            return False
        self._leased_usd += usd
        return True


def _look_at_error(leasing: "asyncio.Task[tuple[float, float]]") -> None:
    """Mark it as seen: it is raised when the lease is wanted, and that may never be."""
    if not leasing.cancelled():
        leasing.exception()


def _leased_rates(limits: LimitsConfig, shared: SharedQuota, clock: Clock) -> dict[Quota, LeasedRate]:
    rates: dict[Quota, LeasedRate] = {"requests": LeasedRate("requests", limits.requests_per_minute, shared, clock)}
    if limits.tokens_per_minute:
        rates["tokens"] = LeasedRate("tokens", limits.tokens_per_minute, shared, clock)
    return rates


def _midnight_after(now: datetime) -> datetime:
    return datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), now.tzinfo)
