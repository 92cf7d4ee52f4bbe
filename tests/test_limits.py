import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from pixscribe.config import LimitsConfig
from pixscribe.errors import BudgetExhausted, QuotaExhausted
from pixscribe.limits import (
    BURST_S,
    LONGEST_PAUSE_S,
    MIDNIGHT_MARGIN_S,
    Budget,
    Limiter,
    Quota,
    Rate,
    per_second,
)
from pixscribe.pace import Slots
from tests.clock import Time


async def ask(limiter: Limiter, *, input_tokens: int = 0, cost_usd: float = 0.0) -> None:
    async with limiter.question(input_tokens=input_tokens, cost_usd=cost_usd) as taken:
        taken.cost_usd = cost_usd


async def test_the_quota_of_a_minute_is_not_passed_and_nearly_used_up():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_minute=600, concurrency=1))
    asked_at_s = []
    while time.now_s < 1061:
        await ask(limiter)
        asked_at_s.append(time.now_s)
    assert 0.97 * 600 <= sum(at_s < 1060 for at_s in asked_at_s) <= 600


def test_after_a_pause_no_more_than_the_burst_is_caught_up():
    rate = Rate(60)
    rate.reserve(1, 0.0)
    at = [rate.reserve(1, 100.0) for _ in range(3)]
    interval_s = 1 / per_second(60)
    assert at == pytest.approx([100.0, 100.0 - BURST_S + interval_s, 100.0 - BURST_S + 2 * interval_s])


async def test_tokens_are_corrected_by_what_the_answer_says():
    time = Time()
    limiter = time.limiter(LimitsConfig(tokens_per_minute=6000, requests_per_minute=1e6))
    async with limiter.question(input_tokens=100, cost_usd=0) as taken:
        taken.input_tokens = 1100
    await ask(limiter)
    # 1100 tokens at 100 a second, less the burst
    assert time.now_s == pytest.approx(1000 + 1100 / per_second(6000) - BURST_S)


async def test_a_pause_holds_for_everyone():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_minute=1e6))
    limiter.pause(45.1)
    await ask(limiter)
    assert time.now_s >= 1045.1


async def test_those_who_waited_through_a_pause_do_not_all_go_at_its_end():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_minute=60, concurrency=64))
    limiter.pause(45)
    asked_at_s: list[float] = []

    async def one() -> None:
        await ask(limiter)
        asked_at_s.append(time.now_s)

    for _ in range(64):
        await one()
    assert sum(1045 <= at_s < 1105 for at_s in asked_at_s) <= 60


async def test_no_more_than_concurrency_is_in_flight():
    limiter = Limiter(LimitsConfig(requests_per_minute=1e7, concurrency=3))
    now = most = 0

    async def one() -> None:
        nonlocal now, most
        async with limiter.question(input_tokens=1, cost_usd=0):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(*(one() for _ in range(20)))
    assert most == 3


async def test_a_days_quota_ends_the_run_and_comes_back_the_next_day():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_day=2))
    await ask(limiter)
    await ask(limiter)
    with pytest.raises(QuotaExhausted, match=r"limits\.requests_per_day: 2 are used up"):
        await ask(limiter)
    time.day += timedelta(days=1)
    await ask(limiter)


async def test_the_budget_is_not_passed_even_by_the_requests_in_flight():
    limiter = Limiter(LimitsConfig(budget_usd=1.0, requests_per_minute=1e7))
    results = await asyncio.gather(*(ask(limiter, cost_usd=0.3) for _ in range(5)), return_exceptions=True)
    assert sum(result is None for result in results) == 3
    assert limiter.budget.spent_usd == pytest.approx(0.9)
    with pytest.raises(BudgetExhausted, match=r"0\.9000 of 1 USD are spent"):
        await ask(limiter, cost_usd=0.3)


async def test_a_budget_that_is_used_up_ends_even_if_floats_leave_crumbs():
    # 0.1 + 0.2 - 0.1 - 0.2 is not 0 in floats, and waiting for it would never end
    prices = [0.1, 0.2, 0.3, 0.7, 0.1, 0.2, 0.3, 0.7]
    limiter = Limiter(LimitsConfig(budget_usd=0.65, requests_per_minute=1e7, concurrency=8))
    async with asyncio.timeout(5):
        results = await asyncio.gather(*(ask(limiter, cost_usd=price) for price in prices), return_exceptions=True)
    assert any(isinstance(result, BudgetExhausted) for result in results)
    assert limiter.budget.spent_usd <= 0.65


async def test_what_a_run_cost_before_counts():
    limiter = Limiter(LimitsConfig(budget_usd=1.0), spent_usd=0.9)
    with pytest.raises(BudgetExhausted, match=r"0\.9000 of 1 USD"):
        await ask(limiter, cost_usd=0.2)


async def test_what_came_in_cheaper_than_reserved_makes_room_for_others():
    budget = Budget(1.0)

    async def spend() -> None:
        async with budget.reserve(0.9) as spent:
            await asyncio.sleep(0)
            spent.append(0.02)

    await asyncio.gather(*(spend() for _ in range(4)))
    assert budget.spent_usd == pytest.approx(0.08)


class Server:
    """A service with a quota of its own: a bucket of 5 % of a minute, as strict services have them."""

    def __init__(self, time: Time, per_minute: float) -> None:
        self._time, self._per_s, self._burst = time, per_minute / 60, max(1.0, per_minute * 0.05)
        self._level, self._filled_s = self._burst, time.now_s
        self.asked: list[tuple[float, bool]] = []

    def take(self) -> bool:
        elapsed_s = self._time.now_s - self._filled_s
        self._level, self._filled_s = min(self._burst, self._level + elapsed_s * self._per_s), self._time.now_s
        granted = self._level >= 1
        self._level -= granted
        self.asked.append((self._time.now_s, granted))
        return granted

    def refused_share(self, from_s: float, to_s: float) -> float:
        granted = [granted for at_s, granted in self.asked if from_s <= at_s < to_s]
        return 1 - sum(granted) / len(granted)

    def granted_per_minute(self, from_s: float, to_s: float) -> float:
        return sum(granted for at_s, granted in self.asked if from_s <= at_s < to_s) * 60 / (to_s - from_s)


async def ask_for(limiter: Limiter, time: Time, seconds: float, take: Callable[[], bool]) -> None:
    until_s = time.now_s + seconds
    while time.now_s < until_s:
        async with limiter.question(input_tokens=0, cost_usd=0):
            granted = take()
        limiter.note(limited=not granted)


async def test_a_lower_quota_of_the_service_is_found_and_hardly_overstepped():
    time = Time()
    limiter, server = time.limiter(LimitsConfig(requests_per_minute=600)), Server(time, 300)
    await ask_for(limiter, time, 300, server.take)
    assert server.refused_share(1010, 1300) <= 0.05
    assert server.granted_per_minute(1060, 1300) >= 0.95 * 300


async def test_the_rate_comes_back_when_the_service_grants_more():
    time = Time()
    limiter, server = time.limiter(LimitsConfig(requests_per_minute=600)), Server(time, 200)
    await ask_for(limiter, time, 120, server.take)
    assert limiter.pace.share < 0.5
    await ask_for(limiter, time, 400, lambda: True)
    assert limiter.pace.share == 1.0


async def test_refusals_at_random_do_not_slow_a_run_down():
    time = Time()
    limiter, draw = time.limiter(LimitsConfig(requests_per_minute=6000)), random.Random(1)
    await ask_for(limiter, time, 120, lambda: draw.random() > 0.1)
    assert limiter.pace.share > 0.7


async def test_requests_in_flight_become_fewer_under_overload_and_come_back():
    slots = Slots(64)
    for _ in range(400):
        slots.note(refused=True)
    assert slots.allowed == 1
    for _ in range(3000):
        slots.note(refused=False)
    assert slots.allowed == 64
    for number in range(3000):
        slots.note(refused=number % 10 == 0)
    assert slots.allowed == 64


async def test_a_place_that_is_given_to_someone_cancelled_is_not_lost():
    slots = Slots(1)

    async def hold() -> None:
        async with slots:
            await asyncio.sleep(0)

    async with slots:
        waiting = [asyncio.ensure_future(hold()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(5), slots:
        pass


async def test_a_delay_of_292_years_is_not_waited_for():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_minute=1e6))
    limiter.pause(9223372036854775807.0)
    await ask(limiter)
    assert time.now_s == 1000 + LONGEST_PAUSE_S


async def test_a_run_may_wait_for_midnight_in_california():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_day=2, on_daily_quota="wait"))
    for _ in range(3):
        await ask(limiter)
    assert time.day.date().isoformat() == "2026-11-23"
    assert time.now_s - 1000 == pytest.approx(14.5 * 3600 + MIDNIGHT_MARGIN_S, abs=60)


async def test_a_clock_that_is_set_while_a_run_waits_for_midnight_is_noticed():
    time = Time()
    limiter = time.limiter(LimitsConfig(on_daily_quota="wait"))
    waiting = asyncio.ensure_future(limiter.wait_for_midnight(QuotaExhausted("all of today's")))
    await asyncio.sleep(0)
    time.day += timedelta(hours=15)
    await waiting
    assert time.now_s < 1200


async def test_requests_of_today_that_are_known_count():
    limiter = Limiter(LimitsConfig(requests_per_day=3), asked_today=2)
    await ask(limiter)
    with pytest.raises(QuotaExhausted):
        await ask(limiter)


class Ledger:
    """What processes share, as a ledger in memory: the meaning of `SharedQuota`, without Prefect."""

    def __init__(self, time: Time, requests: float, tokens: float = 1.0, per_day: int = 0) -> None:
        self._time = time
        self._per_s: dict[Quota, float] = {"requests": per_second(requests), "tokens": per_second(tokens)}
        self._free_s: dict[Quota, float] = {"requests": 0.0, "tokens": 0.0}
        self._day_left = per_day
        self.paused_until_s = 0.0

    async def take(self, quota: Quota, amount: float) -> float:
        await asyncio.sleep(0)
        start_s = max(self._free_s[quota], self._time.now_s)
        self._free_s[quota] = start_s + amount / self._per_s[quota]
        return start_s - self._time.now_s

    async def take_of_day(self, requests: int) -> bool:
        is_left = requests <= self._day_left
        self._day_left -= requests if is_left else 0
        return is_left

    async def pause(self, seconds: float) -> None:
        self.paused_until_s = self._time.now_s + seconds

    async def paused_s(self) -> float:
        return self.paused_until_s - self._time.now_s

    async def close(self) -> None:
        pass


async def test_two_processes_use_a_shared_quota_up_and_do_not_pass_it():
    time = Time()
    ledger = Ledger(time, 600)
    limits = LimitsConfig(requests_per_minute=600)
    limiters = [time.limiter(limits, shared=ledger) for _ in range(2)]
    asked_at_s: list[float] = []

    async def process(limiter: Limiter) -> None:
        while time.now_s < 1120:
            await ask(limiter)
            asked_at_s.append(time.now_s)

    await asyncio.gather(*(process(limiter) for limiter in limiters for _ in range(4)))
    for start_s in (1000, 1030, 1060):
        assert 0.97 * 600 <= sum(start_s <= at_s < start_s + 60 for at_s in asked_at_s) <= 600


async def test_a_shared_quota_that_was_leased_and_not_used_is_not_saved_up():
    time = Time()
    limiter = time.limiter(LimitsConfig(requests_per_minute=600), shared=Ledger(time, 600))
    await ask(limiter)
    time.now_s += 100
    asked_at_s = []
    while time.now_s < 1105:
        await ask(limiter)
        asked_at_s.append(time.now_s)
    assert len(asked_at_s) <= 10 * 5 + 10 * BURST_S + 1


async def test_shared_tokens_are_corrected_by_what_the_answers_say():
    time = Time()
    limits = LimitsConfig(requests_per_minute=1e6, tokens_per_minute=60_000)
    limiter = time.limiter(limits, shared=Ledger(time, 1e6, tokens=60_000))
    used: list[tuple[float, int]] = []
    while time.now_s < 1120:
        async with limiter.question(input_tokens=500, cost_usd=0) as taken:
            taken.input_tokens = 1500
        used.append((time.now_s, 1500))
    for start_s in (1010, 1050):
        tokens = sum(count for at_s, count in used if start_s <= at_s < start_s + 60)
        assert 0.95 * 60_000 <= tokens <= 60_000 + 1500


async def test_a_pause_reaches_the_others_who_share():
    time = Time()
    ledger = Ledger(time, 6000)
    told, other = (time.limiter(LimitsConfig(requests_per_minute=6000), shared=ledger) for _ in range(2))
    told.pause(30)
    await asyncio.sleep(0)
    await ask(other)
    assert time.now_s >= 1030


async def test_a_shared_day_is_used_to_the_last_request():
    time = Time()
    ledger = Ledger(time, 1e6, per_day=47)
    limits = LimitsConfig(requests_per_day=47, requests_per_minute=1e6)
    limiters = [time.limiter(limits, shared=ledger) for _ in range(2)]
    asked = 0
    for _ in range(40):
        for limiter in limiters:
            try:
                await ask(limiter)
            except QuotaExhausted:
                continue
            asked += 1
    assert asked == 47
