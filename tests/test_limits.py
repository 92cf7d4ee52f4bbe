import asyncio

import pytest

from pixscribe.config import LimitsConfig
from pixscribe.errors import BudgetExhausted, QuotaExhausted
from pixscribe.limits import BURST_S, Budget, Limiter, Rate


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.date = "2026-11-22"

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    def limiter(self, limits: LimitsConfig) -> Limiter:
        return Limiter(limits, clock=lambda: self.now_s, sleep=self.sleep, today=lambda: self.date)


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
    interval_s = (60 + BURST_S) / 60
    assert at == pytest.approx([100.0, 100.0 - BURST_S + interval_s, 100.0 - BURST_S + 2 * interval_s])


async def test_tokens_are_corrected_by_what_the_answer_says():
    time = Time()
    limiter = time.limiter(LimitsConfig(tokens_per_minute=6000, requests_per_minute=1e6))
    async with limiter.question(input_tokens=100, cost_usd=0) as taken:
        taken.input_tokens = 1100
    await ask(limiter)
    # 1100 tokens at 100 a second, less the burst
    assert time.now_s == pytest.approx(1000 + 1100 / (6000 / (60 + BURST_S)) - BURST_S)


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
    time.date = "2026-11-23"
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
